"""kerple-3-para-log against ``-r1 log(1 + r2 D^r3)`` in float64, its initial values and constraints."""

from __future__ import annotations

import math

import pytest
import torch

from kerple_eval.schemes.kernels import is_cpd
from kerple_eval.schemes.kerple_3_para_log import Kerple3ParaLog
from kerple_eval.schemes.kerple_log import KerpleLog
from kerple_eval.types import Geometry

VALUES = ([0.01, 0.5, 2.0, 7.25], [0.01, 1.0, 0.125, 33.0], [0.01, 2.0, 1.0, 1.3])


def scheme(*rows: list[float], dtype: torch.dtype = torch.float32) -> Kerple3ParaLog:
    heads = len(rows[0])
    made = Kerple3ParaLog(Geometry(heads=heads, head_dim=4, width=4 * heads, layers=2, train_length=8))
    with torch.no_grad():
        for parameter, row in zip((made.r1, made.r2, made.r3), rows, strict=True):
            parameter.copy_(torch.tensor(row))
    return made.to(dtype)


def by_hand(made: Kerple3ParaLog, h: int, d: int) -> float:
    a, b, p = (float(x[h].detach()) for x in (made.r1, made.r2, made.r3))
    return -a * math.log1p(b * (d**p if d else 0.0))


def test_formula_in_float64() -> None:
    made = scheme(*VALUES, dtype=torch.float64)
    kernel = made.kernel(torch.arange(64, dtype=torch.float64)).detach()
    assert kernel.shape == (4, 64)
    for h in range(4):
        for d in range(64):
            assert float(kernel[h, d]) == pytest.approx(by_hand(made, h, d), rel=1e-13)


def test_float32_distances_to_16k() -> None:
    made = scheme(*VALUES)
    kernel = made.kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    for h in range(4):
        expected = torch.tensor([by_hand(made, h, d) for d in range(16384)], dtype=torch.float64)
        torch.testing.assert_close(kernel[h].double(), expected, rtol=1e-6, atol=0)


def test_exponent_one_is_kerple_log() -> None:
    made = scheme([0.5, 2.0], [0.3, 1.0], [1.0, 1.0])
    plain = KerpleLog(made.geometry)
    with torch.no_grad():
        plain.r1.copy_(made.r1)
        plain.r2.copy_(made.r2)
    d = torch.arange(1000, dtype=torch.float32)
    assert torch.equal(made.kernel(d), plain.kernel(d))


def test_every_head_is_cpd_on_uneven_points() -> None:
    made = scheme(*VALUES, dtype=torch.float64)
    points = torch.tensor([0.0, 0.25, 1.0, 1.5, 4.0, 9.0, 17.0, 40.0])
    for h in range(4):
        assert is_cpd(
            lambda d, h=h: made.kernel(d.flatten()).detach()[h].reshape(d.shape),  # type: ignore[misc]
            points=points,
        )


def test_initial_values_follow_the_release() -> None:
    made = Kerple3ParaLog(Geometry(heads=20000, head_dim=1, width=20000, layers=1, train_length=8))
    made.reset_parameters(torch.Generator().manual_seed(0))
    for parameter, top in ((made.r1, 2.0), (made.r2, 1.0), (made.r3, 2.0)):
        values = parameter.detach()
        assert 0 <= float(values.min()) < 0.001 * top
        assert 0.999 * top < float(values.max()) <= top
        assert float(values.mean()) == pytest.approx(top / 2, abs=0.02)


def test_projection_moves_what_is_outside_and_counts_it() -> None:
    made = scheme([-3.0, 0.02, 9.0], [0.001, 0.5, 1e4], [0.0, 2.5, 2.0])
    assert made.project_() == {"r1": 1, "r2": 1, "r3": 2}
    torch.testing.assert_close(made.r3.detach(), torch.tensor([0.01, 2.0, 2.0]))


def test_gradients_are_finite_at_distance_zero() -> None:
    """d/dr2 = -r1 D^r3 / (1 + r2 D^r3), d/dr3 = -r1 r2 D^r3 log D / (1 + r2 D^r3); 0 at D = 0."""
    for d in (0.0, 1.0, 5.0):
        made = scheme([0.7], [0.3], [1.2], dtype=torch.float64)
        made.kernel(torch.tensor([d], dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
        a, b, p = (x.item() for x in (made.r1, made.r2, made.r3))
        power = d**p if d else 0.0
        expected = (
            -math.log1p(b * power),
            -a * power / (1 + b * power),
            -a * b * power * math.log(d or 1.0) / (1 + b * power),
        )
        for parameter, value in zip((made.r1, made.r2, made.r3), expected, strict=True):
            assert parameter.grad is not None
            assert parameter.grad.item() == pytest.approx(value, rel=1e-12, abs=1e-15)
