"""Sandwich against its sum written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from tests.helpers import tiny


@pytest.mark.parametrize("dims", [2, 8, 128])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_the_kernel_is_the_sum(dims: int, heads: int) -> None:
    scheme = scheme_of(tiny.config("sandwich", heads=heads, width=4 * heads, scheme_options={"dims": dims}))
    distances = [0, 1, 2, 7, 100, 511, 16383]
    found = scheme.kernel(torch.tensor(distances, dtype=torch.float64))
    assert found is not None
    for h in range(heads):
        for n, d in enumerate(distances):
            waves = sum(math.cos(d / 10000 ** (2 * t / dims)) for t in range(1, dims // 2 + 1))
            expected = (waves - dims / 2) / ((h + 1) * 8 / heads)
            assert float(found[h, n]) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_array_equal(found[:, 0].numpy(), 0)


def test_it_is_the_inner_product_of_sinusoids() -> None:
    """What the paper sets out from: p_i p_j summed over pairs depends on i - j alone."""
    omega = [10000 ** (-2 * t / 8) for t in range(1, 5)]
    scheme = scheme_of(tiny.config("sandwich", scheme_options={"dims": 8}))
    kernel = scheme.kernel(torch.arange(40, dtype=torch.float64))
    assert kernel is not None
    for i, j in ((5, 5), (9, 2), (39, 0)):
        product = sum(math.sin(i * w) * math.sin(j * w) + math.cos(i * w) * math.cos(j * w) for w in omega)
        assert float(kernel[2, i - j]) == pytest.approx((product - 4) / 8, abs=1e-12)
