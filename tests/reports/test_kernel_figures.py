"""Figures of learned kernels: what is drawn is what was learned, against formulas written out in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file

from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scheme_view import SchemeView, view
from kerple_eval.reports.figures import kernel_reach, kernels, matrix
from kerple_eval.reports.figures.style import wrapped
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernel_view import KernelView, kernel_reaches, title
from kerple_eval.types import Geometry, UserError
from tests.helpers.command import make_model
from tests.helpers.figures import curves
from tests.helpers.zoo_kernels import FORMULAS, alibi_formula, log_formula, zoo


@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_the_formula_in_float64(name: str) -> None:
    formula, distances = FORMULAS[name](), np.array([0, 1, 2, 3, 15, 16, 17, 100, 511, 8192, 20480])
    found = zoo(name).kernel(distances)
    assert found is not None
    assert found.dtype == np.float64
    expected = [[formula(h, int(d)) for d in distances] for h in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert zoo(name).weight(distances) is None


@pytest.mark.parametrize("name", FORMULAS)
def test_kernel_reaches_are_the_first_of_all_distances(name: str) -> None:
    formula = FORMULAS[name]()
    kernel = zoo(name).kernel(np.arange(4097))
    assert kernel is not None
    expected = [next((d for d in range(4097) if formula(h, d) - formula(h, 0) < -2), None) for h in range(4)]
    assert kernel_reaches(kernel) == expected
    assert any(length is not None for length in expected)


def test_effective_length_is_strict_and_none_where_no_head_falls() -> None:
    kernel = np.array([[0.0, -1.0, -2.0, -2.5, -1.0], [0.0, 0.0, 0.0, 0.0, -2.0], [7.0, 6.0, 5.0, 4.9, 9.0]])
    assert kernel_reaches(kernel) == [3, None, 3]
    assert kernel_reaches(kernel, window=2) == [2, 2, 2]
    assert kernel_reaches(kernel, window=9) == [3, None, 3]


def test_weights_are_read_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "kerple-bias-wht", 3)
    r = {k.removeprefix("scheme."): x.double().tolist()
         for k, x in load_file(folder / "model.safetensors").items() if "scheme." in k}  # fmt: skip
    found = view(open_model(parse_model(str(folder))), "m", ("kernel", "weight"))
    distances = np.array([0, 1, 5, 300])
    kernel, weight = found.kernel(distances), found.weight(distances)
    assert kernel is not None
    assert weight is not None
    for h in range(2):
        for n, d in enumerate(distances.tolist()):
            fall = r["r3"][h] * d ** r["r4"][h] if d else 0.0
            assert weight[h, n] == pytest.approx(math.exp(-fall), rel=1e-12)
            assert kernel[h, n] == pytest.approx(-r["r1"][h] * d ** r["r2"][h] if d else 0.0, rel=1e-12)


def test_matrix_pair_by_pair() -> None:
    formula = log_formula()
    found = zoo("kerple-log,window=7").matrix(24, 2)
    for m in range(24):
        for n in range(24):
            seen = 0 <= m - n < 7
            assert found[m, n] == (pytest.approx(formula(2, m - n), rel=1e-12) if seen else -math.inf)


def test_matrix_of_moved_positions() -> None:
    """SelfExtend (datamllab/LongLM): from D = w on i//G + w - w//G against j//G."""
    found = zoo("alibi,self-extend=8,group=4").matrix(40, 1)
    slope = 2.0**-4
    for m in range(40):
        for n in range(m + 1):
            far = m // 4 + 8 - 8 // 4 - n // 4
            assert found[m, n] == pytest.approx(-slope * (m - n if m - n < 8 else far), rel=1e-12)


class Absolute(Scheme):
    """A bias of positions, as FIRE's: -(i + 1) j a head."""

    def bias(self, positions_q: torch.Tensor, positions_k: torch.Tensor) -> torch.Tensor:
        one = -((positions_q[:, None] + 1) * positions_k).double()
        return torch.stack([one, 2 * one])


def test_matrix_of_a_bias_of_positions() -> None:
    scheme = Absolute(Geometry(heads=2, head_dim=4, width=8, layers=1, train_length=4))
    found = SchemeView(scheme, "a", "a", 4).matrix(5, 1)
    for m in range(5):
        assert found[m].tolist() == [-2.0 * (m + 1) * n if n <= m else -math.inf for n in range(5)]


def test_kernels_draws_every_head_of_every_model(tmp_path: Path, drawn: list[Figure]) -> None:
    kernels.make([zoo("kerple-log"), zoo("alibi")], tmp_path / "k.png")
    first, second = drawn[0].axes
    for axes, formula in ((first, log_formula()), (second, alibi_formula())):
        found = {label.split(":")[0]: line for label, line in curves(axes).items()}
        assert set(found) == {f"head {h}" for h in range(4)}
        for h in range(4):
            x, y = found[f"head {h}"]
            assert (x[0], x[-1]) == (1, 16384)
            assert np.all(np.diff(x) > 0)
            np.testing.assert_allclose(y, [formula(h, int(d)) for d in x], rtol=1e-12)
        assert axes.get_xscale() == "log"
        assert axes.get_ylim()[0] == -12
    assert first.get_ylim() == second.get_ylim()
    assert [label.split(": ")[1] for label in curves(second)] == ["−64.0", "−256", "−1024", "−4096"]
    assert len({line.get_color() for line in first.get_lines()[:4]}) == 4
    assert [t.get_text() for t in first.texts] == ["trained"]


def test_kernels_of_one_head_and_a_window(tmp_path: Path, drawn: list[Figure]) -> None:
    kernels.make([zoo("kerple-log,window=100")], tmp_path / "k.svg", length=513, head=1)
    (axes,) = drawn[0].axes
    ((x, _),) = curves(axes).values()
    assert x[-1] == 99
    assert axes.get_xlim() == (1, 512)
    assert ">kerple-log, window=100<" in (tmp_path / "k.svg").read_text()


def test_kernels_draws_weights_in_a_panel_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = make_model(tmp_path / "m", "kerple-bias-wht", 3)
    made = view(open_model(parse_model(str(folder))), "m", ("kernel", "weight"))
    kernels.make([made], tmp_path / "k.pdf")
    assert (tmp_path / "k.pdf").read_bytes().startswith(b"%PDF-")
    labels = [axes.get_ylabel() for axes in drawn[0].axes]
    assert ["kernel" in labels[0], "weight" in labels[1]] == [True, True]
    weight = made.weight(np.array([1]))
    assert weight is not None
    starts = sorted(y[0] for _, y in curves(drawn[0].axes[1]).values())
    assert starts == pytest.approx(sorted(weight[:, 0].tolist()))


def test_many_heads_are_shaded_in_place_of_a_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    class Many:
        label = scheme = "many"
        heads, train_length, window = 15, None, None

        def kernel(self, distances: NDArray[np.int64]) -> NDArray[np.float64]:
            return -np.arange(1.0, 16)[:, None] * np.log1p(distances)

        def weight(self, distances: NDArray[np.int64]) -> None:
            return None

        def matrix(self, length: int, head: int) -> NDArray[np.float64]:
            raise NotImplementedError

    many: KernelView = Many()
    kernels.make([many], tmp_path / "k.png")
    (axes,) = drawn[0].axes
    assert axes.get_legend() is None
    assert len({line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
                for line in axes.get_lines()}) == 15  # fmt: skip
    assert not axes.texts  # trained length unknown


@pytest.mark.parametrize("longest", [2, 3, 5, 64, 511, 16384, 20480])
def test_drawn_distances(longest: int) -> None:
    found = kernels.drawn_distances(longest).tolist()
    assert found[:2] == [0, 1]
    assert found[-1] == longest
    assert found == sorted(set(found))
    assert all(b < 1.1 * a for a, b in pairwise(found) if a > 16)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.0781, "−0.078"), (-1.856, "−1.86"), (-64.0, "−64.0"), (-38601.2, "−38601"),
     (-3.94e7, r"$-3.9\times10^{7}$"), (0.813, "0.813")],
)  # fmt: skip
def test_numbers_of_the_legend(value: float, text: str) -> None:
    assert kernels.short(value) == text


def test_effective_length_counts_heads(tmp_path: Path, drawn: list[Figure]) -> None:
    kernel_reach.make([zoo("alibi"), zoo("t5"), zoo("alibi,window=100")], tmp_path / "e.png", length=301)
    (axes,) = drawn[0].axes
    found = curves(axes)
    assert list(found) == ["alibi: 3 of 4 heads", "t5: 4 of 4 heads", "alibi, window=100: 4 of 4 heads"]
    x, y = found["alibi: 3 of 4 heads"]
    assert x == [1, 9, 33, 129, 300]  # the first D with D 2^(-2h) > 2; 513 is out
    assert y == [0, 1, 2, 3, 3]
    assert found["alibi, window=100: 4 of 4 heads"][0] == [1, 9, 33, 100, 100, 300]
    for at in range(1, 301):  # the steps say how many heads are within each distance
        drawn_count = y[np.searchsorted(x, at, side="right") - 1] if at < 300 else y[-1]
        assert drawn_count == sum(e <= at for e in (9, 33, 129, 513))
    assert axes.get_lines()[0].get_drawstyle() == "steps-post"


def test_matrix_draws_a_panel_a_head(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix.make([zoo("alibi")], tmp_path / "m.png", length=6)
    *panels, bar = drawn[0].axes
    assert [p.get_title(loc="left") for p in panels] == [f"alibi\nhead {h}" for h in range(4)]
    for h, panel in enumerate(panels):
        shown = panel.get_images()[0].get_array()
        assert shown is not None
        for m in range(6):
            for n in range(6):
                assert np.ma.getmaskarray(shown)[m, n] == (n > m)
                if n <= m:
                    assert shown[m, n] == pytest.approx(-(2.0 ** (-2 * (h + 1))) * (m - n))
    assert "added" in bar.get_ylabel()
    assert {p.get_images()[0].get_clim() for p in panels} == {(-1.25, 0.0)}


def test_matrix_defaults_to_twice_the_trained_length(tmp_path: Path, drawn: list[Figure]) -> None:
    matrix.make([zoo("kerple-log")], tmp_path / "m.png", head=1)
    panel, _ = drawn[0].axes
    assert panel.get_images()[0].get_array().shape == (1024, 1024)  # type: ignore[union-attr]
    assert panel.get_lines()[0].get_ydata().tolist() == [512, 512]  # type: ignore[union-attr]
    assert panel.get_images()[0].get_clim()[0] == pytest.approx(log_formula()(1, 1023))
    matrix.make([zoo("kerple-log")], tmp_path / "m.png", head=0)
    assert drawn[1].axes[0].get_images()[0].get_clim() == (-10, 0)  # and an arrow says there is more
    assert drawn[1].axes[0].get_images()[0].colorbar.extend == "min"  # type: ignore[union-attr]


@pytest.mark.parametrize("length", [1, 4097])
def test_matrix_refuses_what_no_eye_can_see(length: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--length {length}: a heat map has 2 to 4096"):
        matrix.make([zoo("alibi")], tmp_path / "m.png", length=length)


def test_titles() -> None:
    made = zoo("kerple-log,window=64")
    assert title(made) == "kerple-log, window=64"
    made.label = "mine"
    assert title(made) == "mine (kerple-log, window=64)"
    assert wrapped(title(made), 10).splitlines() == ["mine (kerp", "le-log,", "window=64)"]


def test_a_label_is_no_mathematics(tmp_path: Path, drawn: list[Figure]) -> None:
    made = zoo("alibi")
    made.label = "a$x^$ $\\frac{"
    kernels.make([made], tmp_path / "k.png")
    matrix.make([made], tmp_path / "m.png", length=6)
    kernel_reach.make([made], tmp_path / "r.svg", length=100)
    assert ">a$x^$ $\\frac{ (alibi): 2 of 4 heads<" in (tmp_path / "r.svg").read_text(encoding="utf-8")
    assert len(drawn) == 3


def test_a_window_without_distances_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a window of 1 leaves no distance to draw"):
        kernels.make([zoo("alibi"), zoo("alibi,window=1")], tmp_path / "k.png")
    kernels.make([zoo("alibi,window=2")], tmp_path / "k.png")
    kernel_reach.make([zoo("alibi,window=1")], tmp_path / "r.png", length=9)
    matrix.make([zoo("alibi,window=1")], tmp_path / "m.png", length=4)
