"""kerple-log against ``-r1 log(1 + r2 D)`` in float64, its initial values and constraints."""

from __future__ import annotations

import math

import pytest
import torch

from kerple_eval.schemes.kerple_log import KerpleLog
from kerple_eval.types import Geometry


def scheme(r1: list[float], r2: list[float], dtype: torch.dtype = torch.float32) -> KerpleLog:
    made = KerpleLog(Geometry(heads=len(r1), head_dim=4, width=4 * len(r1), layers=2, train_length=8))
    with torch.no_grad():
        made.r1.copy_(torch.tensor(r1))
        made.r2.copy_(torch.tensor(r2))
    return made.to(dtype)


def test_formula_at_every_pair_in_float64() -> None:
    r1, r2 = [0.01, 0.5, 2.0, 7.25], [0.01, 1.0, 0.125, 33.0]
    made = scheme(r1, r2, torch.float64)
    kernel = made.kernel(torch.arange(64, dtype=torch.float64)).detach()
    assert kernel.shape == (4, 64)
    for h in range(4):
        a, b = made.r1[h].item(), made.r2[h].item()
        for i in range(64):
            for j in range(i + 1):
                assert float(kernel[h, i - j]) == pytest.approx(-a * math.log(1 + b * (i - j)), rel=1e-13)


def test_float32_distances_to_16k() -> None:
    """Distances above 256 collide in bfloat16; here each of 16384 is told apart as the formula does."""
    made = scheme([0.01, 0.7, 2.0], [0.01, 0.33, 1.0])
    kernel = made.kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    for h in range(3):
        a, b = made.r1[h].item(), made.r2[h].item()
        expected = torch.tensor([-a * math.log1p(b * d) for d in range(16384)], dtype=torch.float64)
        torch.testing.assert_close(kernel[h].double(), expected, rtol=5e-7, atol=0)


def test_initial_values_fill_the_releases_ranges() -> None:
    """r1 ~ U(0, 2), r2 ~ U(0, 1): bounds, mean, and a quarter of the draws in each quarter."""
    made = KerpleLog(Geometry(heads=40000, head_dim=1, width=40000, layers=1, train_length=8))
    made.reset_parameters(torch.Generator().manual_seed(0))
    for parameter, top in ((made.r1, 2.0), (made.r2, 1.0)):
        assert 0 <= parameter.min().item() < 0.001 * top
        assert 0.999 * top < parameter.max().item() <= top
        for quarter in range(4):
            inside = (parameter >= quarter * top / 4) & (parameter < (quarter + 1) * top / 4)
            assert float(inside.float().mean()) == pytest.approx(0.25, abs=0.015)
    correlation = torch.corrcoef(torch.stack([made.r1, made.r2]).detach())[0, 1]
    assert abs(float(correlation)) < 0.03


def test_initial_values_follow_the_generator() -> None:
    made = scheme([1.0] * 8, [1.0] * 8)
    draws = []
    for seed in (0, 0, 1):
        made.reset_parameters(torch.Generator().manual_seed(seed))
        draws.append(torch.cat([made.r1, made.r2]).detach().clone())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_projection_moves_what_is_outside_and_counts_it() -> None:
    made = scheme([-3.0, 0.0, 0.0099, 0.02, 9.0], [0.5, 0.001, 0.5, 0.5, 1e4])
    assert made.project_() == {"r1": 3, "r2": 1}
    torch.testing.assert_close(made.r1.detach(), torch.tensor([0.01, 0.01, 0.01, 0.02, 9.0]))
    torch.testing.assert_close(made.r2.detach(), torch.tensor([0.5, 0.01, 0.5, 0.5, 1e4]))
    assert made.project_() == {}


def test_forward_never_clamps() -> None:
    made = scheme([0.001, -2.0], [0.004, 0.5])
    kernel = made.kernel(torch.tensor([0.0, 5.0, 100.0], dtype=torch.float64))
    for h, (a, b) in enumerate(zip(made.r1.tolist(), made.r2.tolist(), strict=True)):
        for n, d in enumerate((0, 5, 100)):
            assert float(kernel[h, n]) == pytest.approx(-a * math.log(1 + b * d), rel=1e-12, abs=1e-15)
    assert made.r1.tolist() == pytest.approx([0.001, -2.0])
