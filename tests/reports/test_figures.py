"""Figures: every model's curve with the right data, the legend in the order of the curves, three formats."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kerple_eval.cli.plot import run as plot
from kerple_eval.records.cell import Cell, write_cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import write_summary
from kerple_eval.reports.figures import curve, position, style
from kerple_eval.stats.by_context import bin_edges, by_context
from kerple_eval.types import CellKey, UserError, Window
from tests.helpers.figures import curves, legend
from tests.helpers.handmade import row, write_run
from tests.helpers.records import header, write_run_json
from tests.helpers.records import model as model_record

PPL = {
    "log": {512: 24.0, 1024: 23.0, 2048: 22.5},
    "rope": {512: 25.0, 1024: 180.0, 2048: 1400.0},
    "alibi": {512: 24.5, 1024: 24.0},  # failed at 2048
}


def marks(axes: Axes) -> list[float]:
    """Where vertical lines stand."""
    found = (np.unique(np.asarray(line.get_xdata(), dtype=float)) for line in axes.get_lines())
    return [float(x[0]) for x in found if len(x) == 1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [row(m, n, ppl) for m, by in PPL.items() for n, ppl in by.items()] + [row("alibi", 2048, None)]
    return write_run(tmp_path / "run", lines)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_formats(kind: str, magic: bytes, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / f"figure.{kind}"
    curve.make([run], out)
    first = out.read_bytes()
    assert first.startswith(magic)
    if kind == "svg":
        for name in PPL:
            assert f">{name}<" in first.decode()
    with pytest.raises(UserError, match=r"\.png, \.pdf or \.svg"):
        curve.make([run], tmp_path / "figure.gif")


def test_a_png_with_its_palette_shows_what_was_drawn() -> None:
    """Against matplotlib's own file: a heat map of its 256 shades beside lines, text and a band."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
    left.imshow(np.linspace(0, 1, 256).reshape(16, 16))
    for slope, colour in enumerate(style.COLORS):
        right.plot([0, 1], [0, slope], color=colour, label=f"slope {slope}")
    right.fill_between([0, 1], [0, 2], [0, 4], alpha=0.2)
    right.legend()
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=300)
    small = Image.open(io.BytesIO(style.rendered(figure, "png")))
    plt.close(figure)
    assert (small.mode, small.size, round(small.info["dpi"][0])) == ("P", Image.open(whole).size, 300)
    levels = [np.asarray(picture.convert("RGB"), dtype=float) for picture in (small, Image.open(whole))]
    apart = np.abs(levels[0] - levels[1]).max(axis=-1)  # of 255, the worst of three channels
    assert apart.mean() < 1
    assert (apart > 16).mean() < 0.01


def test_curve_has_every_model(run: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    curve.make([run], tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert curves(axes) == {m: (list(by), list(by.values())) for m, by in PPL.items()}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend(axes) == ["rope", "alibi", "log"]  # from the top down at each curve's end
    assert 512 in marks(axes)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["512", "1024", "2048"]
    assert "perplexity" in axes.get_ylabel()
    colours = [line.get_color() for line in axes.get_lines() if line.get_label() in PPL]
    assert len(set(colours)) == 3


def test_curve_draws_a_panel_a_protocol_and_bits_per_byte_across_tokenisers(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    lines = [
        row(m, n, 20.0 + n, bits_per_byte=b, protocol=p)
        for p in ("full-context", "last:k=4")
        for m, b in (("log", 2.5), ("gpt", 1.5))
        for n in (512, 1024)
    ]
    curve.make([write_run(tmp_path / "r", lines, {"gpt": "tokenizer.json:1"})], tmp_path / "c.svg")
    first, second = drawn[0].axes
    assert curves(first)["gpt"] == ([512, 1024], [1.5, 1.5])
    assert "bits per byte" in first.get_ylabel()
    assert "last:k=4" in second.get_title(loc="left")


def test_curve_leaves_out_a_perplexity_beyond_floats(tmp_path: Path, drawn: list[Figure]) -> None:
    lines = [row("log", 512, 24.0), row("log", 1024, "", nll=900.0), row("rope", 512, "", nll=900.0)]
    curve.make([write_run(tmp_path / "r", lines)], tmp_path / "c.png")
    assert curves(drawn[0].axes[0]) == {"log": ([512], [24.0])}


SEEDS = {"log": {1: 20.0, 2: 22.0, 3: 21.0}, "alibi": {1: 24.0, 2: 25.0, 3: 29.0}, "rope": {1: 40.0}}


def seeded(folder: Path, schemes: tuple[str, ...]) -> Path:
    """Perplexity 100 higher at 1024; one seed of rope, whose second is not finished."""
    lines = [
        row(f"{scheme}-s{seed}", n, ppl + extra, scheme=scheme, seed=seed)
        for scheme in schemes
        for seed, ppl in SEEDS[scheme].items()
        for n, extra in ((512, 0.0), (1024, 100.0))
    ]
    return write_run(folder, lines)


def test_curves_over_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    """Mean and one sample standard deviation to either side; no band of one seed."""
    curve.make([seeded(tmp_path / "r", ("log", "alibi", "rope"))], tmp_path / "c.png", over_seeds=True)
    (axes,) = drawn[0].axes
    assert curves(axes) == {
        "log": ([512, 1024], [21.0, 121.0]),
        "alibi": ([512, 1024], [26.0, 126.0]),
        "rope-s1": ([512, 1024], [40.0, 140.0]),
    }
    assert legend(axes) == ["rope-s1", "alibi", "log"]
    ends = [
        sorted({round(float(y), 6) for x, y in band.get_paths()[0].vertices if x == 512})
        for band in axes.collections
    ]
    assert ends == [[round(26 - 7**0.5, 6), round(26 + 7**0.5, 6)], [20.0, 22.0]]


def test_curves_over_seeds_need_seeds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one seed of each scheme"):
        curve.make([seeded(tmp_path / "r", ("rope",))], tmp_path / "c.png", over_seeds=True)


def test_only_curves_are_drawn_over_seeds(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--kind position has no --over-seeds; leave it out"):
        plot([str(run)], "position", tmp_path / "p.png", over_seeds=True)
    with pytest.raises(UserError, match="one seed of each scheme"):
        plot([str(run)], "curve", tmp_path / "c.png", over_seeds=True)


def test_two_runs_in_one_figure(run: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    other = write_run(tmp_path / "again", [row("log", 512, 19.0)])
    curve.make([run, other], tmp_path / "c.png")
    found = curves(drawn[0].axes[0])
    assert found["log (again)"] == ([512], [19.0])
    assert found["log"][1] == list(PPL["log"].values())


LOSS: dict[str, Callable[[int], float]] = {
    "flat": lambda context: 3.0,
    "falling": lambda context: 1.0 + 2.0 / context,
    "rising": lambda context: 4.0 + context / 64,
}


def with_cells(folder: Path, models: tuple[str, ...] = tuple(LOSS), shift: float = 0.0) -> Path:
    """A run of two lengths whose losses are functions of context."""
    write_run_json(
        folder,
        models=[model_record(m, scheme="nope", train_length=16, tokenizer="bytes") for m in models],
        tasks=["text"],
        protocols=[{"protocol": "full-context", "lengths": [16, 64], "longest": None}],
    )
    rows = []
    for model in models:
        for length in (16, 64):
            windows = [Window(s, s + length, s + 1) for s in range(0, 256, length)]
            per_window = np.array([LOSS[model](c) + shift for c in range(1, length + 1)], dtype=np.float32)
            key = CellKey(model, "text", "full-context", length)
            document = np.zeros(len(windows), dtype=np.int64)
            cell = Cell(
                key,
                header([("d", 257, "0")], scheme="nope"),
                document,
                windows,
                [per_window] * len(windows),
                None,
            )
            write_cell(folder, cell)
            rows.append(cell.summary())
    write_summary(folder, rows)
    return folder


def test_position_curves_are_the_means_by_context(tmp_path: Path, drawn: list[Figure]) -> None:
    position.make([with_cells(tmp_path / "run")], tmp_path / "p.pdf")
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF-")
    (axes,) = drawn[0].axes
    found = curves(axes)
    assert legend(axes) == ["rising", "flat", "falling"]
    assert "L = 64" in axes.get_title(loc="left")
    assert 16 in marks(axes)
    assert set(found) == set(LOSS)
    assert found["flat"][1] == pytest.approx([3.0] * len(found["flat"][1]))
    edges = bin_edges(64).tolist()
    for model, loss in LOSS.items():
        x, y = found[model]
        bins = [range(a, b) for a, b in pairwise(edges)]
        assert y == pytest.approx([math.fsum(map(loss, b)) / len(b) for b in bins], rel=1e-6)
        assert all(b[0] <= at <= b[-1] for b, at in zip(bins, x, strict=True))


@pytest.mark.parametrize("longest", [1, 2, 3, 5, 16, 64, 100, 512, 4096, 16384])
def test_bins_cover_every_context_once(longest: int) -> None:
    edges = bin_edges(longest).tolist()
    assert edges[0] == 1
    assert edges[-1] == longest + 1
    assert edges == sorted(set(edges))


def test_position_of_two_runs_keeps_models_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    a = with_cells(tmp_path / "a", ("flat",))
    b = with_cells(tmp_path / "b", ("flat",), shift=1.0)
    position.make([a, b], tmp_path / "p.png")
    found = curves(drawn[0].axes[0])
    assert set(found) == {"flat", "flat (b)"}
    assert found["flat (b)"][1] == pytest.approx([4.0] * len(found["flat"][1]))


def test_position_needs_contexts_that_vary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished cell whose contexts vary"):
        position.make([write_run(tmp_path / "run", [row("log", 512, 24.0)])], tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_figures_of_failed_cells_alone(tmp_path: Path, drawn: list[Figure]) -> None:
    curve.make([write_run(tmp_path / "run", [row("log", 512, None)])], tmp_path / "c.png")
    assert curves(drawn[0].axes[0]) == {}


def test_a_target_after_a_marker_alone_has_a_bin_of_its_own(tmp_path: Path, drawn: list[Figure]) -> None:
    """Context 0 counts in the table; a logarithmic axis cannot show it, and the figure says so."""
    folder = with_cells(tmp_path / "run", ("rising",))
    (cell,) = [c for c in RunReader([folder]).cells() if c[1].key.length == 64]
    assert isinstance(cell[1], Cell)
    windows = [Window(w.start, w.stop - 1, w.start, after_marker=True) for w in cell[1].windows]
    changed = replace(cell[1], windows=windows)
    for per_doubling in (1, 2):
        found = by_context(changed, "m", changed.losses, per_doubling)
        assert found.edges[:2].tolist() == [0, 1]
        assert found.counts[:, 0].tolist() == [len(windows)]
        assert found.mean(0) == pytest.approx(LOSS["rising"](1))
        assert found.counts.sum() == sum(w.targets for w in windows)
        assert found.curve()[1] == [found.mean(i) for i in range(1, len(found.edges) - 1)]
    write_cell(folder, changed)
    position.make([folder], tmp_path / "p.png")
    assert len(curves(drawn[0].axes[0])["rising"][0]) == len(found.edges) - 2
    (picture,) = position.pictures(RunReader([folder]))
    assert "rising: 4 targets after a marker alone (context 0) are not drawn" in picture.note
    key, windows = replace(changed.key, length=1), [Window(3, 3, 3, after_marker=True)]
    alone = replace(changed, key=key, windows=windows, document=np.zeros(1, np.int64))
    only = by_context(alone, "m", [np.ones(1)])
    assert (only.bins, only.curve()) == ([0], ([], [], []))
