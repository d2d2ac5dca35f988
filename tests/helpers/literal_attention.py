"""Attention of transformers' architectures written out in float64, one layer at a time, with any positions.

An oracle says of a query i and a key j whether the pair is seen, at which distance it stands and by how much
the row is scaled. Everything below attention's projections is computed here from a layer's weights and from
the configuration's numbers; the rest of the model (embeddings, MLPs, norms between) is transformers' own in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[bool, float, float]  # seen, distance, scaling of the row
Positions = Callable[[int, int], Pair]


@dataclass(frozen=True)
class Literal:
    """What differs between architectures; ``windows`` and ``rotated`` have one entry a layer."""

    windows: tuple[int | None, ...]
    thetas: tuple[float | None, ...]  # base of the rotary positions; None: the layer has none
    fraction: float = 1.0
    norm: str = "none"  # of queries and keys: none, head (over a head), all (over all heads)
    scale: float | None = None
    softcap: float | None = None
    packed: str = "no"  # projections: no, phi3 (q, k, v one after the other), neox (by head)
    divisors: tuple[float, ...] = ()  # of the frequencies (LongRoPE)
    stretch: float = 1.0  # of cosines and sines


def plain(i: int, j: int) -> Pair:
    return True, i - j, 1.0


def install(model: Any, literal: Literal, positions: Positions) -> None:
    """Every attention layer of ``model`` (float64) computed here; ``positions`` where a layer sees far."""
    layers = model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers
    far = None in literal.windows  # where every layer is local, the method applies to all
    for index, layer in enumerate(layers):
        module = layer.attention if hasattr(model, "gpt_neox") else layer.self_attn
        window = literal.windows[index]
        applied = positions if window is None or not far else plain

        def forward(
            hidden_states: Tensor, *_: Any, module: Any = module, index: int = index,
            window: int | None = window, applied: Positions = applied, **__: Any,
        ) -> tuple[Tensor, None]:  # fmt: skip
            q, k, v = _projected(module, model.config, hidden_states[0], literal)
            q, k = _normed(module, q, literal, "q"), _normed(module, k, literal, "k")
            sinks = getattr(module, "sinks", None)
            out = _attended((q, k, v), literal, literal.thetas[index], window, applied, sinks)
            project = module.dense if hasattr(module, "dense") else module.o_proj
            return project(out.flatten(1))[None], None

        module.forward = forward


def _projected(module: Any, config: Any, x: Tensor, literal: Literal) -> tuple[Tensor, Tensor, Tensor]:
    """x ``[N, W]`` -> q ``[N, H, d]``, k and v ``[N, G, d]``."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    if literal.packed == "neox":
        packed = module.query_key_value(x).view(len(x), heads, 3, d)
        return packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    if literal.packed == "phi3":
        q, k, v = module.qkv_proj(x).split([heads * d, groups * d, groups * d], dim=-1)
    else:
        q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    return q.view(-1, heads, d), k.view(-1, groups, d), v.view(-1, groups, d)


def _normed(module: Any, x: Tensor, literal: Literal, which: str) -> Tensor:
    if literal.norm == "none":
        return x
    norm = getattr(module, f"{which}_norm")
    return norm(x) if literal.norm == "head" else norm(x.flatten(1)).view_as(x)


def _attended(
    qkv: tuple[Tensor, Tensor, Tensor], literal: Literal, theta: float | None, window: int | None,
    positions: Positions, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """q ``[N, H, d]``, k and v ``[N, G, d]`` -> ``[N, H, d]``, pair by pair."""
    q, k, v = qkv
    n, heads, d = q.shape
    share = heads // k.shape[1]
    turned = 0 if theta is None else int(d * literal.fraction)
    frequencies = [
        theta ** (-2 * t / turned) / (literal.divisors[t] if literal.divisors else 1.0)  # type: ignore[operator]
        for t in range(turned // 2)
    ]
    scale = d**-0.5 if literal.scale is None else literal.scale
    out = torch.zeros(n, heads, d, dtype=torch.float64)
    for h in range(heads):
        for i in range(n):
            logits, values = [], []
            for j in range(i + 1):
                seen, distance, stretch = positions(i, j)
                if not seen or (window is not None and i - j >= window):
                    continue
                a, b = q[i, h], k[j, h // share]
                dot = float(a[turned:] @ b[turned:])
                for t, frequency in enumerate(frequencies):
                    q1, q2, k1, k2 = (float(x[t + s]) for x in (a, b) for s in (0, turned // 2))
                    angle = distance * frequency
                    dot += literal.stretch**2 * (
                        (q1 * k1 + q2 * k2) * math.cos(angle) + (q1 * k2 - q2 * k1) * math.sin(angle)
                    )
                logit = dot * scale * stretch
                if literal.softcap is not None:
                    logit = literal.softcap * math.tanh(logit / literal.softcap)
                logits.append(logit)
                values.append(v[j, h // share])
            if sinks is not None:
                logits.append(float(sinks[h]))
                values.append(torch.zeros(d, dtype=torch.float64))
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            out[i, h] = weights @ torch.stack(values)
    return out
