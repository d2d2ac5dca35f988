"""kerple-power against ``-r1 D^r2`` in float64, its initial values and constraints."""

from __future__ import annotations

import math

import pytest
import torch

from kerple_eval.schemes.kerple_power import KerplePower
from kerple_eval.types import Geometry


def scheme(r1: list[float], r2: list[float], dtype: torch.dtype = torch.float32) -> KerplePower:
    made = KerplePower(Geometry(heads=len(r1), head_dim=4, width=4 * len(r1), layers=2, train_length=8))
    with torch.no_grad():
        made.r1.copy_(torch.tensor(r1))
        made.r2.copy_(torch.tensor(r2))
    return made.to(dtype)


def test_formula_at_every_pair_in_float64() -> None:
    made = scheme([0.01, 0.5, 1.0, 7.25], [0.01, 1.0, 2.0, 0.5], torch.float64)
    kernel = made.kernel(torch.arange(64, dtype=torch.float64)).detach()
    assert kernel.shape == (4, 64)
    assert kernel[:, 0].tolist() == [0.0] * 4
    for h in range(4):
        a, b = made.r1[h].item(), made.r2[h].item()
        for i in range(64):
            for j in range(i):
                expected = -a * math.exp(b * math.log(i - j))
                assert float(kernel[h, i - j]) == pytest.approx(expected, rel=1e-13)


def test_float32_distances_to_16k() -> None:
    made = scheme([0.01, 0.7, 2.0, 0.3], [0.01, 0.33, 2.0, 1.0])
    kernel = made.kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    for h in range(4):
        a, b = made.r1[h].item(), made.r2[h].item()
        expected = torch.tensor([-a * (d**b if d else 0.0) for d in range(16384)], dtype=torch.float64)
        torch.testing.assert_close(kernel[h].double(), expected, rtol=1e-6, atol=0)


def test_initial_values_fill_the_releases_ranges() -> None:
    """r1 ~ U(0, 1), r2 ~ U(0, 2): bounds, mean, and a quarter of the draws in each quarter."""
    made = KerplePower(Geometry(heads=40000, head_dim=1, width=40000, layers=1, train_length=8))
    made.reset_parameters(torch.Generator().manual_seed(0))
    for parameter, top in ((made.r1, 1.0), (made.r2, 2.0)):
        assert 0 <= parameter.min().item() < 0.001 * top
        assert 0.999 * top < parameter.max().item() <= top
        for quarter in range(4):
            inside = (parameter >= quarter * top / 4) & (parameter < (quarter + 1) * top / 4)
            assert float(inside.float().mean()) == pytest.approx(0.25, abs=0.015)


def test_projection_keeps_the_exponent_in_its_interval() -> None:
    """r1 >= 0.01; 0.01 <= r2 <= 2, the exponents for which -D^r2 is CPD."""
    made = scheme([-3.0, 0.0, 0.02, 900.0], [2.5, 0.001, -1.0, 2.0])
    assert made.project_() == {"r1": 2, "r2": 3}
    torch.testing.assert_close(made.r1.detach(), torch.tensor([0.01, 0.01, 0.02, 900.0]))
    torch.testing.assert_close(made.r2.detach(), torch.tensor([2.0, 0.01, 0.01, 2.0]))
    assert made.project_() == {}


def test_forward_never_clamps() -> None:
    made = scheme([0.001, -2.0], [3.0, 0.001])
    kernel = made.kernel(torch.tensor([0.0, 5.0, 100.0], dtype=torch.float64))
    for h, (a, b) in enumerate(zip(made.r1.tolist(), made.r2.tolist(), strict=True)):
        for n, d in enumerate((0, 5, 100)):
            expected = -a * d**b if d else 0.0
            assert float(kernel[h, n]) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert made.r2.tolist() == pytest.approx([3.0, 0.001])
