"""What a configuration of transformers says of a model: its lengths and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from kerple_eval.models.base import Shape
from kerple_eval.models.hf.layers import LEARNED, OTHER_SENSES

#: Types with rotary positions in tables that end at the trained length, or sines that do.
_TABLED = ("gptj", "codegen", "ctrl")


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


def learned_positions(model: nn.Module) -> int | None:
    """How many positions a stored table serves, without the rows some models keep for padding.

    Learned or computed (Pegasus, RoFormer): beyond its end there is nothing to look up.
    """
    for name, module in model.named_modules():
        if any(word in name for word in OTHER_SENSES):
            continue
        if name.rsplit(".", 1)[-1] in LEARNED and isinstance(module, nn.Embedding):
            offset = getattr(module, "offset", 0)  # OPT, BioGPT: rows 0 and 1 are not positions
            return int(module.num_embeddings) - (offset if isinstance(offset, int) else 0)
    return None


def longest_window(config: Any, model: nn.Module) -> int | None:
    """The longest window the positions are defined for; None where there is no limit."""
    if config.model_type in _TABLED:
        return int(config.max_position_embeddings)
    return learned_positions(model)


def _setting(config: Any, name: str) -> Any:
    """The value of ``name``, or those of all layers where the configuration has one a layer (Gemma 4)."""
    layers = getattr(config, "per_layer_config", None)
    try:
        return getattr(config, name, None)
    except Exception:  # a configuration by layers refuses the common name, each class in its own way
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
    """Whether a module forms a matrix [L, L] for each head: scores, or the ALiBi that Falcon adds to them."""
    config: Any = model.config
    if config.model_type == "rwkv":  # recurrent, whatever its modules are called
        return False
    if config.model_type == "falcon" and config.alibi:
        return True
    eager = getattr(config, "_attn_implementation", None) == "eager"
    return eager and any("Attention" in type(module).__name__ for module in model.modules())
