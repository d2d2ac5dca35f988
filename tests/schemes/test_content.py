"""FIRE, DAPE, DAPE-V2, CoPE, FoX and PaTH, one pair of tokens at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder.attention import attention, eager_attention
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes import adaptive, fire, path
from kerple_eval.types import UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case
from tests.helpers.one_layer import DIM, HEADS, KEYS, drawn, made, weights

Array = oracles.Array


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.01 * x)


def log_kernel(w: dict[str, Array], h: int, d: int) -> float:
    return float(-w["r1"][h] * math.log(1 + w["r2"][h] * d))


#: A row of logits [H, i + 1] from the parameters, q_i [H, d], k [H, K, d], x [K, W] and i.
Row = Callable[[dict[str, Array], Array, Array, Array, int], Array]


def plain(q: Array, k: Array, i: int) -> Array:
    return np.array([[float(q[h] @ k[h, j]) / math.sqrt(DIM) for j in range(i + 1)] for h in range(HEADS)])


def fire_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    def psi(z: float) -> float:
        return math.log(abs(float(w["c"])) * z + 1)

    row = plain(q, k, i)
    reach = max(abs(float(w["multiplier"]) * 8), i)
    for j in range(i + 1):
        relative = psi(i - j) / (psi(reach) + 1e-6)
        hidden = np.maximum(w["into.weight"][:, 0] * relative + w["into.bias"], 0)
        row[:, j] += w["out.weight"] @ hidden + w["out.bias"]
    return row


def dape_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    row = plain(q, k, i)
    out = np.empty_like(row)
    for j in range(i + 1):
        bias = np.array([log_kernel(w, h, i - j) for h in range(HEADS)])
        both = np.concatenate([row[:, j], bias])
        hidden = leaky(w["into.weight"] @ both + w["into.bias"])
        out[:, j] = row[:, j] + bias + w["out.weight"] @ hidden + w["out.bias"]
    return out


def dape_v2_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    """A row of a window that goes on: keys after i hold zeros, hidden units there their bias."""
    row = plain(q, k, i)
    bias = np.array([[log_kernel(w, h, i - j) for j in range(i + 1)] for h in range(HEADS)])
    both = np.concatenate([row, bias])  # [2 H, i + 1]
    inner, outer = w["into.weight"][:, :, 0], w["out.weight"][:, :, 0]
    side = inner.shape[2] // 2

    def at(values: Array, j: int) -> Array:
        return values[:, j] if 0 <= j < values.shape[1] else np.zeros(len(values))

    columns = range(-side, side + 1)
    hidden = np.stack(
        [
            leaky(w["into.bias"] + sum(inner[:, :, s + side] @ at(both, j + s) for s in columns))
            for j in range(i + 1 + side)
        ],
        axis=1,
    )
    extra = [
        w["out.bias"] + sum(outer[:, :, s + side] @ at(hidden, j + s) for s in columns) for j in range(i + 1)
    ]
    return row + bias + np.stack(extra, axis=1)


def cope_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    row = plain(q, k, i)
    table = w["table"]
    out = row.copy()
    for h in range(HEADS):
        for j in range(i + 1):
            place = min(sum(sigmoid(row[h, m]) for m in range(j, i + 1)), table.shape[1] - 1)
            low, high = math.floor(place), math.ceil(place)
            z_low, z_high = (float(q[h] @ table[:, p]) for p in (low, high))
            out[h, j] += ((place - low) * z_high + (1 - place + low) * z_low) / math.sqrt(DIM)
    return out


def fox_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    row = plain(q, k, i)
    for h in range(HEADS):
        for j in range(i + 1):
            gates = [
                sigmoid(float(w["gate.weight"][h] @ x[m] + w["gate.bias"][h])) for m in range(j + 1, i + 1)
            ]
            row[h, j] += sum(math.log(f) for f in gates)
    return row


def path_steps(w: dict[str, Array], x: Array) -> tuple[Array, Array]:
    """Unit directions [H, K, d] and strengths [H, K], token by token."""
    low = x @ w["down.weight"].T @ w["up.weight"].T
    columns = w["mix.weight"].shape[2]
    mixed = np.zeros_like(low)
    for n in range(len(x)):
        for c in range(columns):
            if n - columns + 1 + c >= 0:
                mixed[n] += w["mix.weight"][:, 0, c] * low[n - columns + 1 + c]
    mixed = mixed / (1 + np.exp(-mixed))
    heads = mixed.reshape(len(x), HEADS, DIM).transpose(1, 0, 2)
    heads = heads / np.sqrt((heads**2).sum(-1, keepdims=True) + 1e-6)
    strengths = 2 / (1 + np.exp(-(x @ w["step.weight"].T + w["step.bias"])))
    return heads, strengths.T


def path_row(w: dict[str, Array], q: Array, k: Array, x: Array, i: int) -> Array:
    """The product of the steps by explicit d x d matrices."""
    directions, strengths = path_steps(w, x)
    row = np.empty((HEADS, i + 1))
    for h in range(HEADS):
        for j in range(i + 1):
            product = np.eye(DIM)
            for s in range(j + 1, i + 1):
                product = product @ (
                    np.eye(DIM) - strengths[h, s] * np.outer(directions[h, s], directions[h, s])
                )
            row[h, j] = k[h, j] @ product @ q[h] / math.sqrt(DIM)
    return row


CASES: dict[str, tuple[str, dict[str, Any], Row]] = {
    "fire": ("fire", {"units": 5}, fire_row),
    "dape": ("dape", {"units": 5}, dape_row),
    "dape-v2": ("dape-v2", {"units": 5}, dape_v2_row),
    "dape-v2 of 5 columns": ("dape-v2", {"units": 3, "columns": 5}, dape_v2_row),
    "dape-v2 of 1": ("dape-v2", {"units": 5, "columns": 1}, dape_v2_row),
    "cope": ("cope", {}, cope_row),
    "cope that runs out of positions": ("cope", {"positions": 4}, cope_row),
    "fox": ("fox", {}, fox_row),
    "path": ("path", {"units": 5}, path_row),
    "path of 1 column": ("path", {"units": 5, "columns": 1}, path_row),
}


@pytest.fixture(params=["small", "whole"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "small":
        monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", 2 * HEADS * KEYS * 4)
        monkeypatch.setattr(fire, "ELEMENTS", 5 * KEYS * 2)
        monkeypatch.setattr(adaptive, "ELEMENTS", 2 * KEYS * 6 * 3)
        monkeypatch.setattr(path, "BLOCK", 4)
    return str(request.param)


@pytest.mark.usefixtures("chunks")
@each_case("queries", [KEYS, 6, 1])
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_the_formula(case: str, queries: int) -> None:
    name, options, row_of = CASES[case]
    scheme = made(name, **options)
    w = weights(scheme)
    batch = [drawn(queries, seed) for seed in (3, 4)]
    expected = []
    for q, k, v, x in batch:
        rows = [row_of(w, q[:, r], k, x, KEYS - queries + r) for r in range(queries)]
        expected.append(
            oracles.attend(q, k, v, lambda h, i, j, _, rows=rows: float(rows[i - KEYS + queries][h, j]))
        )
    q, k, v, x = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
    with torch.no_grad():
        observed = scheme.observe(x)
        out = attention(q, k, v, scheme, None, observed)
        eager = eager_attention(q, k, v, scheme, observed)
    np.testing.assert_allclose(out.numpy(), np.stack(expected), rtol=0, atol=1e-10)
    np.testing.assert_allclose(eager.numpy(), np.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("static", ["alibi", "none"])
def test_other_static_biases(static: str) -> None:
    scheme = made("dape", static=static, units=5)
    w = weights(scheme)
    assert not {"r1", "r2"} & set(w)
    q, k, v, _ = drawn(KEYS)
    rows = []
    for i in range(KEYS):
        row = plain(q[:, i], k, i)
        out = np.empty_like(row)
        for j in range(i + 1):
            m = oracles.alibi_slopes(HEADS) if static == "alibi" else [0.0] * HEADS
            bias = np.array([-m[h] * (i - j) for h in range(HEADS)])
            hidden = leaky(w["into.weight"] @ np.concatenate([row[:, j], bias]) + w["into.bias"])
            out[:, j] = row[:, j] + bias + w["out.weight"] @ hidden + w["out.bias"]
        rows.append(out)
    expected = oracles.attend(q, k, v, lambda h, i, j, _: float(rows[i][h, j]))
    tensors = (torch.from_numpy(a)[None] for a in (q, k, v))
    with torch.no_grad():
        found = attention(*tensors, scheme, None)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-10)


CONTENT = ("dape-v2", "path", "fox", "cope", "fire", "dape")


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("name", CONTENT)
def test_gradients_are_the_same_in_chunks(name: str, anew: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the backward pass finds a chunk's scores or forms them anew."""
    scheme = made(name)
    q, k, v, x = (torch.from_numpy(part)[None].requires_grad_() for part in drawn(KEYS))

    def gradients() -> list[Tensor]:
        out = attention(q, k, v, scheme, None, scheme.observe(x))
        inputs = [q, k, v, x, *scheme.parameters()]
        return [
            g if g is not None else torch.zeros(1)
            for g in torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        ]

    whole = gradients()
    monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", HEADS * KEYS * 4)
    if anew:
        monkeypatch.setattr(module, "RECOMPUTE_ELEMENTS", HEADS * KEYS * 2)
    monkeypatch.setattr(fire, "ELEMENTS", 32 * KEYS * 2)
    monkeypatch.setattr(adaptive, "ELEMENTS", KEYS * 32 * 3)
    monkeypatch.setattr(path, "BLOCK", 4)
    for a, b in zip(gradients(), whole, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CONTENT)
def test_training_keeps_no_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound a layer leaves less than one score matrix behind, below it more."""
    length = 96
    config = tiny.config(name, layers=1)
    scheme = scheme_of(config).at(0).float()
    rng = torch.Generator().manual_seed(0)
    scheme.reset_parameters(rng)
    q, k, v = (torch.randn(1, HEADS, length, DIM, generator=rng).requires_grad_() for _ in range(3))
    x = torch.randn(1, length, HEADS * DIM, generator=rng)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    found = []
    for bound in (length * length, HEADS * length * length):
        monkeypatch.setattr(module, "RECOMPUTE_ELEMENTS", bound)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = attention(q, k, v, scheme, None, scheme.observe(x))
            found.append(sum(kept.values()))
        out.sum().backward()
    assert found[0] < HEADS * length * length < found[1]


def test_fox_starts_where_its_time_constants_say() -> None:
    scheme = scheme_of(tiny.config("fox", heads=3, scheme_options={"slowest": 100.0}))
    scheme.reset_parameters(torch.Generator().manual_seed(0))
    bias = scheme.at(0).get_parameter("gate.bias").detach().double()
    for b, tau in zip(bias.tolist(), (1.0, 10.0, 100.0), strict=True):
        assert sigmoid(b) == pytest.approx(math.exp(-1 / tau), rel=1e-6)
    plain_one = scheme_of(tiny.config("fox"))
    plain_one.reset_parameters(torch.Generator().manual_seed(0))
    assert float(plain_one.at(1).get_parameter("gate.bias").detach().abs().max()) == 0


def test_layers_have_their_own_values() -> None:
    scheme = scheme_of(tiny.config("dape"))
    scheme.reset_parameters(torch.Generator().manual_seed(0))
    first, second = (dict(scheme.at(n).named_parameters()) for n in (0, 1))
    assert all(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fire", {"units": 0}, "must be at least 1"),
        ("dape", {"static": "aliby"}, "unknown static bias of dape 'aliby': did you mean 'alibi'"),
        ("dape", {"units": 0}, "dape: units=0 must be at least 1"),
        ("dape-v2", {"columns": 2}, "columns=2 must be odd"),
        ("cope", {"positions": 1}, "positions=1 must be at least 2"),
        ("fox", {"slowest": 0.5}, "slowest=0.5 must be at least 1 token"),
        ("path", {"columns": 0}, "must be at least 1"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name, **options)


def test_cope_passes_on_what_is_no_number() -> None:
    """A score that overflowed is no position to look up (on CUDA such an index ends the process)."""
    scheme = scheme_of(tiny.config("cope")).at(0).double()
    scores, q = torch.zeros(1, 3, 4, 4, dtype=torch.float64), torch.ones(1, 3, 4, 4, dtype=torch.float64)
    scores[0, 1, 2, 1] = math.nan
    out = scheme.score(scores, q, q, torch.arange(4), torch.arange(4))
    assert bool(out[0, 1, 2, :2].isnan().all())
    assert bool(out[0, [0, 2]].isfinite().all())
