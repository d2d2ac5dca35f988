"""Models of transformers that can be converted to the native decoder: GPT-NeoX (Pythia) and GPT-2.

Source: transformers, ``models/gpt_neox/modeling_gpt_neox.py`` and ``models/gpt2/modeling_gpt2.py``.
GPT-NeoX packs a head's query, key and value together, ``[H, 3, d]``; GPT-2's matrices are stored
transposed (``Conv1D``, ``[in, out]``) with ``[3, H, d]`` outputs, as here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.types import UserError

KNOWN = ("gpt_neox", "gpt2")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_fast": "gelu-tanh",
                "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu", "silu": "swish"}  # fmt: skip


def as_native(
    model: Any, train_length: int | None, where: str, modifiers: Mapping[str, dict[str, Any]]
) -> Decoder:
    """The native decoder with the weights of a loaded model, float32 on CPU, and ``modifiers`` on its scheme.

    Raises:
        UserError: another architecture, or a setting that the decoder does not have.
    """
    refuse_others(model, where)
    makers: dict[str, Callable[[Any, int], tuple[DecoderConfig, dict[str, Tensor]]]] = {
        "gpt_neox": lambda m, n: _gpt_neox(m, n, where),
        "gpt2": lambda m, n: _gpt2(m, n, where),
    }
    native, state = makers[model.config.model_type](model, train_length or 1)
    decoder = Decoder(replace(native, modifiers=dict(modifiers)))
    decoder.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()}, strict=True)
    return decoder


def refuse_others(model: Any, where: str) -> None:
    """Refuse another architecture; ``model`` may be without weights."""
    if model.config.model_type not in KNOWN:
        raise UserError(
            f"{where}: {type(model).__name__} has no native form, so it cannot be converted; "
            f"of transformers' models {', '.join(KNOWN)} have one"
        )


def _activation(name: Any, where: str) -> str:
    if name not in _ACTIVATIONS:
        raise UserError(f"{where}: activation {name!r} has no native form, so it cannot be converted")
    return _ACTIVATIONS[name]


def _refuse(settings: Mapping[str, bool], where: str) -> None:
    for name, present in settings.items():
        if present:
            raise UserError(f"{where}: {name} has no native form, so it cannot be converted")


def _parts(model: Any, rename: Mapping[str, str], layers: int, layer: str) -> dict[str, Tensor]:
    """Native names of the layers' tensors: ``rename`` maps a layer's modules."""
    state: Mapping[str, Tensor] = model.state_dict()
    return {
        f"layers.{n}.{new}.{kind}": state[f"{layer.format(n)}{old}.{kind}"]
        for n in range(layers)
        for old, new in rename.items()
        for kind in ("weight", "bias")
    }


def _gpt_neox(model: Any, train_length: int, where: str) -> tuple[DecoderConfig, dict[str, Tensor]]:
    c = model.config
    rope = c.rope_parameters
    _refuse(
        {
            f"rope_type {rope['rope_type']}": rope["rope_type"] != "default",
            "attention without biases": not c.attention_bias,
        },
        where,
    )
    state = _parts(
        model,
        {
            "input_layernorm": "attention_norm", "attention.query_key_value": "attention.qkv",
            "attention.dense": "attention.out", "post_attention_layernorm": "mlp_norm",
            "mlp.dense_h_to_4h": "mlp_in", "mlp.dense_4h_to_h": "mlp_out",
        },
        c.num_hidden_layers, "gpt_neox.layers.{}.",
    )  # fmt: skip
    heads = c.num_attention_heads
    for name, tensor in state.items():
        if ".attention.qkv." in name:
            per_head = tensor.view(heads, 3, -1, *tensor.shape[1:])
            state[name] = per_head.transpose(0, 1).reshape(tensor.shape)
    trunk = model.gpt_neox
    native = DecoderConfig(
        vocab_size=c.vocab_size, layers=c.num_hidden_layers, width=c.hidden_size, heads=heads,
        mlp_width=c.intermediate_size, train_length=train_length, scheme="rope",
        scheme_options={"base": rope["rope_theta"], "fraction": rope.get("partial_rotary_factor", 1.0)},
        norm_epsilon=c.layer_norm_eps, tie_embeddings=bool(c.tie_word_embeddings),
        activation=_activation(c.hidden_act, where), parallel_residual=c.use_parallel_residual,
    )  # fmt: skip
    return native, state | _ends(model, trunk.embed_in.weight, trunk.final_layer_norm)


def _gpt2(model: Any, train_length: int, where: str) -> tuple[DecoderConfig, dict[str, Tensor]]:
    c = model.config
    _refuse(
        {
            "unscaled attention": not c.scale_attn_weights,
            "scaling by layer": c.scale_attn_by_inverse_layer_idx,
            "cross-attention": c.add_cross_attention,
        },
        where,
    )
    state = _parts(
        model,
        {
            "ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out",
            "ln_2": "mlp_norm", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out",
        },
        c.n_layer, "transformer.h.{}.",
    )  # fmt: skip
    state = {name: x.T.contiguous() if x.ndim == 2 else x for name, x in state.items()}
    trunk = model.transformer
    native = DecoderConfig(
        vocab_size=c.vocab_size, layers=c.n_layer, width=c.n_embd, heads=c.n_head,
        mlp_width=c.n_inner or 4 * c.n_embd, train_length=train_length, scheme="learned",
        scheme_options={"positions": c.n_positions}, norm_epsilon=c.layer_norm_epsilon,
        tie_embeddings=bool(c.tie_word_embeddings), activation=_activation(c.activation_function, where),
    )  # fmt: skip
    ends = _ends(model, trunk.wte.weight, trunk.ln_f)
    return native, state | ends | {"scheme.table": trunk.wpe.weight.detach()}


def _ends(model: Any, embedding: Tensor, norm: Any) -> dict[str, Tensor]:
    return {
        "embedding.weight": embedding.detach(),
        "norm.weight": norm.weight.detach(),
        "norm.bias": norm.bias.detach(),
        "head.weight": model.get_output_embeddings().weight.detach(),
    }
