"""Tiny models of many families as llama.cpp's converter writes them, with quantised blocks.

Written by the ``gguf`` package, names by its own map. What the converter does to values
(``convert_hf_to_gguf.py`` of llama.cpp): Llama's rotated pairs side by side, Gemma's and Nemotron's norms
plus one, GPT-2's matrices transposed, BLOOM's queries, keys and values apart, Mamba's A as -exp(A_log),
merged experts in two parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import MARKS, transformers

gguf = pytest.importorskip("gguf")

Matrix = NDArray[Any]
V = 96
ROPE = {"rope_theta": 500.0, "rope_type": "default"}
PARTIAL = {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}
NESTED = {"full_attention": ROPE, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}


def sized(**changes: Any) -> dict[str, Any]:
    return folders.sized(
        **({"vocab_size": V, "intermediate_size": 64, "rope_parameters": dict(ROPE)} | changes)
    )


def _gpt2_sized(**changes: Any) -> dict[str, Any]:
    return {"vocab_size": V, "n_layer": 2, "n_head": 4, **MARKS, **changes}


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**sized()),
    "qwen2": lambda: transformers.Qwen2Config(**sized()),
    "qwen3": lambda: transformers.Qwen3Config(**sized(head_dim=16)),
    "starcoder2": lambda: transformers.Starcoder2Config(**sized(tie_word_embeddings=False)),
    "stablelm": lambda: transformers.StableLmConfig(**sized(rope_parameters=dict(PARTIAL))),
    "nemotron": lambda: transformers.NemotronConfig(**sized(rope_parameters=dict(PARTIAL))),
    "gemma2": lambda: transformers.Gemma2Config(
        **sized(head_dim=8, sliding_window=8, query_pre_attn_scalar=8, attn_logit_softcapping=5.0,
                final_logit_softcapping=2.0)
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **sized(head_dim=8, sliding_window=8, query_pre_attn_scalar=8, num_hidden_layers=6,
                rope_parameters=NESTED)
    ),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32,
        rope_parameters=dict(ROPE), **MARKS,
    ),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, **_gpt2_sized()),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_positions=64, **_gpt2_sized()),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=16, time_step_rank=32, **MARKS
    ),
    "qwen2moe": lambda: transformers.Qwen2MoeConfig(
        **sized(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                shared_expert_intermediate_size=64)
    ),
    "qwen3moe": lambda: transformers.Qwen3MoeConfig(
        **sized(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                norm_topk_prob=True)
    ),
}  # fmt: skip


def permuted(weight: Matrix, heads: int) -> Matrix:
    """Rotated pairs side by side (convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _converted(family: str, stem: str, kind: str, weight: Matrix) -> Matrix:
    if family == "llama" and stem.endswith(("q_proj", "k_proj")):
        weight = permuted(weight, 4 if stem.endswith("q_proj") else 2)
    elif family in ("gemma2", "gemma3", "nemotron") and kind == ".weight" and "norm" in stem:
        weight = weight + 1
    elif family == "gpt2" and kind == ".weight" and stem.endswith(("c_attn", "c_proj", "c_fc")):
        weight = weight.T
    elif family == "bloom" and stem.endswith("query_key_value"):
        weight = weight.reshape(4, 3, 8, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)
    elif stem.endswith("conv1d") and kind == ".weight":
        weight = weight[:, 0]
    elif stem.endswith("A_log"):
        weight = -np.exp(weight)
    elif stem.endswith("shared_expert_gate"):
        weight = weight[0]
    return np.ascontiguousarray(weight)


def tensors(family: str, made: Any) -> Iterator[tuple[str, Matrix]]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(arch, made.config.num_hidden_layers)
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and made.config.tie_word_embeddings:
            continue
        weight = tensor.float().numpy()
        if merged := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)", name):
            block, half = f"blk.{merged[1]}.ffn_", weight.shape[1] // 2
            if merged[2] == "down_proj":
                yield f"{block}down_exps.weight", weight
            else:
                yield f"{block}gate_exps.weight", weight[:, :half]
                yield f"{block}up_exps.weight", weight[:, half:]
            continue
        stem, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        found = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        yield f"{found}{dot}{kind}", _converted(family, stem, dot + kind, weight)


def quantised(weight: Matrix, kind: Any) -> Matrix:
    """``weight`` as blocks of ``kind`` give it back, along its last dimension."""
    blocks: Matrix = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(weight), kind), kind)
    return blocks


@torch.no_grad()
def put_on_grid(family: str, made: Any, kind: Any) -> None:
    """Weights become values that blocks of ``kind`` hold exactly, so that the file holds the model."""
    for name, parameter in made.named_parameters():
        weight = parameter.numpy()
        across = family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        weight = weight.T if across else weight
        if fits(name, weight):
            found = quantised(weight, kind)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(found.T if across else found)))


def fits(name: str, weight: Matrix) -> bool:
    return (
        weight.ndim > 1
        and weight.shape[-1] % 32 == 0
        and not re.search("conv1d|ssm|A_log|shared_expert_gate", name)
    )


def _state_sizes(writer: Any, family: str, config: Any) -> None:
    data = config.to_dict()
    if family == "mamba":
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
    else:
        heads = config.num_attention_heads
        writer.add_head_count(heads)
        writer.add_head_count_kv(1 if family == "falcon" else data.get("num_key_value_heads") or heads)
    _state_rope(writer, config, data)
    if "rms_norm_eps" in data or family == "mamba":
        writer.add_layer_norm_rms_eps(data.get("rms_norm_eps", 1e-5))
    else:
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
        writer.add_layer_norm_eps(next(data[name] for name in names if name in data))
    if data.get("final_logit_softcapping"):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if data.get("sliding_window"):
        writer.add_sliding_window(config.sliding_window)
    if "moe" in family:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if family == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _state_rope(writer: Any, config: Any, data: dict[str, Any]) -> None:
    rope = data.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if rope:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1)))
        writer.add_key_length(head)
        writer.add_value_length(head)


def write(path: Path, family: str, made: Any, kind: Any, more: Sequence[tuple[str, str, Any]] = ()) -> Path:
    """``made`` with its matrices as blocks of ``kind``; ``more`` are keys: writer's method, name, value."""
    config, data = made.config, made.config.to_dict()
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(data.get("max_position_embeddings") or data.get("n_positions") or 64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(data.get("intermediate_size") or 4 * config.hidden_size)
    _state_sizes(writer, family, config)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<s>", *(chr(33 + n) for n in range(V - 3)), '!"'])
    writer.add_token_types([3, 3] + [1] * (V - 2))
    writer.add_token_merges(['! "'])
    writer.add_eos_token_id(0)
    for method, key, value in more:
        writer.kv_data[0].pop(key, None)
        getattr(writer, method)(key, value)
    for name, weight in tensors(family, made):
        if kind is not None and fits(name, weight):
            writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
