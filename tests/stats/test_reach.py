"""One-sided tests against SciPy and the formula written out; runs whose reach is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats as scipy_stats

from kerple_eval.cli.main import cli
from kerple_eval.protocols.aligned import Aligned
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.protocols.last import Last
from kerple_eval.records.cell import Cell, FailedCell, write_cell, write_failure
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import write_summary
from kerple_eval.reports.tables import reach as reach_table
from kerple_eval.reports.tables import table
from kerple_eval.stats.answers import Share
from kerple_eval.stats.reach import Reach, Reaches, answers_hold, losses_hold, read_reach
from kerple_eval.stats.significance import below_p, upper_bound
from kerple_eval.types import CellKey, UserError
from tests.helpers.records import failed_header, header, model, write_run_json

SIZES = np.array([10.0, 40.0, 25.0, 31.0, 18.0, 22.0, 27.0])
PROTOCOLS = {
    "full-context": FullContext(),
    "aligned:k=32,every=32": Aligned(k=32, every=32),
    "last:k=8": Last(k=8),
    "yarn:stride=16": FullContext(),
}
LENGTHS = (64, 128, 256, 512)
Loss = Callable[[np.ndarray], np.ndarray]  # of contexts


def test_without_skewness_it_is_students_test() -> None:
    even = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) + 0.3
    for bound in (0.0, 0.5, 3.0):
        expected = scipy_stats.ttest_1samp(even, bound, alternative="less").pvalue
        assert below_p(20 * even, np.full(5, 20.0), bound) == pytest.approx(expected, rel=1e-9)
    upper = scipy_stats.ttest_1samp(even, 0, alternative="less").confidence_interval(0.9).high
    assert upper_bound(20 * even, np.full(5, 20.0), 0.1) == pytest.approx(upper, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_skewness_is_removed_where_it_would_flatter(sign: int) -> None:
    """Hall's (1992) transformation, term by term, of the documents' contributions."""
    rng = np.random.default_rng(3)
    sums = SIZES * sign * rng.exponential(1.0, len(SIZES))
    n, total = len(SIZES), SIZES.sum()
    ratio = sums.sum() / total
    residuals = sums - ratio * SIZES
    outer = residuals / (1 - SIZES / total)
    error = math.sqrt((n - 1) / n * (outer**2).sum()) / total
    g = float(scipy_stats.skew(residuals, bias=False))
    freedom = total**2 / (SIZES**2).sum() - 1
    bound = ratio + 1.5 * error
    t = (ratio - bound) / error
    y = t / math.sqrt(n)
    hall = math.sqrt(n) * (y + g / 3 * y**2 + (g / 3) ** 2 / 3 * y**3 + g / (6 * n))
    plain, straight = (float(scipy_stats.t.cdf(x, freedom)) for x in (t, hall))
    assert (straight > plain) == (g > 0)
    assert below_p(sums, SIZES, bound) == pytest.approx(max(plain, straight), rel=1e-9)
    for alpha in (0.01, 0.05, 0.4):
        assert below_p(sums, SIZES, upper_bound(sums, SIZES, alpha)) == pytest.approx(alpha, rel=1e-9)


def test_what_does_not_vary_is_known() -> None:
    assert below_p(0.5 * SIZES, SIZES, 0.6) == 0
    assert below_p(0.5 * SIZES, SIZES, 0.5) == 1
    assert upper_bound(0.0 * SIZES, SIZES) == 0


def test_every_shorter_length_must_be_passed() -> None:
    """The union of the pairs' hypotheses, each by SciPy's test; Bonferroni where it is lost."""
    rng = np.random.default_rng(11)
    margin = math.log(1.01)
    for _ in range(60):
        counts = np.full(9, 50)
        steps = rng.normal(rng.choice([0, 0.004, 0.01, 0.03]), 0.006, (4, 9))
        losses = np.vstack([np.full(9, 2.0), 2.0 + np.cumsum(steps - steps.mean(axis=0) / 2, axis=0)])
        losses += (losses - losses.mean(axis=1, keepdims=True)) * -2 * (rng.random() < 0.5)
        found = losses_hold([(64 << i, counts * row) for i, row in enumerate(losses)], counts)
        for j in range(1, 5):
            changes = [losses[j] - losses[i] for i in range(j)]
            above = max(upper_bound(counts * d, counts) for d in changes)
            below = max(-upper_bound(-counts * d, counts, 0.05 / j) for d in changes)
            expected = "holds" if above < margin else "lost" if below > margin else "not enough documents"
            assert found[j - 1].outcome == expected
            if expected != "holds":
                assert len(found) == j
                break


def test_answers_need_twenty_documents() -> None:
    def of(*counts: tuple[int, int]) -> list[str]:
        shares = [(64 << i, Share(n, k, n, k, 0.0)) for i, (k, n) in enumerate(counts)]
        return [step.outcome for step in answers_hold(shares)]

    assert 0.856**19 > 0.05 > 0.856**20
    assert of((20, 20), (20, 20)) == ["holds", "holds"]
    assert of((19, 19), (20, 20)) == ["not enough documents"]
    assert of((100, 100), (90, 100), (100, 100)) == ["holds", "not enough documents"]
    assert of((100, 100), (70, 100)) == ["holds", "lost"]


def run_of(
    folder: Path, losses: dict[str, Loss], *, protocol: str = "full-context", documents: int = 8,
    lengths: tuple[int, ...] = LENGTHS, failing: tuple[int, ...] = (),
) -> Path:  # fmt: skip
    """Models whose loss is a function of the context, with a little of each document and target."""
    tokens = 1025
    longest = max(lengths) if protocol.startswith("aligned") else None
    reduction = "mean over windows" if protocol.startswith("yarn") else None
    rng = np.random.default_rng(5)
    own = rng.normal(0, 0.002, (documents, 600))
    names = [(f"d{i}", tokens, f"sha{i}") for i in range(documents)]
    write_run_json(
        folder, models=[model(name) for name in losses], tasks=["book"],
        protocols=[{"protocol": protocol, "lengths": list(lengths), "longest": longest}
                   | ({"reduction": reduction} if reduction else {})],
    )  # fmt: skip
    cells = []
    for name, loss in losses.items():
        for length in lengths:
            key = CellKey(name, "book", protocol, length, longest)
            if length in failing:
                write_failure(folder, FailedCell(key, failed_header(train_length=64), "no"))
                continue
            windows = PROTOCOLS[protocol].plan(tokens, length, max(lengths)) * documents
            index = np.repeat(np.arange(documents), len(windows) // documents)
            rows = []
            for i, w in zip(index, windows, strict=True):
                context = np.arange(w.first_target, w.stop + 1) - w.start
                rows.append((2 + 0.3 * i + loss(context) + own[i][context]).astype(np.float32))
            cell = Cell(key, header(names, train_length=64, reduction=reduction), index, windows, rows, None)
            write_cell(folder, cell)
            cells.append(cell)
    write_summary(folder, [cell.summary() for cell in cells])
    return folder


def up_to_128(context: np.ndarray) -> np.ndarray:
    """Gains 0.1 nats a doubling up to 128 tokens; beyond 256 it breaks."""
    return -0.1 * np.log2(np.minimum(context, 128)) + 0.3 * (context > 256)


def ten_tokens(context: np.ndarray) -> np.ndarray:
    return -0.5 * np.log2(np.minimum(context, 10))


def ever_better(context: np.ndarray) -> np.ndarray:
    return -0.1 * np.log2(context)


MODELS: dict[str, Loss] = {"breaks": up_to_128, "ten": ten_tokens, "better": ever_better}


@pytest.mark.parametrize("protocol", ["full-context", "aligned:k=32,every=32"])
def test_runs_with_a_known_answer(protocol: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", MODELS, protocol=protocol)
    found = {one.model: one for one in read_reach(RunReader([run])).found}
    answer = {
        m: (r.holds_to, r.holds_at_least, r.used and r.used.length, r.uses_at_least) for m, r in found.items()
    }
    assert answer["better"] == (512, True, 512, True)
    assert answer["ten"] == (512, True, None, False)  # full-context: cold starts alone make it better
    assert answer["breaks"] == (256, False, 256, False)  # over contexts of 65 to 128
    gain = found["better"].gains[-1]
    if protocol == "full-context":
        contexts = np.arange(129, 257)  # of 512 after 256: those of the upper half, and 256 more
        expected = float(np.mean(0.1 * np.log2((contexts + 256) / contexts)))
        assert gain.nats.estimate == pytest.approx(expected, abs=2e-3)
        assert gain.targets == 8 * 2 * 128
    assert found["breaks"].steps[-1].outcome == "lost"


def test_models_asked_for_alone(tmp_path: Path) -> None:
    run = str(run_of(tmp_path / "r", MODELS))
    every, two, none = (
        CliRunner().invoke(cli, ["reach", run, "--format", "csv", *words])
        for words in ([], ["--model", "ten", "--model", "better"], ["--model", "tne"])
    )
    head, *rows = every.stdout.splitlines()
    assert two.stdout.splitlines() == [head, *(row for row in rows if ",breaks," not in row)]
    assert len(rows) == 3
    assert none.exit_code == 2
    assert "unknown model 'tne': did you mean 'ten'?" in none.stderr


def test_few_documents_are_an_answer(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", {"m": ever_better}, documents=4)
    assert "not enough documents: 4, and" in reach_table.make([run])
    row = dict(zip(*(line.split(",") for line in reach_table.make([run], "csv").splitlines()), strict=False))
    assert (row["holds_to"], row["uses"]) == ("", "")
    one = read_reach(RunReader([run])).found[0]
    assert (one.holds_to, one.used, one.holds_at_least) == (None, None, False)


def test_it_goes_no_further_than_a_failed_cell(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", {"m": ever_better}, failing=(256,))
    one = read_reach(RunReader([run])).found[0]
    assert (one.lengths, one.holds_to) == ((64, 128), 128)
    assert not one.holds_at_least
    assert not one.uses_at_least
    assert "256 has no finished cell" in reach_table.make([run])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": (64,)}, "one finished length, 64, and two lengths are needed"),
        ({"protocol": "last:k=8"}, "64 and 128 were scored on different targets"),
        ({"failing": LENGTHS}, "no finished cell at 64, the shortest length, and two lengths are needed"),
        ({"failing": (64,)}, "no finished cell at 64, the shortest length, and two lengths are needed"),
        ({"protocol": "yarn:stride=16"}, "its number is another tool's (mean over windows), and the tests"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, object], words: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", {"m": ten_tokens}, **options)  # type: ignore[arg-type]
    done = CliRunner().invoke(cli, ["reach", str(run)])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_columns_of_the_table_the_page_and_marks_of_the_curve(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", MODELS)
    lines = [line.split() for line in table.make([run], reach=True).splitlines()]
    assert next(line for line in lines if line[:1] == ["model"])[-3:] == ["holds", "to", "uses"]
    assert next(line for line in lines if line[:1] == ["breaks"])[-2:] == ["256", "256"]
    assert next(line for line in lines if line[:1] == ["better"])[-6:] == ["at", "least", "512"] * 2
    out = tmp_path / "p.md"
    done = CliRunner().invoke(cli, ["report", str(run), "--out", str(out)])
    assert done.exit_code == 0, done.output
    page = out.read_text()
    assert "How far it reaches" in page
    assert "breaks holds to 256" in page
    with pytest.raises(UserError, match="--reach adds columns"):
        table.make([run], down="lengths", reach=True)
    with pytest.raises(UserError, match="expected a share of perplexity in percent"):
        reach_table.make([run], margin="0.5")
    assert "20 %" in reach_table.make([run], margin="20%")


def test_a_table_says_what_is_left_out_of_its_columns(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "r", MODELS), run_of(tmp_path / "y", MODELS, protocol="yarn:stride=16")]
    plain, weighted = table.make(runs, reach=True).split("yarn:stride=16: ")
    assert "uses" in plain
    assert "how far it reaches" not in plain
    assert "uses" not in weighted
    assert weighted.count("how far it reaches: breaks, ten, better: its number is another tool's (") == 1


def test_labels_are_given_to_models_that_were_run(tmp_path: Path) -> None:
    """As in the tables: a cell that was never run takes no label."""
    none, some = (run_of(tmp_path / name, {"m": ever_better}) for name in "ab")
    for file in (none / "cells").iterdir():
        file.unlink()
    assert [one.model for one in read_reach(RunReader([none, some])).found] == ["m"]


@pytest.mark.parametrize(
    ("documents", "effective", "said"), [(60, 60, True), (100, 90, False), (100, 50, True)]
)
def test_how_often_a_claim_goes_too_far_is_said(documents: int, effective: float, said: bool) -> None:
    """But where it is near the level: 100 documents of nearly one size."""
    one = Reach("m", "book", "full-context", (64, 128), documents=documents, effective=effective)
    (made,) = reach_table.tables(Reaches([one], []))
    assert any("went too far in 4 to" in note for note in made.notes) == said
