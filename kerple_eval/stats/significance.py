"""Tests of paired differences, and the correction for asking many of them.

SciPy's routines; Holm's step-down correction (Holm 1979) is not in SciPy.

One-sided, of a ratio of sums R against a bound: Student's t of the linearised ratio (:mod:`intervals`) and
the same with its skewness removed, the less sure of the two. With T = (R - bound) / se, contributions x_i
(residual x n / C) of sample skewness g, and Hall's transformation (1992, J. R. Statist. Soc. B 54, 221)

    h(y) = y + g/3 y^2 + g^2/27 y^3 + g/(6n),      p = P(t < T),   p' = P(t < sqrt(n) h(T / sqrt(n))).

Two-sided intervals hardly feel skewness, a one-sided bound does: of 20 documents whose differences have
skewness 1, t alone is wrong 7.6 times in 100 at 0.05, and the two together 5.7 (results/statistics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kerple_eval.stats.documents import Counts, Sums, effective_documents
from kerple_eval.stats.intervals import MINIMUM_DOCUMENTS, batch, linearised, not_enough
from kerple_eval.types import UserError

ALPHA = 0.05
FLIPS = 9999


@dataclass(frozen=True, slots=True)
class SeedTest:
    """Student's paired two-sided t-test over seeds; ``difference`` is the mean of first - second."""

    difference: float
    t: float
    p: float
    seeds: int


def seed_test(first: Sequence[float], second: Sequence[float]) -> SeedTest | None:
    """Paired t-test of values by seed (the KERPLE paper: perplexities); None below two seeds.

    Differences that are all equal have no spread to test against: p = 0 where they are not zero, as the
    limit has it, and p = 1 where they are.
    """
    if len(first) != len(second):
        raise UserError(f"a paired test needs the same seeds on both sides: {len(first)}, {len(second)}")
    if len(first) < 2:
        return None
    from scipy.stats import ttest_rel  # noqa: PLC0415

    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return SeedTest(mean, math.copysign(math.inf, mean) if mean else 0.0, float(mean == 0), len(first))
    result = ttest_rel(first, second)
    return SeedTest(mean, float(result.statistic), float(result.pvalue), len(first))


def dagger(test: SeedTest | None, alpha: float = ALPHA) -> bool:
    """Whether the first (a baseline) is significantly worse than the second (the reference)."""
    return test is not None and test.p < alpha and test.difference > 0


def sign_flip_p(differences: Sums, *, seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of the sum of paired differences by document when their signs are arbitrary.

    ``differences [n]``: summed loss of one model less the other's, by document (nats). Every one of the
    2^n signs where that is no more than ``flips``, so that p is exact; else drawn, with each side's p
    (hits + 1) / (flips + 1). Two-sided is twice the lesser side's, so that :func:`least_p` is the least.

    Raises:
        UserError: fewer than five documents: 2^-4 = 0.0625 is the least p that four could give.
    """
    if len(differences) < MINIMUM_DOCUMENTS:
        raise UserError(not_enough(len(differences), "a test"))
    from scipy.stats import permutation_test  # noqa: PLC0415

    def total(x: Sums, axis: int = -1) -> Sums:
        return np.asarray(x.sum(axis=axis))

    result = permutation_test(
        (differences,), total, permutation_type="samples", vectorized=True, n_resamples=flips,
        batch=batch(len(differences)), alternative="two-sided", rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.pvalue)


def least_p(documents: int, flips: int = FLIPS) -> float:
    """The least p that :func:`sign_flip_p` can give: 2 / 2^n where exact, 2 / (flips + 1) where drawn."""
    return 2 / (2**documents if exact(documents, flips) else flips + 1)


def exact(documents: int, flips: int = FLIPS) -> bool:
    """Whether :func:`sign_flip_p` goes through every sign of so many documents."""
    return documents < 60 and 2**documents <= flips


def below_p(sums: Sums, counts: Counts | Sums, bound: float) -> float:
    """One-sided p of ``sum(sums) / sum(counts) >= bound``: small where the ratio is shown to be below it.

    Ratios that do not vary at all are known: p is 0 or 1.
    """
    from scipy.special import stdtr  # noqa: PLC0415

    sizes = np.asarray(counts, dtype=np.float64)
    ratio, error = linearised(sums, sizes)
    if error == 0:
        return float(ratio >= bound)
    root, skewness = math.sqrt(len(sums)), _skewness(sums, sizes)
    y = (ratio - bound) / error / root
    straight = y + skewness / 3 * y**2 + skewness**2 / 27 * y**3 + skewness / (6 * root**2)
    return float(stdtr(effective_documents(sizes) - 1, root * max(y, straight)))


def upper_bound(sums: Sums, counts: Counts | Sums, alpha: float = ALPHA) -> float:
    """The least bound that ``below_p`` is no more than ``alpha`` for."""
    from scipy.special import stdtrit  # noqa: PLC0415

    sizes = np.asarray(counts, dtype=np.float64)
    ratio, error = linearised(sums, sizes)
    root, skewness = math.sqrt(len(sums)), _skewness(sums, sizes)
    y = float(stdtrit(effective_documents(sizes) - 1, alpha)) / root
    # h(y) = ((1 + g y / 3)^3 - 1) / g + g/(6n), turned round
    straight = y - skewness / (6 * root**2)
    if skewness:
        change = skewness * straight
        exact = math.expm1(math.log1p(change) / 3) if change > -0.5 else float(np.cbrt(1 + change)) - 1
        straight = 3 / skewness * exact
    return ratio - root * error * min(y, straight)


def _skewness(sums: Sums, sizes: Sums) -> float:
    """Of the documents' contributions to the ratio (adjusted Fisher-Pearson); 0 where they do not vary."""
    n = len(sums)
    residuals = sums - float(sums.sum() / sizes.sum()) * sizes
    deviation = math.sqrt(float((residuals**2).sum()) / (n - 1))
    if deviation == 0:
        return 0.0
    return float(((residuals / deviation) ** 3).sum()) * n / ((n - 1) * (n - 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: reject those at or below alpha, and the chance of one false rejection
    among all stays below alpha whatever the tests have to do with each other."""
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def effect_size(differences: Sums, counts: Counts | Sums) -> float | None:
    """Cohen's d of paired differences: mean over standard deviation of the documents' contributions.

    Contributions are linearised, as in the interval: d_i + D (1 - n c_i / C) with d_i the document's
    difference over the mean count, so that documents weigh by their targets. None without spread.
    """
    n, total = len(differences), float(counts.sum())
    ratio = float(differences.sum()) / total
    residuals = (differences - ratio * counts) * (n / total)
    deviation = math.sqrt(float((residuals**2).sum()) / (n - 1))
    return ratio / deviation if deviation else None
