"""What a configuration of transformers says of a model: its scheme, lengths and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kerple_eval.models.base import Shape
from kerple_eval.models.hf.rope import rope_types

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
    for name, module in model.named_modules():
        if any(word in name for word in _OTHER_SENSES):
            continue
        if name.rsplit(".", 1)[-1] in _LEARNED and isinstance(module, nn.Embedding):
            offset = getattr(module, "offset", 0)  # OPT, BioGPT: rows 0 and 1 are not positions
            return int(module.num_embeddings) - (offset if isinstance(offset, int) else 0)
    return None


def longest_window(config: Any, model: nn.Module) -> int | None:
    """The longest window the positions are defined for; None where there is no limit."""
    if config.model_type in (*_TABLED_ROPE, "ctrl"):
        return int(config.max_position_embeddings)
    return learned_positions(model) if scheme(config, model) == "learned" else None


def _setting(config: Any, name: str) -> Any:
    """The value of ``name``, or those of all layers where the configuration has one a layer (Gemma 4)."""
    layers = getattr(config, "per_layer_config", None)
    try:
        return getattr(config, name, None)
    except Exception:
        if not layers:
            raise
    parts = layers.values() if isinstance(layers, dict) else layers
    return [value for part in parts if (value := getattr(part, name, None)) is not None]


def shape(config: Any) -> Shape:
    """Sizes under the names that model types give them."""

    def first(*names: str) -> int | None:
        for name in names:
            value = _setting(config, name)
            if isinstance(value, Sequence) and value and all(isinstance(item, int) for item in value):
                value = max(value)  # one a layer
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


def rounding(config: Any) -> tuple[str, ...]:
    """Where an architecture's own code rounds positions, whatever dtype the run has."""
    if config.model_type == "falcon" and getattr(config, "alibi", False):
        return ("Falcon's own code computes ALiBi's bias in bfloat16, in a float32 run too",)
    if config.model_type == "bloom":
        return ("BLOOM's own code rounds ALiBi's bias to the run's dtype; --dtype float32 keeps it",)
    return ()


def attends_eagerly(model: nn.Module) -> bool:
    """Whether some module forms the whole matrix of attention's scores."""
    eager = getattr(model.config, "_attn_implementation", None) == "eager"
    return eager and any("Attention" in type(module).__name__ for module in model.modules())
