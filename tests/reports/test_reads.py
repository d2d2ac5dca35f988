"""How often a report opens the files of a run: each cell once, however many tables and figures it makes."""

from __future__ import annotations

import builtins
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyarrow.parquet as pq
import pytest

from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scheme_view import view
from kerple_eval.reports.exports import export
from kerple_eval.reports.figures import curve, kernel_reach, kernels, matrix, position, ratio, scatter
from kerple_eval.reports.page import page
from kerple_eval.reports.tables import compare, explain, intervals, longppl
from tests.helpers.made_cells import cell, drawn, shifted, write_finished

LENGTHS = (32, 64, 128)
MODELS = (("kerple-log", 1, 0.0), ("rope", 1, 0.1), ("alibi", 1, 0.2), ("alibi-s2", 2, 0.3))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """File name -> how often it was opened, by Python or by pyarrow's own readers."""
    count: Counter[str] = Counter()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(source, str | Path) and "w" not in str(arguments[:1]):
                count[Path(source).name] += 1
            return function(source, *arguments, **options)

        return call

    for module, name in ((pq, "read_table"), (pq, "read_schema"), (pq, "ParquetFile"), (io, "open")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(builtins, "open", io.open)
    return count


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three schemes, one with two seeds, at three lengths; six documents."""
    base = drawn(5, [30] * 6)
    cells = [
        cell(name, shifted(base, [by] * 6), scheme=name.partition("-s")[0], seed=seed, length=length)
        for name, seed, by in (
            ("kerple-log", 1, 0.0),
            ("rope", 1, 0.1),
            ("alibi", 1, 0.2),
            ("alibi-s2", 2, 0.3),
        )
        for length in LENGTHS
    ]
    return write_finished(tmp_path / "run", cells)


REPORTS: dict[str, Callable[[Path], object]] = {
    "page": lambda r: page.make([r], r / "page.html"),
    "markdown page": lambda r: page.make([r], r / "page.md"),
    "compare": lambda r: compare.make([r], "kerple-log"),
    "intervals": lambda r: intervals.make([r]),
    "explain": lambda r: explain.make([r]),
    "longppl": lambda r: longppl.make([r], "rope"),
    "curve": lambda r: curve.make([r], r / "c.svg"),
    "ratio": lambda r: ratio.make([r], r / "r.svg", against="rope"),
    "scatter": lambda r: scatter.make([r], r / "s.svg", against="rope"),
    "position": lambda r: position.make([r], r / "p.svg"),
    "export": lambda r: export(r, r / "out"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reads_each_cell_once(name: str, run: Path, opened: Counter[str]) -> None:
    REPORTS[name](run)
    cells = {path.name for path in (run / "cells").iterdir()}
    assert len(cells) == len(MODELS) * len(LENGTHS)
    assert {file: n for file, n in opened.items() if file in cells} == dict.fromkeys(cells, 1)


def test_matplotlib_is_left_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings and open figures; a text size in force does not decide what is drawn."""
    monkeypatch.setitem(plt.rcParams, "font.size", 17.5)
    before, figures = dict(plt.rcParams), plt.get_fignums()
    for name in ("curve", "ratio", "scatter", "position", "page"):
        REPORTS[name](run)
    models = [view(open_model(parse_model(f"zoo:{name}")), name, ("kernel",)) for name in ("alibi", "t5")]
    for make in (kernels.make, matrix.make, kernel_reach.make):
        make(models, run / "k.svg", length=64)
    assert (dict(plt.rcParams), plt.get_fignums()) == (before, figures)
    drawn = (run / "c.svg").read_bytes()
    monkeypatch.setitem(plt.rcParams, "font.size", 8)
    REPORTS["curve"](run)
    assert (run / "c.svg").read_bytes() == drawn


def test_a_folder_given_twice_is_one_run(run: Path, opened: Counter[str]) -> None:
    assert intervals.make([run, run], "csv") == intervals.make([run], "csv")
    assert {n for file, n in opened.items() if file.endswith(".parquet")} == {2}
