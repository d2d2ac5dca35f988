"""Seeds and text: the variance components against a two-way analysis of variance written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kerple_eval.stats.intervals import ratio_interval
from kerple_eval.stats.seeds import crossed, spread
from kerple_eval.types import UserError


def test_mean_and_deviation_over_seeds() -> None:
    found = spread([24.0, 25.0, 23.0])
    assert (found.mean, found.std, found.seeds) == (24.0, 1.0, 3)
    assert spread([24.0]).std is None
    with pytest.raises(UserError, match="needs a seed"):
        spread([])


def test_components_are_those_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    s, n, size = 4, 9, 50
    means = 2 + rng.standard_normal((s, 1)) + 0.5 * rng.standard_normal(n) + 0.2 * rng.standard_normal((s, n))
    found = crossed(means * size, np.full(n, size))
    row, column, grand = means.mean(axis=1), means.mean(axis=0), means.mean()
    a = n * ((row - grand) ** 2).sum() / (s - 1)
    b = s * ((column - grand) ** 2).sum() / (n - 1)
    ab = ((means - row[:, None] - column + grand) ** 2).sum() / ((s - 1) * (n - 1))
    assert found.interval.estimate == pytest.approx(grand, rel=1e-12)
    assert (found.seed, found.document, found.rest) == pytest.approx(
        ((a - ab) / n, (b - ab) / s, ab), rel=1e-9
    )
    variance = (a + b - ab) / (s * n)
    freedom = (a + b - ab) ** 2 / (a**2 / (s - 1) + b**2 / (n - 1) + ab**2 / ((s - 1) * (n - 1)))
    assert found.interval.error == pytest.approx(variance**0.5, rel=1e-9)
    assert found.interval.freedom == pytest.approx(freedom, rel=1e-9)
    reach = scipy_stats.t.ppf(0.975, freedom) * variance**0.5
    assert found.interval.half_width == pytest.approx(reach, rel=1e-9)
    assert found.seed_share == pytest.approx(found.seed / s / variance, rel=1e-9)


def test_seeds_that_do_not_differ_leave_the_interval_over_documents() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(10, 200, 12)
    sums = counts * (2 + 0.3 * rng.standard_normal(12))
    found = crossed(np.stack([sums] * 3), counts)
    alone = ratio_interval(sums, counts)
    assert (found.interval.low, found.interval.high) == pytest.approx((alone.low, alone.high), rel=1e-9)
    assert found.seed_share == 0


def test_documents_that_do_not_differ_leave_the_interval_over_seeds() -> None:
    counts = np.array([10, 200, 30, 40, 50])
    levels = np.array([2.0, 2.3, 1.9, 2.4])
    found = crossed(levels[:, None] * counts, counts)
    expected = scipy_stats.ttest_1samp(levels, 0).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.seed == pytest.approx(levels.var(ddof=1), rel=1e-9)
    assert found.seed_share == pytest.approx(1)


def test_a_component_below_zero_is_reported_and_counts_as_none() -> None:
    rest = np.array([[1.0, -1.0, 0.5, -0.5, 0.0], [-1.0, 1.0, -0.5, 0.5, 0.0]])  # rows and columns sum to 0
    found = crossed((2 + rest) * 10, np.full(5, 10))
    assert found.seed < 0
    assert found.document < 0
    assert found.interval.error == pytest.approx((found.rest / 10) ** 0.5, rel=1e-9)
    assert found.interval.freedom == pytest.approx(4)


def test_one_seed_or_one_document_is_refused() -> None:
    for shape in ((1, 6), (3, 1)):
        with pytest.raises(UserError, match="cannot be told apart"):
            crossed(np.ones(shape), np.ones(shape[1]))
