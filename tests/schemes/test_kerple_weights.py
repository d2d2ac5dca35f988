"""KERPLE's weight variants against ``exp(-a D^p)`` in float64, their initial values and constraints."""

from __future__ import annotations

import math

import pytest
import torch

from kerple_eval.schemes.kerple_bias_wht import KerpleBiasWeight
from kerple_eval.schemes.kerple_gauss_2_para_wht import KerpleGauss2ParaWeight
from kerple_eval.types import Geometry

VALUES = {"r1": [0.01, 0.5, 1.0, 7.25], "r2": [0.01, 1.0, 2.0, 0.5], "r3": [0.3, 2.0, 0.01, 0.05],
          "r4": [1.0, 0.2, 2.0, 0.7]}  # fmt: skip


def made(
    cls: type[KerpleGauss2ParaWeight] | type[KerpleBiasWeight], heads: int = 4
) -> KerpleGauss2ParaWeight | KerpleBiasWeight:
    scheme = cls(Geometry(heads=heads, head_dim=4, width=4 * heads, layers=2, train_length=8))
    if heads == 4:
        with torch.no_grad():
            for name, parameter in scheme.named_parameters():
                parameter.copy_(torch.tensor(VALUES[name]))
    return scheme


@pytest.mark.parametrize("cls", [KerpleGauss2ParaWeight, KerpleBiasWeight])
def test_formula_at_every_distance(cls: type[KerpleGauss2ParaWeight] | type[KerpleBiasWeight]) -> None:
    scheme = made(cls).double()
    d = torch.arange(64, dtype=torch.float64)
    weight, kernel = scheme.weight(d), scheme.kernel(d)
    a, p = ("r1", "r2") if cls is KerpleGauss2ParaWeight else ("r3", "r4")
    stored = {name: x.tolist() for name, x in scheme.named_parameters()}
    assert weight is not None
    assert (kernel is None) == (cls is KerpleGauss2ParaWeight)
    for h in range(4):
        for n in range(64):
            power = float(n) ** stored[p][h] if n else 0.0
            assert float(weight[h, n].detach()) == pytest.approx(math.exp(-stored[a][h] * power), rel=1e-12)
            if kernel is not None:
                bias = -stored["r1"][h] * float(n) ** stored["r2"][h] if n else 0.0
                assert float(kernel[h, n].detach()) == pytest.approx(bias, rel=1e-12, abs=0)


@pytest.mark.parametrize("cls", [KerpleGauss2ParaWeight, KerpleBiasWeight])
def test_float32_distances_to_16k(cls: type[KerpleGauss2ParaWeight] | type[KerpleBiasWeight]) -> None:
    """exp(-x) carries x's absolute error: x is good to 1e-7 of itself, so the weight to about 1e-6."""
    d = torch.arange(16384, dtype=torch.float32)
    narrow, wide = made(cls).weight(d), made(cls).double().weight(d.double())
    assert narrow is not None
    assert wide is not None
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("cls", [KerpleGauss2ParaWeight, KerpleBiasWeight])
def test_initial_values_and_projection(cls: type[KerpleGauss2ParaWeight] | type[KerpleBiasWeight]) -> None:
    scheme = made(cls, heads=20000)
    scheme.reset_parameters(torch.Generator().manual_seed(0))
    for name, parameter in scheme.named_parameters():
        top = 1.0 if name in ("r1", "r3") else 2.0
        assert 0 <= float(parameter.min()) < 0.001 * top
        assert 0.999 * top < float(parameter.max()) <= top
        assert float(parameter.mean()) == pytest.approx(top / 2, abs=0.02)
    with torch.no_grad():
        for _, parameter in scheme.named_parameters():
            parameter.fill_(5.0)
            parameter[0] = -1.0
    names = [name for name, _ in scheme.named_parameters()]
    assert scheme.project_() == {n: 1 if n in ("r1", "r3") else 20000 for n in names}
