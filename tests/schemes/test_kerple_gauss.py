"""KERPLE's Gaussian-like biases against ``r1 exp(-r2 D^p)`` in float64, initial values, constraints."""

from __future__ import annotations

import math

import pytest
import torch

from kerple_eval.schemes.kernels import is_pd
from kerple_eval.schemes.kerple_gauss_2_para_bias import KerpleGauss2ParaBias
from kerple_eval.schemes.kerple_gauss_3_para_bias import KerpleGauss3ParaBias
from kerple_eval.types import Geometry

Gauss = KerpleGauss2ParaBias | KerpleGauss3ParaBias
CLASSES = (KerpleGauss2ParaBias, KerpleGauss3ParaBias)
every_class = pytest.mark.parametrize("cls", CLASSES)
VALUES = {"r1": [0.01, 0.5, 1.0, 7.25], "r2": [0.01, 1.0, 0.125, 33.0], "r3": [0.01, 2.0, 1.0, 0.3]}


def scheme(cls: type[Gauss], heads: int = 4, dtype: torch.dtype = torch.float32) -> Gauss:
    made = cls(Geometry(heads=heads, head_dim=4, width=4 * heads, layers=2, train_length=8))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if heads == 4:
                parameter.copy_(torch.tensor(VALUES[name]))
    return made.to(dtype)


def by_hand(made: Gauss, h: int, d: int) -> float:
    stored = {name: float(p[h].detach()) for name, p in made.named_parameters()}
    power = d ** stored.get("r3", 2.0) if d else 0.0
    return stored["r1"] * math.exp(-stored["r2"] * power)


@every_class
def test_formula_in_float64(cls: type[Gauss]) -> None:
    made = scheme(cls, dtype=torch.float64)
    assert len(list(made.parameters())) == (2 if cls is KerpleGauss2ParaBias else 3)
    kernel = made.kernel(torch.arange(64, dtype=torch.float64)).detach()
    assert kernel.shape == (4, 64)
    for h in range(4):
        assert float(kernel[h, 0]) == float(made.r1[h].detach())
        for d in range(64):
            assert float(kernel[h, d]) == pytest.approx(by_hand(made, h, d), rel=1e-12, abs=1e-300)


@every_class
def test_float32_distances_to_16k(cls: type[Gauss]) -> None:
    """exp(-x) carries x's rounding, 1e-7 of x, where it is not negligible itself."""
    made = scheme(cls)
    kernel = made.kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    for h in range(4):
        expected = torch.tensor([by_hand(made, h, d) for d in range(16384)], dtype=torch.float64)
        torch.testing.assert_close(kernel[h].double(), expected, rtol=1e-5, atol=1e-12)


@every_class
def test_every_head_is_positive_definite_on_uneven_points(cls: type[Gauss]) -> None:
    made = scheme(cls, dtype=torch.float64)
    points = torch.tensor([0.0, 0.25, 1.0, 1.5, 4.0, 9.0, 17.0, 40.0])
    for h in range(4):
        assert is_pd(
            lambda d, h=h: made.kernel(d.flatten()).detach()[h].reshape(d.shape),  # type: ignore[misc]
            points=points,
        )


@every_class
def test_initial_values_and_projection(cls: type[Gauss]) -> None:
    made = scheme(cls, heads=20000)
    made.reset_parameters(torch.Generator().manual_seed(0))
    tops = {"r1": 1.0, "r2": 1.0, "r3": 2.0}
    for name, parameter in made.named_parameters():
        values = parameter.detach()
        assert 0 <= float(values.min()) < 0.001 * tops[name]
        assert 0.999 * tops[name] < float(values.max()) <= tops[name]
        assert float(values.mean()) == pytest.approx(tops[name] / 2, abs=0.02)
        with torch.no_grad():
            parameter.fill_(5.0)
            parameter[0] = -1.0
    moved = {"r1": 1, "r2": 1, "r3": 20000}
    assert made.project_() == {name: moved[name] for name, _ in made.named_parameters()}
    assert float(made.r1[0].detach()) == float(torch.tensor(0.01))
