"""The published simulations in small, with another seed: coverage, false positives, the stopping rule."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from kerple_eval.stats.intervals import COVERAGE
from kerple_eval.stats.reach import ERRORS
from tests.simulations.reach import EDGE_CASES, holds_to, uses
from tests.simulations.statistics import coverage, crossed_coverage, false_positives, stopping
from tests.simulations.worlds import EVEN, UNEVEN, World

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parents[2] / "results" / "statistics"
REPEATS = 3000


def percents(rows: list[dict[str, object]]) -> list[float]:
    return [float(str(row["percent"])) for row in rows]


def noise(percent: float, repeats: int) -> float:
    """Four standard errors of a share in percent: one in 16,000 lies outside."""
    share = min(max(percent / 100, 0.01), 0.99)
    return 400 * float(np.sqrt(share * (1 - share) / repeats))


def test_intervals_cover_from_fifty_documents_on() -> None:
    rng = np.random.default_rng(20261125)
    for percent in percents(coverage(rng, EVEN, (50, 200), REPEATS, "delta")):
        assert 93 - noise(93, REPEATS) / 2 < percent < 97
    hard = World(1.0, True, 0.3)
    others = [world for world in UNEVEN if world != hard]
    assert min(percents(coverage(rng, others, (50,), REPEATS, "delta"))) > 93 - noise(93, REPEATS) / 2


def test_below_they_cover_what_they_say() -> None:
    rng = np.random.default_rng(20261126)
    for n in (5, 10, 20):
        for worlds, (low, high) in zip((EVEN, EVEN + UNEVEN), COVERAGE[n], strict=True):
            found = percents(coverage(rng, worlds, (n,), REPEATS, "delta"))
            assert low - noise(low, REPEATS) < min(found)
            assert max(found) < high + noise(high, REPEATS)


def test_published_figures_come_again() -> None:
    rng = np.random.default_rng(20261127)
    with (RESULTS / "coverage.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == "delta-plain" and r["n"] == "10"]
    again = coverage(rng, [*EVEN, *UNEVEN], (10,), REPEATS, "delta-plain")
    for row, found in zip(rows, percents(again), strict=True):
        assert found == pytest.approx(float(row["percent"]), abs=noise(float(row["percent"]), REPEATS))


def test_pooled_intervals_cover() -> None:
    rows = crossed_coverage(np.random.default_rng(20261128), 1000)
    assert min(percents(rows)) > 90 - noise(90, 1000) / 2  # published: 91.7


def test_false_positives_are_nominal() -> None:
    repeats = 600
    for row in false_positives(np.random.default_rng(20261129), repeats):
        if "uncorrected" in str(row["test"]):
            assert float(str(row["percent"])) > 10
        elif "interval" not in str(row["test"]) and "skewed" not in str(row["world"]):
            assert float(str(row["percent"])) < 5.5 + noise(5, int(str(row["repeats"])))


def test_the_interval_at_the_stop_covers() -> None:
    rows = stopping(np.random.default_rng(20261130), EVEN, 160, 500)
    by_rule = {
        rule: [float(str(r["percent"])) for r in rows if r["rule"] == rule]
        for rule in ("corrected", "uncorrected")
    }
    assert min(by_rule["corrected"]) > 95 - noise(95, 500)
    assert np.mean(by_rule["corrected"]) > 95
    assert np.mean(by_rule["uncorrected"]) < np.mean(by_rule["corrected"]) - 1


@pytest.mark.parametrize("n", [5, 20, 100])
def test_reach_goes_too_far_at_its_nominal_rate(n: int) -> None:
    """At the edge: nominal where differences are symmetric, else within what is published."""
    rng = np.random.default_rng(20261201 + n)
    for world in (World(0.0, False), World(0.5, False), World(0.0, True), World(1.0, True)):
        rows = [holds_to(rng, world, n, EDGE_CASES[0], 600)[0], uses(rng, world, n, EDGE_CASES[1], 600)[0]]
        most = ERRORS[n][1] if world.skewed else 5.0
        assert max(percents_wrong(rows)) < most + noise(most, 600)


def percents_wrong(rows: list[dict[str, object]]) -> list[float]:
    return [float(str(row["wrong"])) for row in rows]
