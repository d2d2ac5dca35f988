"""Reductions against exact rational arithmetic and naive loops."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from kerple_eval.records import reductions
from kerple_eval.types import Window


def exact(losses: list[np.ndarray]) -> Fraction:
    return sum((Fraction(float(x)) for window in losses for x in window), Fraction(0))


def test_total_is_exact_where_float32_sums_are_far_off() -> None:
    draw = np.random.default_rng(0)
    losses = [draw.exponential(3, 1000).astype(np.float32) for _ in range(400)]
    truth = exact(losses)
    assert abs(Fraction(reductions.total_loss(losses)) - truth) / truth < Fraction(1, 10**14)
    naive = np.float32(0)
    for window in losses:
        for x in window[::20]:
            naive += x
    thinned = [window[::20] for window in losses]
    assert abs(Fraction(float(naive)) - exact(thinned)) / exact(thinned) > Fraction(1, 10**9)


def test_sums_across_windows_are_rounded_once() -> None:
    losses = [np.array([x], dtype=np.float32) for x in (2.0**60, 1.0, 1.0, -(2.0**60))]
    assert reductions.total_loss(losses) == 2.0
    assert reductions.mean_loss(losses) == 0.5


def test_mean_weighs_targets_not_windows() -> None:
    losses = [np.full(99, 1.0, np.float32), np.full(1, 101.0, np.float32)]
    assert reductions.mean_loss(losses) == 2.0


def test_perplexity_and_bits_per_byte() -> None:
    losses = [np.full(10, math.log(2), np.float32)]
    assert reductions.perplexity(0.0) == 1.0
    assert reductions.perplexity(math.log(50)) == pytest.approx(50, rel=1e-15)
    assert reductions.perplexity(709.0) is not None
    assert reductions.perplexity(710.0) is None
    assert reductions.bits_per_byte(losses, 5) == pytest.approx(2.0, rel=1e-7)
    assert reductions.bits_per_byte(losses, None) is None
    assert reductions.bits_per_byte(losses, 0) is None


def test_contexts() -> None:
    windows = [Window(0, 3, 1), Window(3, 6, 5), Window(2, 5, 5)]
    assert reductions.contexts(windows).tolist() == [1, 2, 3, 2, 3, 3]
