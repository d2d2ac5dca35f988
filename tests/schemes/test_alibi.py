"""ALiBi: slopes of the authors' rule, pinned, and ``-m D``."""

from __future__ import annotations

import pytest
import torch

from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.alibi import Alibi, slopes
from kerple_eval.types import Geometry, UserError
from tests.helpers import oracles, tiny

# Press et al., Section 3 (8 heads: 1/2, 1/4, ... 1/256; 16 heads: sqrt of these between) and the
# authors' get_slopes for the others: the slopes of the largest power of two below, then every
# other slope of twice that power.
PINNED = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    3: [2**-4, 2**-8, 2**-2],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    12: [
        0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
        0.707107, 0.353553, 0.176777, 0.088388,
    ],
    16: [2 ** (-h / 2) for h in range(1, 17)],
}  # fmt: skip


def alibi(heads: int) -> Alibi:
    return Alibi(Geometry(heads=heads, head_dim=4, width=4 * heads, layers=2, train_length=8))


@pytest.mark.parametrize("heads", PINNED)
def test_pinned_slopes(heads: int) -> None:
    assert slopes(heads) == pytest.approx(PINNED[heads], rel=1e-5)


def test_slopes_for_any_number_of_heads() -> None:
    for heads in range(1, 130):
        assert slopes(heads) == pytest.approx(oracles.alibi_slopes(heads), rel=1e-12)


@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_formula_at_every_pair(heads: int) -> None:
    kernel = alibi(heads).kernel(torch.arange(48, dtype=torch.float64))
    assert kernel.shape == (heads, 48)
    for h, slope in enumerate(oracles.alibi_slopes(heads)):
        for i in range(48):
            for j in range(i + 1):
                assert float(kernel[h, i - j]) == pytest.approx(-slope * (i - j), rel=1e-13)


def test_float32_distances_to_16k_never_collide() -> None:
    kernel = alibi(12).kernel(torch.arange(16384, dtype=torch.float32))
    assert kernel.dtype == torch.float32
    for h, slope in enumerate(oracles.alibi_slopes(12)):
        expected = torch.tensor([-slope * d for d in range(16384)], dtype=torch.float64)
        torch.testing.assert_close(kernel[h].double(), expected, rtol=2e-7, atol=0)
    assert bool((kernel.diff(dim=1) < 0).all())


def test_slopes_are_fixed() -> None:
    made = alibi(8)
    assert list(made.parameters()) == []
    assert made.project_() == {}


def test_options_are_refused() -> None:
    with pytest.raises(UserError, match="unknown option of alibi 'slope'"):
        scheme_of(tiny.config("alibi", scheme_options={"slope": 1}))
