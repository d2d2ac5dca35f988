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
    "vocab_size": V, "is_decoder": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
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
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    },
    "bamba": {"attn_layer_indices": [2]},
    "codegen": {"rotary_dim": 4},
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {
        "max_seq_len": 64, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4},
    },
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": V, "laurel_rank": 4},
    "gemma4_text": {"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "gemma4_unified_text": {"global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW, "num_heads": 4},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "inkling2_loop_text": {"unpadded_vocab_size": V},
    "inkling2_text": {"unpadded_vocab_size": V},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "kimi_linear": {
        "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    },
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "longcat_flash": {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 48},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "mimo_v2_flash": {"head_dim": 12, "v_head_dim": 8, "num_key_value_heads": 2},
    "recurrent_gemma": {"attention_window_size": WINDOW, "lru_width": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {
        "pronunciation_vocab_size": 9, "shape_vocab_size": 9, "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 5},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1, "n_mamba_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8},
}  # fmt: skip

#: Model types that have no tiny model, and why.
NO_TINY = {
    **dict.fromkeys(
        ("blt", "fuyu", "gemma3", "got_ocr2", "git", "moss_transcribe_diarize", "phi4_multimodal"),
        "another sense than text, or hashes of bytes, keep their size",
    ),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), "its latent attention keeps its size"),
    "gemma3n": "needs timm",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts from the keys of another model"
    ),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "the decoder's configuration is inside another"),
}


def config(name: str, **changes: Any) -> Any:
    """The tiny configuration of a model type; raises whatever its class raises."""
    made = transformers.CONFIG_MAPPING[name]
    known = {*inspect.signature(made.__init__).parameters, *getattr(made, "__dataclass_fields__", {})}
    known |= set(getattr(made, "attribute_map", {}))
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    text = getattr(made, "sub_configs", {}).get("text_config")
    kind = getattr(text, "model_type", "")
    if kind in transformers.CONFIG_MAPPING and kind != name:
        sizes["text_config"] = config(kind).to_dict()
    return made(**(sizes | OWN.get(name, {}) | changes))


def model(made: Any, seed: int = 0, noise: float = 0.2) -> Any:
    """On the CPU in float32, with weights large enough that every part matters."""
    torch.manual_seed(seed)
    built = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(made)).float().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return built
