"""Tests against every permutation written out, SciPy from outside, and Holm as a closed test."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kerple_eval.stats.significance import dagger, effect_size, exact, holm, least_p, seed_test, sign_flip_p
from kerple_eval.types import UserError


@pytest.mark.parametrize("n", [5, 6, 9, 11])
def test_sign_flips_are_every_one_of_them(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    seen = abs(differences.sum())
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=n)]
    expected = sum(x >= seen - 1e-12 for x in sums) / 2**n
    assert sign_flip_p(differences) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_drawn_repeat_and_come_near() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 30)
    assert sign_flip_p(differences, seed=1) == sign_flip_p(differences, seed=1)
    normal = scipy_stats.norm.sf(abs(differences.sum()) / np.sqrt((differences**2).sum())) * 2
    assert sign_flip_p(differences, seed=1) == pytest.approx(normal, abs=0.015)
    assert sign_flip_p(np.full(30, 1.0)) == pytest.approx(2 / 10000)


def test_all_on_one_side_at_five_documents_is_a_sixteenth() -> None:
    assert sign_flip_p(np.arange(1.0, 6.0)) == 0.0625
    with pytest.raises(UserError, match="not enough documents: 4, and a test needs 5"):
        sign_flip_p(np.arange(1.0, 5.0))


def test_the_papers_test_over_five_seeds() -> None:
    base, log = [24.9, 25.6, 24.2, 25.0, 25.4], [23.9, 24.8, 23.4, 23.8, 24.3]
    found = seed_test(base, log)
    assert found is not None
    d = np.subtract(base, log)
    t = d.mean() / (d.std(ddof=1) / np.sqrt(5))
    assert found.t == pytest.approx(t, rel=1e-12)
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(t, 4), rel=1e-9)
    assert dagger(found)
    assert not dagger(seed_test(log, base))  # significantly better: no mark
    assert not dagger(seed_test([24.9, 23.6], [23.9, 24.8]))
    assert seed_test([24.0], [23.0]) is None
    assert not dagger(None)


def test_differences_without_spread() -> None:
    worse, same = seed_test([2.0, 3.0], [1.0, 2.0]), seed_test([2.0, 3.0], [2.0, 3.0])
    assert worse is not None
    assert same is not None
    assert (worse.p, same.p, same.t) == (0.0, 1.0, 0.0)
    with pytest.raises(UserError, match="same seeds"):
        seed_test([1.0], [1.0, 2.0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_holm_is_the_closed_test_of_bonferroni(count: int) -> None:
    """Adjusted p of i: the largest, over all sets of hypotheses with i in them, of size x smallest p."""
    rng = np.random.default_rng(count)
    for _ in range(50):
        p = rng.uniform(0, 0.4, count).round(2).tolist()  # with ties
        sets = [set(s) for r in range(1, count + 1) for s in combinations(range(count), r)]
        expected = [
            min(1.0, max(len(s) * min(p[j] for j in s) for s in sets if i in s)) for i in range(count)
        ]
        assert holm(p) == pytest.approx(expected, abs=1e-12)
    assert holm([]) == []


def test_effect_size_of_documents_of_one_size_is_cohens_d() -> None:
    d = np.random.default_rng(3).normal(0.5, 1, 12)
    assert effect_size(d * 40, np.full(12, 40)) == pytest.approx(d.mean() / d.std(ddof=1), rel=1e-12)
    assert effect_size(np.full(6, 10.0), np.full(6, 10)) is None


@pytest.mark.parametrize("n", [5, 8, 13, 14, 40, 70])
def test_the_least_p_is_that_of_differences_of_one_sign(n: int) -> None:
    assert sign_flip_p(np.ones(n)) == pytest.approx(least_p(n), rel=1e-12)
    assert exact(n) == (n <= 13)
