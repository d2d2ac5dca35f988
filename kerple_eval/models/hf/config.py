"""The configuration of a transformers checkpoint: read without running its code, and what it says.

``config.json`` (or a GGUF file's metadata) is turned into transformers' own configuration class. What a
configuration could use to reach code or files elsewhere is left out before: remote classes
(``auto_map``), kernels named as attention, names of other weight files.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.models.base import Shape
from kerple_eval.models.hf.files import CONFIG, CheckpointFolder, inside, read_json, stamp
from kerple_eval.models.hf.rope import rope_types
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from torch import nn

#: Keys by which a config.json could name kernels of the hub, other files or other repositories.
_LEFT_OUT = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_flash_attn_2_enabled",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
    "transformers_weights", "fusion_config", "kernel_config", "use_kernels", "_name_or_path", "name_or_path",
    "_commit_hash",
)  # fmt: skip
#: Model types whose positions enter as ALiBi biases, and where they have no other choice.
_ALIBI = ("bloom", "mpt")
#: Types with rotary positions outside ``rope_parameters``; their tables end at the trained length.
_TABLED_ROPE = ("gptj", "codegen")
_SINUSOIDAL = ("xglm", "ctrl")
_NO_POSITIONS = ("mamba", "mamba2", "falcon_mamba", "rwkv", "jamba", "xlstm", "zamba")
_BUCKETS = ("t5", "umt5", "mt5", "xlm-prophetnet", "prophetnet")
#: Modules that hold one learned vector a position, by the last part of their name.
_LEARNED = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")

#: Parts of a model that do not read text.
_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars of transformers and the hub; as before afterwards."""
    from huggingface_hub.utils import (  # noqa: PLC0415
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as log  # noqa: PLC0415

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    root_level = logging.getLogger("huggingface_hub").level
    log.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    log.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        logging.getLogger("huggingface_hub").setLevel(root_level)
        if bars:
            log.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def one_line(error: BaseException, most: int = 200) -> str:
    """An exception of a library as part of a line."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def raw_config(folder: CheckpointFolder) -> dict[str, Any]:
    """``config.json`` as it stands; transformers' reading of the metadata for a GGUF file."""
    if folder.gguf is None:
        path = folder.root / CONFIG
        if not path.exists():
            raise UserError(f"{folder.root}: no {CONFIG}; a Hugging Face checkpoint has one")
        return read_json(inside(folder.root, CONFIG, str(folder.root)))
    path = inside(folder.root, folder.gguf, f"gguf={folder.gguf}")
    return dict(_gguf_config(path, stamp(path)))


@lru_cache(maxsize=4)
def _gguf_config(path: Path, stamp: tuple[int, int]) -> dict[str, Any]:
    """Takes seconds, and a run often opens one file several times, with and without an extension."""
    from transformers import AutoConfig  # noqa: PLC0415

    try:
        made = AutoConfig.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the readers of GGUF raise what they meet
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    return dict(made.to_dict())


def build_config(raw: dict[str, Any], folder: CheckpointFolder, *, remote: bool) -> Any:
    """A transformers configuration of the class that ``model_type`` names."""
    import transformers  # noqa: PLC0415
    from transformers import CONFIG_MAPPING, AutoConfig  # noqa: PLC0415

    where = str(folder.root / (folder.gguf or CONFIG))
    if raw.get("quantization_config"):
        method = raw["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise UserError(
            f"{where}: the weights are quantised ({method}); only plain weights and GGUF are supported"
        )
    if "auto_map" in raw:
        if not remote:
            raise UserError(
                f"{where}: auto_map asks for the checkpoint's own Python code; trust-remote-code=true would "
                "run it, with your rights, on this machine: read that code first"
            )
        try:
            return AutoConfig.from_pretrained(str(folder.root), local_files_only=True, trust_remote_code=True)
        except Exception as error:  # whatever the checkpoint's code raises
            raise UserError(f"{where}: its own code fails: {one_line(error)}") from None
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        close = get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"{where}: model_type {kind!r} is not known to transformers {transformers.__version__}{hint}"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(_cleaned(raw))
    except Exception as error:  # validators of configurations raise many classes
        raise UserError(f"{where}: not a valid {kind} configuration: {one_line(error)}") from None
    if kind == "mpt":
        _check_mpt(config, where)
    return config


def _check_mpt(config: Any, where: str) -> None:
    """transformers' MPT has ALiBi of maximum 8 and nothing else, whatever the configuration asks for."""
    for key, only in (("alibi", True), ("alibi_bias_max", 8), ("qk_ln", False), ("prefix_lm", False)):
        value = getattr(config.attn_config, key, only)
        if value != only:
            raise UserError(
                f"{where}: attn_config.{key}={value}: transformers' MPT leaves it out and knows only {only}"
            )
    if config.logit_scale is not None:
        raise UserError(f"{where}: logit_scale={config.logit_scale}: transformers' MPT leaves it out")


def _cleaned(raw: dict[str, Any]) -> dict[str, Any]:
    """Without the keys of ``_LEFT_OUT``, at any depth."""
    return {
        key: _cleaned(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if key not in _LEFT_OUT
    }


def model_class(config: Any, folder: CheckpointFolder, *, remote: bool) -> Any:
    """The causal language model class for ``config``; encoders are refused."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: PLC0415
    from transformers.models.auto.auto_factory import _get_model_class  # noqa: PLC0415

    where = str(folder.root / (folder.gguf or CONFIG))
    if remote and hasattr(config, "auto_map"):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: PLC0415

        reference = config.auto_map.get("AutoModelForCausalLM")
        if reference is None:
            raise UserError(f"{where}: auto_map names no AutoModelForCausalLM: not a causal language model")
        try:
            return get_class_from_dynamic_module(reference, str(folder.root), local_files_only=True)
        except Exception as error:  # whatever the checkpoint's code raises
            raise UserError(f"{where}: its own code fails: {one_line(error)}") from None
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise UserError(f"{where}: transformers has no causal language model of type {config.model_type}")
    encoder = (
        type(config) in AutoModelForMaskedLM._model_mapping
    )  # BERT and its relatives can be decoders too
    if encoder and getattr(config, "is_decoder", True) is False:
        raise UserError(
            f"{where}: is_decoder is false: this {config.model_type} sees later tokens too, so its losses "
            "are not those of a language model"
        )
    return _get_model_class(config, mapping)


# --- What a configuration says -------------------------------------------------------------------


def text_config(config: Any) -> Any:
    """The part that describes the decoder of text, for models that also see or hear."""
    return config.get_text_config(decoder=True)


def train_length(config: Any, raw: dict[str, Any]) -> int | None:
    """Tokens a training window had, as far as the configuration says; None where it does not.

    BLOOM's is ``seq_length`` or ``n_ctx``-like keys that transformers ignores, MPT's ``max_seq_len``; others
    have ``max_position_embeddings`` (``n_positions``), which stays what the checkpoint says where its own
    rope scaling was trained with it.
    """
    keys = {"bloom": ("seq_length",), "mpt": ("max_seq_len",)}.get(
        config.model_type, ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
    )
    for key in keys:
        value = getattr(config, key, raw.get(key))
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def scheme(config: Any, model: nn.Module) -> str:
    """``rope``, ``rope-yarn``, ..., ``alibi``, ``learned``, ``sinusoidal``, ``t5``, ``none``, or ``unknown``.

    From the configuration and the modules of the model built from it (on the meta device).
    """
    kind = config.model_type
    if kind in _ALIBI or getattr(config, "alibi", False):
        return "alibi"
    for names, scheme_ in (
        (_TABLED_ROPE, "rope"), (_SINUSOIDAL, "sinusoidal"), (_NO_POSITIONS, "none"), (_BUCKETS, "t5"),
    ):  # fmt: skip
        if kind in names:
            return scheme_
    if getattr(config, "position_embedding_type", None) == "nope":
        return "none"
    rotary = any(
        "inv_freq" in name and not any(word in name for word in _OTHER_SENSES)
        for name, _ in model.named_buffers()
    )
    if rotary:
        scaled = [name for name in rope_types(config) if name != "default"]
        return "-".join(["rope", *scaled])
    return "learned" if learned_positions(model) is not None else "unknown"


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a learned table serves, without the rows some models keep for padding."""
    from torch import nn as layers  # noqa: PLC0415

    for name, module in model.named_modules():
        if any(word in name for word in _OTHER_SENSES):
            continue
        if name.rsplit(".", 1)[-1] in _LEARNED and isinstance(module, layers.Embedding):
            offset = getattr(module, "offset", 0)  # OPT, BioGPT: rows 0 and 1 are not positions
            return int(module.num_embeddings) - (offset if isinstance(offset, int) else 0)
    return None


def longest_window(config: Any, model: nn.Module) -> int | None:
    """The longest window the positions are defined for; None where there is no limit."""
    if config.model_type in (*_TABLED_ROPE, "ctrl"):
        return int(config.max_position_embeddings)
    return learned_positions(model) if scheme(config, model) == "learned" else None


def shape(config: Any) -> Shape:
    """Sizes under the names that model types give them."""

    def first(*names: str) -> int | None:
        for name in names:
            value = getattr(config, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    width = first("hidden_size", "d_model", "n_embd") or 0
    heads = first("num_attention_heads", "n_head", "n_heads") or 1
    ratio = first("expansion_ratio")
    return Shape(
        layers=first("num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0,
        width=width,
        heads=heads,
        kv_heads=first("num_key_value_heads", "num_kv_heads") or heads,
        head_dim=first("head_dim") or width // heads,
        mlp_width=first("intermediate_size", "ffn_dim", "n_inner") or (ratio or 4) * width,
    )
