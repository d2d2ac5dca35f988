"""Sinusoidal positions against explicit sines and cosines in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.sinusoidal import Sinusoidal
from kerple_eval.types import Geometry, UserError
from tests.helpers import oracles, tiny


def sinusoidal(width: int) -> Sinusoidal:
    return Sinusoidal(Geometry(heads=2, head_dim=width // 2, width=width, layers=2, train_length=8))


@pytest.mark.parametrize("width", [2, 6, 16])
def test_every_position_and_component(width: int) -> None:
    x = torch.randn(2, 40, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = sinusoidal(width).embed(x, torch.arange(40))
    for b in range(2):
        for i in range(40):
            expected = x[b, i].numpy() + oracles.sinusoid(i, width)
            np.testing.assert_allclose(got[b, i].numpy(), expected, rtol=0, atol=1e-13)


def test_layout_is_all_sines_then_all_cosines() -> None:
    """Width 4: theta = (1, 1/100), so position 1 is (sin 1, sin .01, cos 1, cos .01)."""
    got = sinusoidal(4).embed(torch.zeros(1, 1, 4, dtype=torch.float64), torch.tensor([1]))
    expected = [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    assert got[0, 0].tolist() == pytest.approx(expected, abs=1e-15)


def test_float32_angles_hold_at_16k() -> None:
    positions = torch.arange(16320, 16384)
    got = sinusoidal(16).embed(torch.zeros(1, 64, 16), positions)
    assert got.dtype == torch.float32
    for n, position in enumerate(positions.tolist()):
        expected = oracles.sinusoid(position, 16)
        np.testing.assert_allclose(got[0, n].numpy(), expected, rtol=0, atol=1e-7)


def test_an_odd_width_and_options_are_refused() -> None:
    with pytest.raises(UserError, match="hidden size 9 is odd"):
        scheme_of(tiny.config("sinusoidal", width=9, heads=3))
    with pytest.raises(UserError, match="unknown option of sinusoidal 'base'"):
        scheme_of(tiny.config("sinusoidal", scheme_options={"base": 100}))
