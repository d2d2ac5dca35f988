"""GPT-NeoX checkpoints written from the layout alone, and their losses in float64.

Nothing here imports the package. Tensors are drawn whole, in GPT-NeoX's own names and packing; the
forward pass reads them in that packing (numpy, float64, the whole score matrix at once), and
``write`` cuts them into model-parallel shards and saves them with ``torch.save``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.helpers import oracles

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A configuration in GPT-NeoX's terms."""

    pos_emb: str = "rotary"
    layers: int = 2
    width: int = 32
    heads: int = 4
    vocabulary: int = 48
    positions: int = 2048
    tied: bool = False
    gpt_j_residual: bool = False
    gpt_j_tied: bool = False
    rotary_pct: float = 1.0
    rotary_base: int = 10000
    fused: bool = False
    activation: str = "gelu"
    norm: str = "layernorm"
    epsilon: float = 1e-5
    buckets: int = 32
    farthest: int = 128
    seed: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)  # a KERPLE parameter -> one a head

    @property
    def dim(self) -> int:
        return self.width // self.heads

    @property
    def inner(self) -> int:
        return 2 * self.width if self.activation == "geglu" else 4 * self.width


KERPLE = {
    "kerple_log": ("bias_a", "bias_p"),
    "kerple_power_ap_": ("bias_a", "bias_p"),
    "kerple_power__ap": ("wei_a", "wei_p"),
    "kerple_power_ap_ap": ("bias_a", "bias_p", "wei_a", "wei_p"),
    "kerple_power_original": ("bias_a",),
}


def draw(model: Model) -> dict[str, Array]:
    """Whole tensors by ``LAYER.NAME``, numbers that float32 holds exactly."""
    rng = np.random.default_rng(model.seed)
    w, out = model.width, {}

    def put(name: str, *shape: int, scale: float = 0.18, around: float = 0.0) -> None:
        out[name] = (around + scale * rng.normal(size=shape)).astype(np.float32).astype(np.float64)

    def norm(name: str) -> None:
        if model.norm == "rmsnorm":
            put(f"{name}.scale", w, around=1.0)
        else:
            put(f"{name}.weight", w, around=1.0)
            put(f"{name}.bias", w)

    put("0.word_embeddings.weight", model.vocabulary, w, scale=0.3 if model.tied else 1.0)
    if model.pos_emb == "learned":
        put("0.position_embeddings.weight", model.positions, w, scale=0.5)
    rpe = {}
    if model.pos_emb == "rpe":
        put("rpe", model.buckets, model.heads, scale=0.5)
        rpe = {"weight": out.pop("rpe")}
    for name in KERPLE.get(model.pos_emb, ()):
        top = 2.0 if name.endswith("p") else 1.0
        drawn = rng.uniform(0.02, top - 0.02, size=model.heads)
        if model.pos_emb == "kerple_power_original":
            drawn = np.array(oracles.alibi_slopes(model.heads))
        chosen = model.values.get(name, drawn)
        rpe[name] = np.float32(chosen).astype(np.float64)[:, None, None]
    wide = 2 * model.inner if model.activation == "geglu" else model.inner
    for n in range(model.layers):
        p = f"{n + 2}."
        norm(p + "input_layernorm")
        norm(p + "post_attention_layernorm")
        put(p + "attention.query_key_value.weight", 3 * w, w)
        put(p + "attention.query_key_value.bias", 3 * w)
        put(p + "attention.dense.weight", w, w)
        put(p + "attention.dense.bias", w)
        put(p + "mlp.dense_h_to_4h.weight", wide, w)
        put(p + "mlp.dense_h_to_4h.bias", wide)
        put(p + "mlp.dense_4h_to_h.weight", w, model.inner, scale=0.1)
        put(p + "mlp.dense_4h_to_h.bias", w)
        out |= {f"{p}attention.rpe.{name}": value for name, value in rpe.items()}
        if model.pos_emb == "rotary":
            turned = int(model.dim * model.rotary_pct)
            out[p + "attention.rotary_emb.inv_freq"] = model.rotary_base ** (
                -np.arange(0, turned, 2) / turned
            )
        if model.pos_emb == "alibi":
            out[p + "attention.alibi_embed.slopes"] = np.array(oracles.alibi_slopes(model.heads))
    if model.pos_emb == "sinusoidal":
        out["0.position_embeddings.inv_freq"] = 10000.0 ** (-np.arange(0, w, 2) / w)
    norm(f"{model.layers + 3}.norm")
    if not model.tied:
        put(f"{model.layers + 4}.final_linear.weight", model.vocabulary, w)
    return out


# --- The forward pass ----------------------------------------------------------------------------


def erf(x: Array) -> Array:
    return torch.erf(torch.from_numpy(x)).numpy()


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def activated(x: Array, model: Model) -> Array:
    if model.activation == "geglu":
        u, gate = np.split(x, 2, axis=-1)
        return u * gelu(gate)
    if model.activation == "gelu" and model.fused:
        return oracles.gelu_tanh(x)
    return gelu(x) if model.activation == "gelu" else oracles.activate(x, model.activation)


def normed(x: Array, t: dict[str, Array], name: str, model: Model) -> Array:
    if model.norm == "rmsnorm":
        return oracles.rms_norm(x, t[f"{name}.scale"], model.epsilon)
    return oracles.layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], model.epsilon)


def changed_scores(scores: Array, t: dict[str, Array], prefix: str, model: Model) -> Array:
    """Scaled scores ``[H, N, N]`` after the release's relative position module."""
    length = scores.shape[-1]
    apart = np.tril(np.arange(length)[:, None] - np.arange(length))
    d = np.arange(length, dtype=np.float64)
    found = {n: t.get(f"{prefix}attention.rpe.{n}") for n in ("bias_a", "bias_p", "wei_a", "wei_p")}
    get = {n: None if x is None else np.maximum(x[:, :, 0], 0.01) for n, x in found.items()}  # [H, 1]
    if model.pos_emb == "kerple_log":
        return scores - (get["bias_p"] * np.log(1 + get["bias_a"] * d))[:, apart]
    if model.pos_emb.startswith("kerple_power"):
        powers = {n: np.minimum(x, 2) for n, x in get.items() if x is not None and n.endswith("p")}
        if get["wei_a"] is not None:
            scores = scores * np.exp(-get["wei_a"] * d ** powers["wei_p"])[:, apart]
        if get["bias_a"] is not None:
            scores = scores - (get["bias_a"] * d ** powers.get("bias_p", np.ones((1, 1))))[:, apart]
        return scores
    if model.pos_emb == "alibi":
        return scores - np.array(oracles.alibi_slopes(model.heads))[:, None, None] * apart
    if model.pos_emb == "rpe":
        buckets = np.array([oracles.t5_bucket(n, model.buckets, model.farthest) for n in range(length)])
        values = t[f"{prefix}attention.rpe.weight"][buckets].T  # [H, N]
        return scores + values[:, apart] * math.sqrt(model.dim)
    return scores


def turned(x: Array, model: Model) -> Array:
    """Rotary on ``[H, N, d]``: the first int(d * pct) components, half-split."""
    r = int(model.dim * model.rotary_pct)
    angles = np.arange(x.shape[1])[:, None] * float(model.rotary_base) ** (-np.arange(0, r, 2) / r)
    cos, sin = np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2))
    part = x[..., :r]
    half = np.concatenate([-part[..., r // 2 :], part[..., : r // 2]], axis=-1)
    return np.concatenate([part * cos + half * sin, x[..., r:]], axis=-1)


def losses(
    t: dict[str, Array],
    model: Model,
    tokens: NDArray[np.int64],
    *,
    ranks: int = 1,
    change: Callable[[Array, Array, str], Array] | None = None,
) -> Array:
    """Nats of targets 1..n-1 of one window over all tokens but the last; ``ranks`` shards run it.

    ``change``: scaled scores [H, N, N], queries [H, N, d] and the layer's prefix -> scores.
    """
    inputs = tokens[:-1]
    length, w, last = len(inputs), model.width, model.layers + 3
    x = t["0.word_embeddings.weight"][inputs]
    if model.pos_emb == "learned":
        x = x + t["0.position_embeddings.weight"][:length]
    if model.pos_emb == "sinusoidal":
        x = x + np.stack([oracles.sinusoid(i, w) for i in range(length)])
    future = np.triu(np.ones((length, length), dtype=bool), k=1)
    copies = ranks if model.gpt_j_residual else 1  # there each rank adds its bias before the reduction
    for n in range(model.layers):
        p = f"{n + 2}."
        y = normed(x, t, p + "input_layernorm", model)
        tied = y
        packed = y @ t[p + "attention.query_key_value.weight"].T + t[p + "attention.query_key_value.bias"]
        q, k, v = packed.reshape(length, model.heads, 3, model.dim).transpose(2, 1, 0, 3)
        if model.pos_emb == "rotary":
            q, k = turned(q, model), turned(k, model)
        scores = changed_scores(q @ k.transpose(0, 2, 1) / math.sqrt(model.dim), t, p, model)
        scores = scores if change is None else change(scores, q, p)
        scores[:, future] = -10000.0
        probabilities = np.exp(scores - scores.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        y = (probabilities @ v).transpose(1, 0, 2).reshape(length, w)
        attended = y @ t[p + "attention.dense.weight"].T + copies * t[p + "attention.dense.bias"]
        z = x if model.gpt_j_residual else x + attended
        z = normed(z, t, p + "post_attention_layernorm", model)
        z = tied if model.gpt_j_residual and model.gpt_j_tied else z
        z = activated(z @ t[p + "mlp.dense_h_to_4h.weight"].T + t[p + "mlp.dense_h_to_4h.bias"], model)
        z = z @ t[p + "mlp.dense_4h_to_h.weight"].T + copies * t[p + "mlp.dense_4h_to_h.bias"]
        x = x + attended + z
    x = normed(x, t, f"{last}.norm", model)
    logits = x @ t.get(f"{last + 1}.final_linear.weight", t["0.word_embeddings.weight"]).T
    top = logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return normaliser - logits[np.arange(length), tokens[1:]]


# --- Files ---------------------------------------------------------------------------------------


def cut(name: str, whole: Array, shards: int, model: Model, *, row_head: bool = False) -> list[Array]:
    """The shards of one tensor; ``name`` without its layer."""
    if name.startswith("mlp.dense_h_to_4h") and model.activation == "geglu":
        u, gate = (np.split(half, shards) for half in np.split(whole, 2))
        return [np.concatenate(pair) for pair in zip(u, gate, strict=True)]
    columns = name in ("attention.dense.weight", "mlp.dense_4h_to_h.weight", "attention.rpe.weight")
    if columns or (name == "final_linear.weight" and row_head):
        return np.split(whole, shards, axis=1)
    rows = ("word_embeddings", "attention.query_key_value", "mlp.dense_h_to_4h", "attention.rpe",
            "attention.alibi_embed", "final_linear")  # fmt: skip
    return np.split(whole, shards) if name.startswith(rows) else [whole] * shards


def settings(model: Model, shards: int = 1) -> dict[str, Any]:
    """The configuration's keys, some with ``-`` and some with ``_``."""
    return {
        "pipe-parallel-size": 1,
        "model-parallel-size": shards,
        "num-layers": model.layers,
        "hidden-size": model.width,
        "num_attention_heads": model.heads,
        "seq-length": 128,
        "seq-length-val": 4096,
        "max-position-embeddings": model.positions,
        "norm": model.norm,
        "rms_norm_epsilon" if model.norm == "rmsnorm" else "layernorm-epsilon": model.epsilon,
        "pos-emb": model.pos_emb,
        "rotary-pct": model.rotary_pct,
        "rotary_emb_base": model.rotary_base,
        "rpe-num-buckets": model.buckets,
        "rpe-max-distance": model.farthest,
        "no-weight-tying": not model.tied,
        "gpt_j_residual": model.gpt_j_residual,
        "gpt-j-tied": model.gpt_j_tied,
        "bias-gelu-fusion": model.fused,
        "activation": model.activation,
        "optimizer": {"type": "Adam", "params": {"lr": 0.0006, "betas": [0.9, 0.999]}},
        "fp16": {"enabled": True, "type": "bfloat16"},
        "seed": 1235,
    }


def as_yml(values: dict[str, Any]) -> str:
    """As the release writes them: braces, comments, ``True``, a comma after the last."""
    lines = ["# a model", "{", "   # model settings"]
    for key, value in values.items():
        text = str(value) if isinstance(value, bool) else json.dumps(value)
        lines.append(f'   "{key}": {text},  # {key}')
    return "\n".join([*lines, "}", ""])


def write(
    folder: Path,
    model: Model,
    tensors: dict[str, Array] | None = None,
    *,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    row_head: bool = False,
    zipped: bool = True,
    **changes: Any,
) -> Path:
    """A whole checkpoint in ``folder``; ``changes`` to the configuration (None: the key left out)."""
    tensors = draw(model) if tensors is None else tensors
    step = folder / "global_step1000"
    (step / "configs").mkdir(parents=True)
    (folder / "latest").write_text("global_step1000")
    spelt = {key.replace("-", "_"): key for key in settings(model, shards)}
    values = settings(model, shards) | {spelt.get(key, key): value for key, value in changes.items()}
    values = {key: value for key, value in values.items() if value is not None}
    cut_at = len(values) // 2
    items = list(values.items())
    (step / "configs" / "model.yml").write_text(as_yml(dict(items[:cut_at])))
    (step / "configs" / "rest.yml").write_text(as_yml(dict(items[cut_at:])))
    parts: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for full, whole in tensors.items():
        place, name = full.split(".", 1)
        for shard, piece in enumerate(cut(name, whole, shards, model, row_head=row_head)):
            made = torch.from_numpy(np.ascontiguousarray(piece)).to(dtype)
            parts.setdefault((int(place), shard), {})[name] = made
    for (place, shard), state in parts.items():
        name = f"layer_{place:02d}-model_{shard:02d}-model_states.pt"
        torch.save(state, step / name, _use_new_zipfile_serialization=zipped)
    return folder


def variant(**changes: Any) -> Model:
    return replace(Model(), **changes)
