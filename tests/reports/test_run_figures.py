"""Figures of runs with bands: ratio to a scheme, documents of two, intervals against textbook formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex
from scipy import stats

from kerple_eval.cli.main import cli
from kerple_eval.records.reader import RunReader
from kerple_eval.reports import sums
from kerple_eval.reports.figures import curve, position, ratio, scatter
from kerple_eval.reports.figures.style import COLORS, Picture, compose
from kerple_eval.reports.grid import Grid, read_grids
from kerple_eval.reports.words import trend
from kerple_eval.stats.by_context import bin_edges
from kerple_eval.types import UserError
from tests.helpers.figures import curves, legend
from tests.helpers.handmade import row, write_run
from tests.helpers.made_cells import cell, drawn, shifted, write_finished

SIZE = 40  # targets of each document: with one size the intervals are the textbook's
BY = (0.02, 0.05, -0.01, 0.08, 0.03, 0.04)
BASE = drawn(5, [SIZE] * 6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """kerple-log and rope at 64 and 128; rope's documents are ``BY`` nats worse, four times so at 128."""
    cells = [cell("kerple-log", BASE, length=n, scheme="kerple-log") for n in (64, 128)]
    cells += [
        cell("rope", shifted(BASE, [times * by for by in BY]), length=n, scheme="rope")
        for n, times in ((64, 1), (128, 4))
    ]
    return write_finished(tmp_path / "run", cells)


def read(folder: Path) -> tuple[list[Grid], sums.ScoredCells]:
    reader = RunReader([folder])
    grids = read_grids(reader)
    return grids, sums.read(reader, grids)


def painted(picture: Picture) -> Axes:
    (axes,) = compose([picture]).axes
    return axes


def bands(axes: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """Colour -> (x, lower, upper) by point."""
    found = {}
    for collection in axes.collections:
        if isinstance(collection, PolyCollection):
            corners = collection.get_paths()[0].vertices
            ends: dict[float, list[float]] = {}
            for x, y in np.asarray(corners).tolist():
                ends.setdefault(x, []).append(y)
            found[to_hex(collection.get_facecolor()[0]).upper()] = [
                (x, min(y), max(y)) for x, y in sorted(ends.items())
            ]
    return found


def t_interval(values: list[float]) -> tuple[float, float, float]:
    """Student's, of a mean."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def means(documents: dict[str, list[float]]) -> list[float]:
    return [math.fsum(np.float32(x) for x in losses) / len(losses) for losses in documents.values()]


def test_curves_have_the_intervals_of_their_documents(run: Path) -> None:
    (picture,) = curve.pictures(*read(run))
    axes = painted(picture)
    assert picture.note.startswith("bands: 95 % intervals over documents; |: holds to there")
    mean, low, high = t_interval(means(BASE))
    found = bands(axes)
    assert set(found) == set(COLORS[:2])
    for (x, lower, upper), length in zip(found[COLORS[0]], (64, 128), strict=True):
        assert (x, lower, upper) == pytest.approx((length, math.exp(low), math.exp(high)), rel=1e-6)
    assert curves(axes)["kerple-log"][1] == pytest.approx([math.exp(mean)] * 2, rel=1e-6)


def test_ratio_is_paired(run: Path) -> None:
    (picture,) = ratio.pictures(*read(run), against="kerple-log")
    axes = painted(picture)
    assert legend(axes) == ["rope"]
    x, y = curves(axes)["rope"]
    assert x == [64, 128]
    (band,) = bands(axes).values()
    for times, value, (_, lower, upper) in zip((1, 4), y, band, strict=True):
        mean, low, high = t_interval([times * by for by in BY])
        assert value == pytest.approx(math.exp(mean), rel=1e-6)
        assert (lower, upper) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-5)
    assert 1 in [float(tick) for tick in axes.get_yticks()]
    other = painted(ratio.pictures(*read(run), against="rope")[0])
    assert curves(other)["kerple-log"][1] == pytest.approx([1 / value for value in y])


def test_ratio_on_other_targets_is_left_out_and_said(tmp_path: Path) -> None:
    lines = [row(m, n, 20.0, nll=nll) for m, nll in (("a", 3.0), ("b", 3.5)) for n in (512, 1024)]
    lines += [row("c", 512, 20.0, nll=2.0), row("c", 1024, 20.0, nll=2.0, targets_hash="bbbb")]
    folder = write_run(tmp_path / "r", lines)
    (picture,) = ratio.pictures(read(folder)[0], {}, against="a")
    found = curves(painted(picture))
    assert found == {"b": ([512, 1024], pytest.approx([math.exp(0.5)] * 2)),
                     "c": ([512], pytest.approx([math.exp(-1)]))}  # fmt: skip
    assert picture.note == "left out: c at 1024 (other targets)"


def test_a_ratio_beyond_the_largest_number_is_left_out_and_said(tmp_path: Path) -> None:
    lines = [row(m, 512, 20.0, nll=nll) for m, nll in (("a", 3.0), ("b", 900.0))]
    with pytest.raises(UserError, match=r"with a: b at 512 \(beyond the largest number\)$"):
        ratio.pictures(read(write_run(tmp_path / "r", lines))[0], {}, against="a")


def test_position_leaves_out_perplexities_beyond_the_largest_number(tmp_path: Path) -> None:
    """exp(709.8) is the largest float64: of a model whose loss is 700 nats plus its context, only the
    contexts up to 9 have a perplexity."""
    far = {name: [700.0 + i for i in range(1, SIZE + 1)] for name in BASE}
    folder = write_finished(tmp_path / "r", [cell("near", BASE, window=SIZE), cell("far", far, window=SIZE)])
    (picture,) = position.pictures(RunReader([folder]), value="ppl")
    x, y = curves(painted(picture))["far"]
    assert max(x) < 10 and max(y) < math.inf
    assert "; left out, beyond the largest number: far (" in picture.title
    (picture,) = position.pictures(
        RunReader([write_finished(tmp_path / "s", [cell("far", shifted(far, [99] * 6))])]), value="ppl"
    )
    assert curves(painted(picture)) == {}


def test_scatter_has_every_document(run: Path) -> None:
    (picture,) = scatter.pictures(*read(run), against="kerple-log")
    axes = painted(picture)
    (points,) = [c for c in axes.collections if isinstance(c, PathCollection)]
    x, y = means(BASE), means(shifted(BASE, [4 * by for by in BY]))
    assert np.asarray(points.get_offsets()) == pytest.approx(np.column_stack([x, y]), rel=1e-6)
    assert axes.get_xlim() == axes.get_ylim()
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert "L = 128" in picture.title
    assert "rope worse on 5, better on 1" in picture.title
    assert "rope is worse on 5 and better on 1" in picture.words
    (short,) = scatter.pictures(*read(run), against="kerple-log", length=64)
    assert "L = 64" in short.title


def test_position_bands_are_the_bins_intervals(run: Path) -> None:
    picture = position.pictures(RunReader([run]))[0]
    axes = painted(picture)
    windows = 3  # targets of a window of ``made.cell``: contexts 1, 2, 3
    edges = bin_edges(128).tolist()
    assert edges[:4] == [1, 2, 3, 4]
    x, y = curves(axes)["kerple-log"]
    assert x == pytest.approx([1, 2, 3])
    for context, value, (_, lower, upper) in zip((1, 2, 3), y, bands(axes)[COLORS[0]], strict=True):
        parts = [[np.float32(v) for v in losses[context - 1 :: windows]] for losses in BASE.values()]
        mean, low, high = t_interval([math.fsum(p) / len(p) for p in parts])
        assert (value, lower, upper) == pytest.approx((mean, low, high), rel=1e-5)
    powers = curves(painted(position.pictures(RunReader([run]), value="ppl")[0]))["kerple-log"][1]
    assert powers == pytest.approx(np.exp(y).tolist())
    assert "L = 64" in position.pictures(RunReader([run]), length=64)[0].title


def test_no_band_below_five_documents(tmp_path: Path) -> None:
    four = dict(list(BASE.items())[:4])
    folder = write_finished(tmp_path / "r", [cell(m, four) for m in ("kerple-log", "rope")])
    made = [*curve.pictures(*read(folder)), *ratio.pictures(*read(folder), against="rope")]
    for picture in [*made, *position.pictures(RunReader([folder]))]:
        assert bands(painted(picture)) == {}
        assert "bands" not in picture.note


REFUSALS: list[tuple[Callable[[Path], object], str]] = [
    (lambda r: ratio.make([r], r / "x.png", against="kerple"), "did you mean 'kerple-log'"),
    (
        lambda r: scatter.make([r], r / "x.png", against="rope", length=65),
        "no other model has .* at length 65",
    ),
    (lambda r: scatter.make([r], r / "x.png", against="ropf"), "did you mean 'rope'"),
    (lambda r: curve.make([r], r / "x.png", protocol="full"), "unknown protocol 'full'"),
    (lambda r: position.make([r], r / "x.png", task="bok"), "did you mean 'book'"),
    (lambda r: position.make([r], r / "x.png", value="nl"), "did you mean 'nll'"),
    (lambda r: position.make([r], r / "x.png", length=7), "no finished cell at length 7 whose contexts vary"),
]


@pytest.mark.parametrize(("call", "expected"), REFUSALS)
def test_refusals(call: Callable[[Path], object], expected: str, run: Path) -> None:
    with pytest.raises(UserError, match=expected):
        call(run)
    assert not (run / "x.png").exists()


def test_scatter_refuses_other_targets(tmp_path: Path) -> None:
    cells = [cell("kerple-log", BASE), cell("rope", drawn(5, [SIZE + 1] * 6))]
    folder = write_finished(tmp_path / "r", cells)
    with pytest.raises(UserError, match="not scored on the same targets"):
        scatter.pictures(*read(folder), against="rope")
    with pytest.raises(UserError, match=r"nothing to compare with rope: kerple-log at \d+ \(other targets\)"):
        ratio.pictures(*read(folder), against="rope")


@pytest.mark.parametrize("kind", ["curve", "position", "ratio", "scatter"])
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_command_draws_every_kind(kind: str, ending: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / f"figure.{ending}"
    words = [
        "plot",
        str(run),
        "--kind",
        kind,
        "--out",
        str(out),
        "--task",
        "book",
        "--protocol",
        "full-context",
    ]
    words += ["--against", "kerple-log"] if kind in ("ratio", "scatter") else []
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    first = out.read_bytes()
    assert len(first) > 1000
    CliRunner().invoke(cli, words)
    assert out.read_bytes() == first


def test_a_figure_is_a_column_wide_unless_there_are_several(run: Path) -> None:
    (picture,) = curve.pictures(*read(run))
    assert compose([picture]).get_size_inches().tolist() == [3.3, 2.3]
    assert compose([picture] * 3).get_size_inches()[0] == 6.6


def test_legends_of_long_and_odd_labels(tmp_path: Path) -> None:
    labels = ["_hidden", "a$b$_{c", "a label that is longer than the figure leaves room for"]
    lines = [row(m, n, 20.0 + i + n / 1000) for i, m in enumerate(labels) for n in (512, 1024)]
    (picture,) = curve.pictures(read(write_run(tmp_path / "r", lines))[0], {})
    figure = compose([picture])
    assert figure.get_size_inches()[1] > 2.6
    figure.canvas.draw()  # type: ignore[attr-defined]
    shown = [text.replace("\u200b", "").replace(r"\$", "$") for text in legend(figure.axes[0])]
    assert shown == labels[::-1]
    for label in labels:
        assert label in picture.words


def test_only_these_models(tmp_path: Path, run: Path) -> None:
    folder, out = str(run), str(tmp_path / "a.png")
    lines = (
        CliRunner().invoke(cli, ["table", folder, "--model", "rope", "--format", "csv"]).stdout.splitlines()
    )
    assert [line.split(",")[3] for line in lines[1:]] == ["rope"] * (len(lines) - 1)
    assert len(lines) > 1
    (grid,) = read_grids(RunReader([run]), ["rope"])
    assert grid.models == ["rope"]
    drawn_in = tmp_path / "a.svg"
    for words, models in (
        (["curve", "--model", "rope"], {"rope"}),
        (["curve"], {"rope", "kerple-log"}),
        (["ratio", "--against", "kerple-log", "--model", "rope"], {"rope"}),
    ):
        done = CliRunner().invoke(cli, ["plot", folder, "--kind", *words, "--out", str(drawn_in)])
        assert done.exit_code == 0, done.output
        texts = drawn_in.read_text()
        assert {name for name in ("rope", "kerple-log") if f">{name}</text>" in texts} == models
    for words, expected in (
        (["table", folder, "--model", "rop"], "unknown model 'rop': did you mean 'rope'?"),
        (["plot", folder, "--model", "rop", "--out", out], "unknown model 'rop'"),
        (["plot", folder, "--kind", "position", "--model", "rope", "--out", out], "has no --model"),
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 2
        assert expected in done.stderr


@pytest.mark.parametrize(("models", "lengths"), [(18, (512, 1024)), (18, tuple(2**n for n in range(6, 15)))])
def test_a_legend_of_many_models_is_whole_and_covers_nothing(
    models: int, lengths: tuple[int, ...], tmp_path: Path
) -> None:
    lines = [row(f"model-{i}", n, 20.0 + i + n / 1000) for i in range(models) for n in lengths]
    (picture,) = curve.pictures(read(write_run(tmp_path / "r", lines))[0], {})
    figure = compose([picture])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    found = axes.get_legend()
    assert found is not None
    assert len(found.get_texts()) == models
    box, label = found.get_window_extent(), axes.xaxis.label.get_window_extent()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= label.y0 + 1  # pixels
    assert axes.bbox.height > 0.4 * figure.bbox.height


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        ([24.0, 23.0, 22.5], "falls from 24 at 512 to 22.5 at 2048 (-6.2 %)"),
        ([25.0, 180.0, 1400.0], "rises from 25 at 512 to 1400 at 2048 (x 56)"),
        ([3.0, 3.01, 2.99], "is nearly flat, from 3 at 512 to 2.99 at 2048"),
        ([3.0, 9.0, 4.0], "rises from 3 at 512 to 4 at 2048 (+33.3 %), highest 9 at 1024"),
        ([3.0, 2.0, 3.0], "returns from 3 at 512 to 3 at 2048 (+0.0 %), lowest 2 at 1024"),
        ([3.0], "is 3 at 512"),
    ],
)
def test_words_say_what_a_curve_does(y: list[float], expected: str) -> None:
    assert trend([512, 1024, 2048][: len(y)], y) == expected


def test_words_follow_the_numbers() -> None:
    """Over many drawn curves: rises and falls as the ends do, and every turn beyond both ends is named."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        y = np.exp(rng.normal(1, 0.5, size=rng.integers(2, 7))).tolist()
        x = [2.0**i for i in range(len(y))]
        said = trend(x, y)
        if all(abs(v - y[0]) <= 0.02 * y[0] for v in y):
            assert said.startswith("is nearly flat")
        elif abs(y[-1] - y[0]) > 0.02 * y[0]:
            assert said.startswith("rises" if y[-1] > y[0] else "falls")
        inner = max(y) > 1.03 * max(y[0], y[-1])
        assert inner <= ("highest" in said)
        assert any(a != b for a, b in pairwise(y))
