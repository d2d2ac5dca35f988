"""What a GGUF file states, claimed or refused: its keys, its rotary scaling, its tensors.

A GGUF file states its model in keys ``ARCHITECTURE.name`` and holds tensors by llama.cpp's names.
transformers turns both into a model of its own (``integrations/ggml.py``, release 5.24), by maps that
leave keys and tensors out without a word. Here every key that may decide losses is claimed (written into
the configuration) or refused, and so is every tensor.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerple_eval.models.hf.files import StoredTensor
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.gguf import metadata, some, vector
from kerple_eval.models.hf.gguf_reader import quick_reader
from kerple_eval.models.hf.rope import Extension, far_dicts, original_length, rope_dicts, rotated
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: A stated key (after the architecture) -> the configuration's name of it, whichever the model has.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "attention.sliding_window": ("sliding_window",),
    "sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.layer_norm_rms_epsilon": (
        "rms_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layer_norm_eps",
    ),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.scale": ("attention_multiplier",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "logit_scale": ("logit_scale",),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
}  # fmt: skip
#: Keys that the shapes of tensors confirm, or that tell how tensors are arranged, as transformers expects.
_PLAIN = re.compile(
    r"context_length|block_count|embedding_length|feed_forward_length|vocab_size|tensor_data_layout"
    r"|use_parallel_residual"
)
#: What llama.cpp has for a family and no key states: layers of the one size that scales queries otherwise.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


#: Keys of a file's rotary scaling beside kind, factor and original length, by the value that changes nothing.
_NEUTRAL = {
    "attn_factor": 1.0, "alpha": 0.0, "yarn_log_multiplier": 0.0, "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
}  # fmt: skip


def check_scaling(
    path: Path, names: Mapping[str, Any], extension: Extension | None, config: Any
) -> list[str]:
    """Rotary scaling that a file states, which transformers leaves out: it would pass for plain positions.

    Without an extension it is refused, with the ``rope=`` that says the same; what an ``extension`` (already
    in ``config``) replaces or leaves out is returned as warnings, and frequencies in the file are compared.
    """
    keys = metadata(path)
    architecture = str(keys["general.architecture"])
    prefix = f"{architecture}.rope.scaling."
    stated = {key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)}
    factor = stated.pop("factor", None) or keys.get(f"{architecture}.rope.scale_linear") or 1.0
    kind = quoted(str(stated.pop("type", None) or ("linear" if factor != 1 else "none")))[1:-1]
    original = stated.pop("original_context_length", None)
    stated.pop("finetuned", None)
    more = [name for name, value in stated.items() if name not in _NEUTRAL or value != _NEUTRAL[name]]
    others = [f"rope.scaling.{quoted(name)[1:-1]} = {quoted(stated[name])}" for name in more]
    longrope = any(name.startswith("rope_factors") for name in names)
    table = vector(path, "rope_freqs.weight") if "rope_freqs.weight" in names else None
    if extension is not None:
        parameters = next(iter(far_dicts(config).values()))
        now = original_length(config, parameters)
        differs = bool(original) and extension.has_original and original != now
        if differs and extension.original is None:
            raise UserError(
                f"{path}: states rope.scaling.original_context_length = {quoted(original)}, and "
                f"{extension.kind} would go by {now} tokens; give original={quoted(original)}"
            )
        warnings = [f"the file's {other} is left out" for other in others]
        if differs:
            warnings.append(
                f"{extension.kind} of {now} tokens replaces the file's own ({quoted(original)} tokens)"
            )
        if table is not None and extension.kind == "llama3":
            _compare_frequencies(table, config, path)
        elif longrope or table is not None:
            warnings.append(f"{extension.kind} replaces the frequencies that the file holds")
        elif kind != "none" and (kind, factor) != (extension.kind, extension.factor):
            warnings.append(f"{extension.kind} replaces the file's own {kind} (factor {factor})")
        return warnings
    if longrope:
        kind = "longrope"
    if table is not None:
        raise UserError(
            f"{path}: holds scaled rotary frequencies, which transformers would ignore; give "
            f"rope=llama3,factor={table.max():.6g},original=N with N the length before that scaling "
            "(Llama 3: 8192)"
        )
    left_out = (
        f"{path}: its rotary positions are scaled ({', '.join([kind, f'factor {factor}', *others])}), which "
    )
    if (others and kind != "none") or kind not in ("none", "linear", "yarn"):
        raise UserError(f"{left_out}transformers ignores and no rope= option can state; use its safetensors")
    if others:
        raise UserError(f"{path}: states {others[0]}, which transformers ignores; use its safetensors")
    if kind != "none":
        length = f",original={original}" if original and kind == "yarn" else ""
        raise UserError(f"{left_out}transformers would ignore; give rope={kind},factor={factor}{length}")
    return []


def _compare_frequencies(table: NDArray[np.float32], config: Any, path: Path) -> None:
    """``table`` ``[d/2]`` divides theta^(-2i/d); refused where ``config`` scales otherwise."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    ((_, parameters),) = rope_dicts(config)
    d = rotated(config, parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    plain = float(parameters["rope_theta"]) ** (-np.arange(0, d, 2) / d)
    if table.shape != plain.shape or not np.allclose(plain / table, scaled.numpy(), rtol=1e-3):
        raise UserError(
            f"{path}: rope=llama3 with this factor and original length is not the scaling that its "
            f"rope_freqs.weight holds (its factor is {table.max():.6g})"
        )


def claim(raw: dict[str, Any], path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """``raw`` with what the file states beside what transformers has read; see the module.

    Raises:
        UserError: names a key whose value the model that transformers has cannot take.
    """
    keys = metadata(path)
    architecture = str(keys["general.architecture"])
    raw = copy.deepcopy(raw)
    raw["rope_parameters"] = raw.get("rope_parameters") or {}
    stated = {
        full.removeprefix(f"{architecture}."): value
        for full, value in keys.items()
        if full.startswith(f"{architecture}.") and full not in _read_by_newer(keys, names)
    }
    for key in sorted(stated, key=lambda key: key != "attention.key_length"):  # others are told by it
        if not key.startswith("rope.scaling.") and key != "rope.scale_linear" and not _PLAIN.fullmatch(key):
            full = quoted(f"{architecture}.{key}")[1:-1]
            states = f"{path}: states {full} = {quoted(stated[key])}"
            try:
                _claim_one(raw, key, stated[key], states)
            except (TypeError, ValueError, ArithmeticError):
                raise UserError(f"{states}, which is no value of that key") from None
    if architecture == "gpt2" and "context_length" in stated:
        raw["n_positions"] = stated["context_length"]
    if architecture in _GEMMA_27B and "query_pre_attn_scalar" in raw:
        large = raw["num_hidden_layers"] == _GEMMA_27B[architecture]
        width = raw["hidden_size"] // raw["num_attention_heads"] if large else raw["head_dim"]
        raw["query_pre_attn_scalar"] = width
    for tensor, setting in (("attn_q.bias", "attention_bias"), ("ffn_up.bias", "mlp_bias")):
        if setting in raw and any(name.endswith(tensor) for name in names):
            raw[setting] = True
    if not raw["rope_parameters"]:
        del raw["rope_parameters"]
    return raw


class _Watched(dict[str, Any]):
    """A dictionary that remembers which of its keys were asked for."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def _read_by_newer(keys: Mapping[str, Any], names: Mapping[str, Any]) -> set[str]:
    """The keys that transformers' newer reader asks for, where it reads this architecture."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS  # noqa: PLC0415

    read = GGUF_CONFIG_ARCHS.get(str(keys["general.architecture"]))
    if read is None:
        return set()
    watched = _Watched(keys)
    read(watched, tuple(names))
    return watched.asked


def _claim_one(raw: dict[str, Any], key: str, value: Any, states: str) -> None:
    refusal = UserError(f"{states}, which transformers' {raw.get('model_type')} does not have")
    if key in ("rope.freq_base", "rope.freq_base_swa"):
        rope = _rope(raw, "sliding_attention" if key.endswith("swa") else "full_attention")
        if rope is None:
            raise refusal
        if not 0 < float(value) < math.inf:
            raise ValueError("a base of frequencies is above 0")
        rope["rope_theta"] = float(value)
    elif key == "rope.dimension_count":
        _claim_rotated(raw, int(value), refusal)
    elif key == "attention.max_alibi_bias":
        if float(value) != (8.0 if raw.get("model_type") in ("bloom", "mpt") else 0.0):
            raise refusal
    elif key in ("attention.clamp_kqv", "attention.causal"):
        if bool(value) != (key == "attention.causal"):
            raise refusal
    elif key.endswith("sliding_window_pattern"):
        _claim_pattern(raw, value, refusal)
    elif key in _SETTINGS:
        _claim_setting(raw, key, value, refusal)
    elif value not in (0, False) and not _read_by_transformers(raw, key):
        raise refusal


def _claim_pattern(raw: dict[str, Any], value: Any, refusal: UserError) -> None:
    """Which layers slide: one flag a layer, or n: every n-th sees all, none where 0 (llama.cpp,
    ``set_swa_pattern``)."""
    layers = raw.get("layer_types")
    if not isinstance(layers, list):
        raise refusal
    slides = (
        value if isinstance(value, list) else [not value or n % value < value - 1 for n in range(len(layers))]
    )
    if len(slides) != len(layers):
        raise refusal
    raw["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]


def _rope(raw: dict[str, Any], layers: str) -> dict[str, Any] | None:
    """The rotary parameters of ``layers``, or of all layers where they share them; None where none are."""
    parameters: dict[str, Any] = raw["rope_parameters"]
    nested = parameters.get(layers)
    if isinstance(nested, dict):
        return nested
    shared = bool(parameters) and not any(isinstance(value, dict) for value in parameters.values())
    return parameters if shared and layers == "full_attention" else None


def _claim_rotated(raw: dict[str, Any], dimensions: int, refusal: UserError) -> None:
    heads = raw.get("num_attention_heads") or 1
    head = raw.get("head_dim") or raw.get("hidden_size", 0) // heads
    rope = _rope(raw, "full_attention")
    if rope is None or not head:
        raise refusal
    now = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0
    if int(head * now) == dimensions:
        return
    partial = "partial_rotary_factor" in rope or "partial_rotary_factor" in raw
    if not partial or not 0 < dimensions <= head:
        raise refusal
    for where in (rope, raw):
        if "partial_rotary_factor" in where:
            where["partial_rotary_factor"] = dimensions / head


def _claim_setting(raw: dict[str, Any], key: str, value: Any, refusal: UserError) -> None:
    name = next((name for name in _SETTINGS[key] if name in raw), None)
    heads = raw.get("num_attention_heads") or raw.get("n_head") or 1
    if name is None:  # a model without the setting: what it has anyway, or nothing
        width = raw.get("hidden_size") or raw.get("n_embd") or 0
        implied = {
            "attention.head_count_kv": heads, "attention.key_length": width // heads,
            "attention.value_length": width // heads, "attention.scale": None, "expert_weights_scale": 1.0,
        }.get(key, 0)  # fmt: skip
        if value != implied:
            raise refusal
        return
    if isinstance(value, list) and not key.startswith("attention.head_count"):
        raise refusal
    if isinstance(value, list) or (key.endswith("sliding_window") and not value):
        return  # one number per layer (transformers' own reading), or none
    now = raw[name]
    if isinstance(now, int | float) and math.isclose(now, value, rel_tol=1e-5):
        return
    if key.endswith("sliding_window"):
        layers = raw.get("layer_types")
        if isinstance(layers, list) and "sliding_attention" not in layers:
            raise refusal
    raw[name] = value


def _read_by_transformers(raw: dict[str, Any], key: str) -> bool:
    from transformers.integrations import GGUF_CONFIG_MAPPING  # noqa: PLC0415

    kind = str(raw.get("model_type")).removesuffix("_text")
    return GGUF_CONFIG_MAPPING.get(kind, {}).get(key) is not None


def check_tensors(model: Any, config: Any, path: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Names and sizes against transformers' map of GGUF names; what it would leave out is refused."""
    from transformers.integrations.gguf import is_gguf_arch_supported  # noqa: PLC0415
    from transformers.modeling_gguf_pytorch_utils import (  # noqa: PLC0415
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = str(metadata(path)["general.architecture"])
    if is_gguf_arch_supported(architecture):
        return  # the newer loader reports what it does not claim
    try:
        with foreign(str(path), "transformers cannot map its tensors"), quick_reader():
            make = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
            names = get_gguf_hf_weights_map(model, make(config=config.to_dict()))
    except UserError as error:
        if isinstance(error.__cause__, NotImplementedError):
            return  # the loader will name what is missing
        raise
    state = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    missing = [name for name, target in names.items() if name not in stored and target not in tied]
    if missing and config.model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "phi3"):
        raise UserError(f"{path}: missing tensor {some(missing)}")
    read = {*names, *(f"{name}.weight" for name in names if name.endswith("_exps"))}  # by its processor
    if architecture == "gpt2":
        read.add("output.weight")
    left = [n for n in stored if n not in read and not n.startswith(("rope_freqs", "rope_factors"))]
    if left:
        raise UserError(f"{path}: tensor not claimed by the model: {some(left)}")
    for name, header in stored.items():
        target = state.get(names.get(name, ""))
        merged = "_exps" in name or "_projs" in name  # parts of one stacked tensor
        if target is not None and not merged and target.numel() != math.prod(header.shape):
            raise UserError(
                f"{path}: tensor {name} has shape {list(header.shape)}, expected {list(target.shape)}"
            )
