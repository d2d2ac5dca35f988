"""GGUF files: headers, parts put together, and what a file states that transformers' reader leaves out.

A GGUF file states its model in keys ``ARCHITECTURE.name`` and holds tensors by llama.cpp's names.
transformers turns both into a model of its own (``integrations/ggml.py``, release 5.24), by maps that
leave keys and tensors out without a word. Here every key about positions or attention is claimed (written
into the configuration) or refused, and so is every tensor.
"""

from __future__ import annotations

import atexit
import copy
import math
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kerple_eval.models.hf.files import StoredTensor, stamp
from kerple_eval.models.hf.foreign import foreign, one_line
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
    "logit_scale": ("logit_scale",),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
}  # fmt: skip
_ABOUT = re.compile(r"(rope|attention)\.|softcapping|sliding_window|_scale$")
#: What llama.cpp has for a family and no key states: layers of the one size that scales queries otherwise.
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


@lru_cache(maxsize=8)
def _table(path: Path, stamp: tuple[int, int]) -> tuple[dict[str, Any], list[tuple[Any, ...]], int, int]:
    """Metadata, tensor table, and where the metadata and the table end, in bytes."""
    from transformers.integrations.gguf import reader  # noqa: PLC0415

    try:
        blob = reader._mapped(str(path))
        metadata, count, table_start = reader._read_metadata(blob, str(path))
        table, end = reader._read_tensor_table(blob, count, table_start)
    except (
        OSError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError, struct.error,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return metadata, table, table_start, end


def metadata(path: Path) -> dict[str, Any]:
    """Keys and values; an array of texts as its length."""
    return _table(path, _stamped(path))[0]


def header_bytes(path: Path) -> bytes:
    """The file up to the end of its tensor table."""
    end = _table(path, _stamped(path))[3]
    with path.open("rb") as file:
        return file.read(end)


def tensors(path: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from the header alone; refuses one that ends beyond the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    keys, table, _, end = _table(path, _stamped(path))
    try:
        size = path.stat().st_size
        start = _aligned(end, keys)
        headers: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in table:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if start + offset + math.prod(shape) // block * width > size:
                raise UserError(f"{path}: truncated: tensor {name[:80]} ends beyond the file's {size} bytes")
            if name in headers:
                raise UserError(f"{path}: tensor {name[:80]} appears twice")
            headers[name] = StoredTensor(tuple(shape), GGMLQuantizationType(kind).name)
    except (OSError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return headers


def _aligned(end: int, keys: Mapping[str, Any]) -> int:
    alignment = int(keys.get("general.alignment", 32))
    return -(-end // alignment) * alignment


def _stamped(path: Path) -> tuple[int, int]:
    try:
        return stamp(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=4)
def joined(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> Path:
    """One temporary file with the metadata of the first part and the tensors of all; deleted at exit.

    transformers reads single files alone. A part's header: magic, version (u32), counts of tensors and keys
    (u64), the keys, the tensor table (name, dimensions, type, offset), the data at ``general.alignment``.
    """
    scratch = tempfile.mkdtemp(prefix="kerple-eval-gguf-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    path = Path(scratch) / files[0].name
    entries: list[bytes] = []
    sections: list[tuple[Path, int]] = []  # file, start of its data
    base, alignment = 0, 32
    for number, (file, part_stamp) in enumerate(zip(files, stamps, strict=True)):
        keys, table, table_start, end = _table(file, part_stamp)
        if number == 0:
            alignment = int(keys.get("general.alignment", 32))
            with file.open("rb") as source:
                head = source.read(table_start)
        start = _aligned(end, keys)
        length = file.stat().st_size - start
        for name, shape, kind, offset in table:
            text = name.encode()
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            entries.append(
                struct.pack("<Q", len(text)) + text + dims + struct.pack("<IQ", kind, base + offset)
            )
        sections.append((file, start))
        base += -(-length // alignment) * alignment
    try:
        with path.open("wb") as out:
            out.write(head[:8] + struct.pack("<Q", len(entries)) + head[16:] + b"".join(entries))
            for file, start in sections:
                out.write(bytes(-out.tell() % alignment))
                with file.open("rb") as source:
                    source.seek(start)
                    shutil.copyfileobj(source, out, 1 << 22)
    except OSError as error:
        raise UserError(f"{path}: the parts cannot be put together there: {error.strerror}") from None
    return path


def stated_sizes(path: Path) -> dict[str, Any]:
    """What the file states of its architecture; what GGUF calls a length and is a width, as such."""
    keys = metadata(path)
    prefix = f"{keys['general.architecture']}."
    stated = {full.removeprefix(prefix): value for full, value in keys.items() if full.startswith(prefix)}
    return {
        key if "context" in key else key.replace("length", "width"): value for key, value in stated.items()
    }


# --- What a file states --------------------------------------------------------------------------


def refuse_unread_scaling(path: Path, names: Mapping[str, Any]) -> None:
    """Rotary scaling that a GGUF file states and transformers leaves out, which would pass for plain rope."""
    if any(name.startswith(("rope_freqs", "rope_factors")) for name in names):
        raise UserError(
            f"{path}: holds scaled rotary frequencies, which transformers would ignore; say how they "
            "scale, for Llama 3.1 rope=llama3,factor=8,original=8192"
        )
    keys = metadata(path)
    architecture = str(keys["general.architecture"])

    def stated(name: str) -> Any:
        return keys.get(f"{architecture}.rope.scaling.{name}", keys.get(f"{architecture}.rope.{name}"))

    factor = stated("factor") or stated("scale_linear") or 1.0
    kind = str(stated("type") or ("linear" if factor != 1 else "none"))
    if kind == "none" or architecture == "gpt-oss":  # the one whose scaling transformers reads
        return
    left_out = f"{path}: its rotary positions are scaled ({quoted(kind)[1:-1]}, factor {factor}), which "
    if kind not in ("linear", "yarn"):
        raise UserError(f"{left_out}transformers ignores and no rope= option can state; use its safetensors")
    original = stated("original_context_length")
    more = f",original={original}" if original and kind == "yarn" else ""
    raise UserError(f"{left_out}transformers would ignore; give rope={kind},factor={factor}{more}")


def claim(raw: dict[str, Any], path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """``raw`` with what the file states about positions and attention; see the module.

    Raises:
        UserError: names a key whose value the model that transformers has cannot take.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS  # noqa: PLC0415

    keys = metadata(path)
    architecture = str(keys["general.architecture"])
    if architecture in GGUF_CONFIG_ARCHS:  # transformers' newer reader sets all that the file states
        return raw
    raw = copy.deepcopy(raw)
    raw["rope_parameters"] = raw.get("rope_parameters") or {}
    for full, value in keys.items():
        if not full.startswith(f"{architecture}.") or not _ABOUT.search(full):
            continue
        key = full.removeprefix(f"{architecture}.")
        if not key.startswith("rope.scaling.") and key != "rope.scale_linear":
            _claim_one(raw, key, value, f"{path}: states {full} = {quoted(value)}")
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


def _claim_one(raw: dict[str, Any], key: str, value: Any, states: str) -> None:
    refusal = UserError(f"{states}, which transformers' {raw.get('model_type')} does not have")
    if key in ("rope.freq_base", "rope.freq_base_swa"):
        rope = _rope(raw, "sliding_attention" if key.endswith("swa") else "full_attention")
        if rope is None:
            raise refusal
        rope["rope_theta"] = float(value)
    elif key == "rope.dimension_count":
        _claim_rotated(raw, int(value), refusal)
    elif key == "attention.max_alibi_bias":
        if float(value) != (8.0 if raw.get("model_type") in ("bloom", "mpt") else 0.0):
            raise refusal
    elif key in ("attention.clamp_kqv", "attention.causal"):
        if bool(value) != (key == "attention.causal"):
            raise refusal
    elif key in _SETTINGS:
        _claim_setting(raw, key, value, refusal)
    elif not _read_by_transformers(raw, key):
        raise refusal


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
            "attention.value_length": width // heads, "attention.scale": None,
        }.get(key, 0)  # fmt: skip
        if value != implied:
            raise refusal
        return
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
        with foreign(str(path), "transformers cannot map its tensors"):
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
    read = {*names, "output.weight"} if architecture == "gpt2" else set(names)  # by its own processor
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


def some(names: Any) -> str:
    """The first three of ``names`` in order, and how many more."""
    ordered = sorted(str(name)[:120] for name in names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
