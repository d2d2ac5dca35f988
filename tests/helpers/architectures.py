"""Every causal language model of transformers, tiny: the configuration of each, and the model on the CPU."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

V, LAYERS, WINDOW = 97, 4, 8
NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

#: Sizes under all the names that configurations give them.
_SIZES: dict[str, Any] = {
    "vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_key_value_heads", "num_kv_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    "encoder_layers": 1, "head_dim": 8,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    "sliding_window": WINDOW, "attention_chunk_size": WINDOW,
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "index_n_heads": 2, "index_head_dim": 16,
    "mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8,
    "state_size": 8, "chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip

#: What an architecture needs besides or instead.
OWN: dict[str, dict[str, Any]] = {}


def config(name: str, **changes: Any) -> Any:
    """The tiny configuration of a model type; raises whatever its class raises."""
    made = transformers.CONFIG_MAPPING[name]
    known = {*inspect.signature(made.__init__).parameters, *getattr(made, "__dataclass_fields__", {})}
    known |= set(getattr(made, "attribute_map", {}))
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    return made(**(sizes | OWN.get(name, {}) | changes))


def model(made: Any, seed: int = 0) -> Any:
    """On the CPU in float32, with weights large enough that every part matters."""
    torch.manual_seed(seed)
    built = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(made)).float().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built
