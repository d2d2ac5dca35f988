"""Intervals against closed forms, a jackknife written out, and SciPy called from outside."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kerple_eval.stats import intervals
from kerple_eval.stats.documents import document_sums
from kerple_eval.stats.intervals import COVERAGE, coverage_note, ratio_interval, sums_interval
from kerple_eval.types import UserError
from tests.helpers.made_cells import cell, drawn
from tests.simulations.worlds import EVEN

SIZES = [3, 40, 7, 90, 12, 33, 5]


def test_sums_by_document_are_the_cells_own() -> None:
    documents = drawn(0, SIZES)
    backwards = dict(reversed(documents.items()))
    for given in (documents, backwards):
        found = document_sums(cell("m", given))
        assert found.names == tuple(sorted(documents))
        for name, total, count, spelled in zip(
            found.names, found.sums, found.counts, found.bytes if found.bytes is not None else [], strict=True
        ):
            assert total == pytest.approx(math.fsum(np.float32(x) for x in documents[name]), rel=1e-6)
            assert (count, spelled) == (len(documents[name]), 2 * len(documents[name]))
    made = cell("m", documents)
    assert document_sums(made).mean == pytest.approx(made.summary()["nll"], rel=1e-12)


def test_where_a_tool_weighs_windows_it_is_the_tools_number() -> None:
    """YaRN: all windows alike. Last windows of 1 or 2 targets of 3 set it apart from the mean."""
    plain = cell("m", drawn(8, SIZES))
    key = replace(plain.key, protocol="yarn:stride=3")
    header = replace(plain.header, reduction="mean over windows of their means, unweighted")
    made = replace(plain, key=key, header=header)
    means = {name: [row.astype(float).mean() for row in rows] for name, rows in made.by_document().items()}
    every = [mean for of_document in means.values() for mean in of_document]
    found = sums_interval(document_sums(made))
    assert found.mean == pytest.approx(np.mean(every), rel=1e-12)
    assert found.mean == pytest.approx(made.summary()["nll"], rel=1e-12)
    assert abs(found.mean - sums_interval(document_sums(plain)).mean) > 1e-4
    expected = ratio_interval(
        np.array([sum(means[n]) for n in sorted(means)]), np.array([len(means[n]) for n in sorted(means)])
    )
    assert found.nll is not None
    assert (found.nll.low, found.nll.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.bits_per_byte is None


def test_documents_of_one_size_give_students_interval() -> None:
    """n/(n-1) sum r^2 / C^2 with t_(n-1) is the interval of the documents' means."""
    found = document_sums(cell("m", drawn(1, [20] * 9)))
    means = found.sums / found.counts
    expected = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.9)
    for method in ("delta", "delta-plain"):
        interval = ratio_interval(found.sums, found.counts, level=0.9, method=method)
        assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-12)
        assert interval.freedom == pytest.approx(8, rel=1e-12)


def test_plain_is_the_textbook_form() -> None:
    found = document_sums(cell("m", drawn(2, SIZES)))
    s, c, n = found.sums, found.counts, len(SIZES)
    ratio = s.sum() / c.sum()
    error = math.sqrt(n / (n - 1) * ((s - ratio * c) ** 2).sum()) / c.sum()
    reach = scipy_stats.t.ppf(0.975, n - 1) * error
    interval = ratio_interval(s, c, method="delta-plain")
    assert (interval.low, interval.high) == pytest.approx((ratio - reach, ratio + reach), rel=1e-12)


def test_the_default_is_the_jackknife_about_the_ratio() -> None:
    """(n-1)/n sum over i of (R without i, linearised back)^2: R_(i) - R = -r_i / (C - c_i)."""
    found = document_sums(cell("m", drawn(3, SIZES)))
    s, c, n = found.sums, found.counts, len(SIZES)
    ratio = s.sum() / c.sum()
    without = np.array([(s.sum() - s[i]) / (c.sum() - c[i]) for i in range(n)])
    error = math.sqrt((n - 1) / n * ((without - ratio) ** 2).sum())
    freedom = c.sum() ** 2 / (c**2).sum() - 1
    interval = ratio_interval(s, c)
    assert interval.error == pytest.approx(error, rel=1e-12)
    assert interval.half_width == pytest.approx(scipy_stats.t.ppf(0.975, freedom) * error, rel=1e-9)
    assert interval.freedom == pytest.approx(freedom)


def test_the_bootstrap_is_scipys_and_repeats() -> None:
    found = document_sums(cell("m", drawn(4, SIZES)))
    first = ratio_interval(found.sums, found.counts, method="bootstrap", seed=5)
    assert first == ratio_interval(found.sums, found.counts, method="bootstrap", seed=5)
    assert first != ratio_interval(found.sums, found.counts, method="bootstrap", seed=6)
    rng = np.random.default_rng(0)
    index = rng.integers(len(SIZES), size=(40000, len(SIZES)))
    ratios = found.sums[index].sum(axis=1) / found.counts[index].sum(axis=1)
    assert first.error == pytest.approx(ratios.std(), rel=0.05)
    assert np.quantile(ratios, 0.005) < first.low < first.estimate < first.high < np.quantile(ratios, 0.9999)


def test_perplexity_and_bits_per_byte_share_the_interval() -> None:
    made = cell("m", drawn(5, SIZES), spelled=3)
    found = sums_interval(document_sums(made))
    assert found.nll is not None
    assert found.bits_per_byte is not None
    assert found.ppl == (math.exp(found.nll.low), math.exp(found.nll.high))
    scale = 1 / (3 * math.log(2))  # every target is spelled in three bytes
    assert found.bits_per_byte.low == pytest.approx(found.nll.low * scale, rel=1e-12)
    assert found.bits_per_byte.estimate == pytest.approx(made.summary()["bits_per_byte"], rel=1e-12)
    assert sums_interval(document_sums(cell("m", drawn(5, SIZES), spelled=None))).bits_per_byte is None


@pytest.mark.parametrize("n", [1, 2, 4])
def test_below_five_documents_there_is_none(n: int) -> None:
    found = sums_interval(document_sums(cell("m", drawn(6, [10] * n))))
    assert (found.nll, found.ppl, found.bits_per_byte) == (None, None, None)
    assert found.note == f"not enough documents: {n}, and an interval needs 5"
    assert sums_interval(document_sums(cell("m", drawn(6, [10] * 5)))).nll is not None


def test_one_document_that_holds_nearly_all_targets_is_no_sample() -> None:
    found = sums_interval(document_sums(cell("m", drawn(6, [900, 10, 10, 10, 10]))))
    assert found.nll is None
    assert found.note == "not enough documents: of 5 the largest holds nearly all targets"


def test_documents_without_spread() -> None:
    sums, counts = np.full(6, 20.0), np.full(6, 10)
    for method in intervals.METHODS:
        interval = ratio_interval(sums, counts, method=method)
        assert (interval.low, interval.estimate, interval.high) == (2.0, 2.0, 2.0)


def test_perplexity_beyond_the_largest_float() -> None:
    found = sums_interval(document_sums(cell("m", drawn(7, [10] * 6, mean=709.7, spread=0.5))))
    assert found.ppl is not None
    assert found.ppl[0] is not None
    assert found.ppl[1] is None


def test_what_is_refused() -> None:
    sums, counts = np.arange(6.0), np.full(6, 10)
    with pytest.raises(UserError, match="unknown interval 'dleta': available"):
        ratio_interval(sums, counts, method="dleta")
    with pytest.raises(UserError, match="between 0 and 1"):
        ratio_interval(sums, counts, level=95)
    with pytest.raises(UserError, match="needs documents"):
        ratio_interval(sums[:1], counts[:1])


def test_what_an_interval_says_it_covers_is_what_was_simulated() -> None:
    path = Path(__file__).parents[2] / "results" / "statistics" / "coverage.csv"
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "delta"]
    even = {world.name for world in EVEN}
    found: dict[int, tuple[list[float], list[float]]] = {}
    for row in rows:
        nearly, every = found.setdefault(int(row["n"]), ([], []))
        every.append(float(row["percent"]))
        if row["world"] in even:
            nearly.append(float(row["percent"]))
    expected = {
        n: tuple((pytest.approx(min(x), abs=0.051), pytest.approx(max(x), abs=0.051)) for x in both)
        for n, both in found.items()
    }
    assert expected == COVERAGE
    assert all(low >= 93 and high <= 97 for n, ((low, high), _) in COVERAGE.items() if n >= 50)


def test_the_note_is_there_where_it_must_be() -> None:
    assert coverage_note(50, 40.0) is None
    assert coverage_note(200, 40.0) is not None  # too uneven
    assert coverage_note(49, 49.0) is not None
    low, high = COVERAGE[30][0]
    assert f"covers {low:.0f} to {high:.0f} %" in (coverage_note(49, 49.0) or "")
    assert "90 %" in (coverage_note(10, 10.0, level=0.9) or "")
