"""Published formulas written out in float64, apart from the package: what tests compare it with.

Plain Python and numpy, one number or one row at a time; slow on purpose. Nothing here imports
``kerple_eval``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def alibi_slopes(heads: int) -> list[float]:
    """The authors' ``get_slopes`` (ofirpress/attention_with_linear_biases, transformer.py:742)."""

    def of_power_of_two(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(heads).is_integer():
        return of_power_of_two(heads)
    closest = 2 ** math.floor(math.log2(heads))
    return of_power_of_two(closest) + alibi_slopes(2 * closest)[0::2][: heads - closest]


def t5_bucket(distance: int, buckets: int = 32, farthest: int = 128) -> int:
    """mesh_tensorflow's causal ``_relative_position_bucket`` for one distance, in float64."""
    exact = buckets // 2
    if distance < exact:
        return distance
    log_ratio = math.log(distance / exact) / math.log(farthest / exact)
    return min(buckets - 1, exact + int(log_ratio * (buckets - exact)))


def power(distance: int, exponent: float) -> float:
    return distance**exponent if distance else 0.0


#: KERPLE's biases at one distance, of r1, r2, ... (arXiv 2205.09921, Sections 4, 5.3, Appendix A.3).
KERPLE: dict[str, Callable[..., float]] = {
    "kerple-log": lambda d, r1, r2: -r1 * math.log(1 + r2 * d),
    "kerple-power": lambda d, r1, r2: -r1 * power(d, r2),
    "kerple-bias-wht": lambda d, r1, r2, r3, r4: -r1 * power(d, r2),
    "kerple-3-para-log": lambda d, r1, r2, r3: -r1 * math.log(1 + r2 * power(d, r3)),
    "kerple-gauss-2-para-bias": lambda d, r1, r2: r1 * math.exp(-r2 * d * d),
    "kerple-gauss-3-para-bias": lambda d, r1, r2, r3: r1 * math.exp(-r2 * power(d, r3)),
}


def distance_bias(
    scheme: str, parameters: Mapping[str, Any], heads: int, distance: int, options: Mapping[str, Any]
) -> list[float]:
    """What a scheme adds to the scaled score at one distance, a number a head."""
    if scheme in KERPLE:
        rows = [[float(parameters[name][h]) for name in sorted(parameters)] for h in range(heads)]
        return [KERPLE[scheme](distance, *row) for row in rows]
    if scheme == "kernel":
        return formula(options["formula"], parameters, heads, distance)
    if scheme == "alibi":
        return [-m * distance for m in alibi_slopes(heads)]
    if scheme == "t5":
        bucket = t5_bucket(distance, options.get("buckets", 32), options.get("max_distance", 128))
        return [float(x) * options.get("scale", 1.0) for x in parameters["relative_bias"][bucket]]
    if scheme in (
        "rope",
        "sinusoidal",
        "learned",
        "nope",
        "kerple-gauss-1-para-wht",
        "kerple-gauss-2-para-wht",
    ):
        return [0.0] * heads
    raise AssertionError(f"no oracle for scheme {scheme}")


def formula(text: str, parameters: Mapping[str, Any], heads: int, distance: int) -> list[float]:
    """A test's own formula as Python arithmetic, a number a head."""
    functions = {"log": math.log, "exp": math.exp, "D": float(distance)}
    rows = [{name: float(values[h]) for name, values in parameters.items()} for h in range(heads)]
    return [float(eval(text, {"__builtins__": {}}, functions | row)) for row in rows]


def distance_weight(scheme: str, parameters: Mapping[str, Any], heads: int, distance: int) -> list[float]:
    """What a scheme multiplies the scaled score by at one distance, a number a head."""
    if scheme == "kerple-gauss-1-para-wht":
        return [math.exp(-float(r1) * distance**2) for r1 in parameters["r1"]]
    names = {"kerple-gauss-2-para-wht": ("r1", "r2"), "kerple-bias-wht": ("r3", "r4")}.get(scheme)
    if names is None:
        return [1.0] * heads
    pairs = zip(*(parameters[name] for name in names), strict=True)
    return [math.exp(-float(a) * (distance ** float(p) if distance else 0.0)) for a, p in pairs]


def rotate(x: Array, position: int, base: float = 10000.0, fraction: float = 1.0) -> Array:
    """RoPE for one vector ``[d]``: d/2 explicit 2x2 rotations of (x_t, x_{t+d/2}).

    With a ``fraction`` only the first int(fraction d) components take part.
    """
    if fraction < 1:
        turned = int(len(x) * fraction)
        return np.concatenate([rotate(x[:turned], position, base), x[turned:]])
    half = len(x) // 2
    out = np.empty(len(x))
    for t in range(half):
        angle = position * base ** (-2 * t / len(x))
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        out[[t, t + half]] = turn @ np.array([x[t], x[t + half]], dtype=np.float64)
    return out


def sinusoid(position: int, width: int) -> Array:
    """All sines, then all cosines, of ``position * 10000^(-2t/W)``."""
    angles = [position * 10000 ** (-2 * t / width) for t in range(width // 2)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def attend(
    q: Array, k: Array, v: Array, change: Callable[[int, int, int, float], float] | None = None
) -> Array:
    """Causal attention of the last Q of K positions: ``[H, Q, d]``, ``[H, K, d]`` -> ``[H, Q, d]``.

    ``change(head, i, j, score)`` turns the scaled score of query position i and key j into a logit.
    """
    heads, queries, dim = q.shape
    keys = k.shape[1]
    out = np.empty((heads, queries, v.shape[2]))
    for h in range(heads):
        for row in range(queries):
            i = keys - queries + row
            logits = [float(q[h, row] @ k[h, j]) / math.sqrt(dim) for j in range(i + 1)]
            if change is not None:
                logits = [change(h, i, j, x) for j, x in enumerate(logits)]
            top = max(logits)
            weights = np.array([math.exp(x - top) for x in logits])
            out[h, row] = weights @ v[h, : i + 1] / weights.sum()
    return out


def attend_by_distance(q: Array, k: Array, v: Array, weight: Array, bias: Array) -> Array:
    """:func:`attend` where a score changes by distance alone: ``score * weight[h, D] + bias[h, D]``.

    ``[H, N, d]`` each, ``weight`` and ``bias`` ``[H, N]``; whole matrices, so that 600 tokens take no minute.
    """
    length = q.shape[1]
    distance = np.arange(length)[:, None] - np.arange(length)
    logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2])
    logits = logits * weight[:, np.abs(distance)] + bias[:, np.abs(distance)]
    logits = np.where(distance >= 0, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights @ v / weights.sum(axis=-1, keepdims=True)


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * weight + bias


def gelu(x: Array) -> Array:
    """Exact: ``x Phi(x)``, Phi by the error function."""
    flat = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel()]
    return np.array(flat).reshape(x.shape)


def gelu_tanh(x: Array) -> Array:
    """GPT-NeoX's fused form."""
    return 0.5 * x * (1 + np.tanh(0.79788456 * x * (1 + 0.044715 * x**2)))


def activate(x: Array, name: str) -> Array:
    """The MLP's activation by the native configuration's name."""
    if name == "geglu":
        half = x.shape[-1] // 2
        return x[..., :half] * gelu(x[..., half:])
    elementwise: dict[str, Callable[[Array], Array]] = {
        "gelu": gelu,
        "gelu-tanh": gelu_tanh,
        "relu": lambda z: np.maximum(z, 0),
        "softsign": lambda z: z / (1 + np.abs(z)),
        "swish": lambda z: z / (1 + np.exp(-z)),
        "mish": lambda z: z * np.tanh(np.log1p(np.exp(z))),
    }
    return elementwise[name](x)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """GPT-NeoX's, epsilon outside the root."""
    return weight * x / (np.sqrt((x**2).mean(axis=-1, keepdims=True)) + epsilon)


def decoder_logits(
    weights: Mapping[str, Array],
    tokens: Sequence[int],
    *,
    layers: int,
    heads: int,
    scheme: str,
    options: Mapping[str, Any] | None = None,
    epsilon: float = 1e-5,
    activation: str = "gelu",
    norm: str = "layernorm",
    parallel_residual: bool = False,
) -> Array:
    """Logits ``[N, V]`` of the native decoder for one sequence, from its tensors by name."""
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    options = options or {}
    parameters = {name.removeprefix("scheme."): x for name, x in w.items() if name.startswith("scheme.")}
    x = np.stack([w["embedding.weight"][token] for token in tokens])
    length, width = x.shape
    dim = width // heads
    if scheme == "sinusoidal":
        x = x + np.stack([sinusoid(i, width) for i in range(length)])
    if scheme == "learned":
        x = x + parameters["table"][:length]

    def normed(z: Array, name: str) -> Array:
        if norm == "rmsnorm":
            return rms_norm(z, w[name + ".weight"], epsilon)
        return layer_norm(z, w[name + ".weight"], w[name + ".bias"], epsilon)

    bias = np.array([distance_bias(scheme, parameters, heads, d, options) for d in range(length)]).T
    weight = np.array([distance_weight(scheme, parameters, heads, d) for d in range(length)]).T
    for n in range(layers):
        p = f"layers.{n}."
        packed = normed(x, p + "attention_norm") @ w[p + "attention.qkv.weight"].T
        packed = packed + w[p + "attention.qkv.bias"]
        # The 3W outputs are laid out [3, H, d]: all queries, then all keys, then all values.
        q, k, v = packed.reshape(length, 3, heads, dim).transpose(1, 2, 0, 3)
        if scheme == "rope":
            base, fraction = options.get("base", 10000.0), options.get("fraction", 1.0)
            q, k = (
                np.array([[rotate(z[h, i], i, base, fraction) for i in range(length)] for h in range(heads)])
                for z in (q, k)
            )
        y = attend_by_distance(q, k, v, weight, bias)
        y = y.transpose(1, 0, 2).reshape(length, width)
        y = y @ w[p + "attention.out.weight"].T + w[p + "attention.out.bias"]
        z = normed(x if parallel_residual else x + y, p + "mlp_norm")
        z = activate(z @ w[p + "mlp_in.weight"].T + w[p + "mlp_in.bias"], activation)
        x = x + y + z @ w[p + "mlp_out.weight"].T + w[p + "mlp_out.bias"]
    return normed(x, "norm") @ w.get("head.weight", w["embedding.weight"]).T


def negative_log_softmax(logits: Array, target: int) -> float:
    """Loss in nats of one target under one row of logits."""
    top = float(logits.max())
    return top + math.log(sum(math.exp(float(x) - top) for x in logits)) - float(logits[target])
