"""Tables over seeds, with daggers, and beside the KERPLE paper's own rows."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import pytest

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.figures import curve
from kerple_eval.reports.grid import read_grids
from kerple_eval.reports.tables import paper
from kerple_eval.reports.tables.table import make, uncertain
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.types import UserError
from tests.helpers.handmade import row, write_run
from tests.helpers.markdown import body, header

LOG = {1: 20.0, 2: 20.6, 3: 19.7}
ALIBI = {1: 20.9, 2: 21.3, 3: 20.5}  # about 0.8 above at every seed, though the seeds overlap
ROPE = {1: 20.4, 2: 20.2, 3: 20.6}  # above at two of three


def seeded(scheme: str, values: dict[int, float], length: int = 512, **changes: object) -> list[str]:
    return [
        row(f"{scheme}-s{seed}", length, ppl, **({"scheme": scheme, "seed": seed} | changes))
        for seed, ppl in values.items()
    ]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return write_run(tmp_path, [*seeded("kerple-log", LOG), *seeded("alibi", ALIBI), *seeded("rope", ROPE)])


def paired_t(a: dict[int, float], b: dict[int, float]) -> float:
    """Student's paired t by its definition; the critical value for df = 2, alpha = 0.05 is 4.3027."""
    differences = [a[s] - b[s] for s in a]
    return statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))


def test_seeds_are_one_row(three: Path) -> None:
    assert paired_t(ALIBI, LOG) > 4.3027
    assert 0 < paired_t(ROPE, LOG) < 4.3027
    text = make([three], "markdown", over_seeds=True)
    assert body(text) == {
        "kerple-log": ["**20.1 ± 0.5**"],
        "alibi": ["20.9 ± 0.4†"],
        "rope": ["20.40 ± 0.20"],
    }
    assert statistics.stdev(LOG.values()) == pytest.approx(0.458, abs=1e-3)
    assert "mean ± standard deviation (n - 1) over 3 seeds" in text
    assert "†: kerple-log is significantly better (paired two-sided t-test over seeds, p < 0.05)" in text


def test_another_reference_and_none(three: Path) -> None:
    text = make([three], "markdown", over_seeds=True, reference="rope")
    assert "†: rope is significantly better" in text
    assert paired_t(ALIBI, ROPE) < 4.3027
    assert "†" not in str(body(text))
    with pytest.raises(UserError, match="unknown reference 'alibbi': did you mean 'alibi'"):
        make([three], over_seeds=True, reference="alibbi")


def test_a_better_scheme_bears_no_dagger(tmp_path: Path) -> None:
    """The dagger is for the baseline the reference beats, never for one that beats it."""
    better = {seed: value - 0.8 - 0.01 * seed for seed, value in LOG.items()}
    folder = write_run(tmp_path, [*seeded("kerple-log", LOG), *seeded("t5", better)])
    assert "†" not in str(body(make([folder], "markdown", over_seeds=True)))


def test_other_targets_bear_no_dagger_and_no_bold(tmp_path: Path) -> None:
    lines = [*seeded("kerple-log", LOG), *seeded("alibi", ALIBI, targets_hash="bbbb")]
    text = make([write_run(tmp_path, lines)], "markdown", over_seeds=True)
    assert body(text) == {"kerple-log": ["20.1 ± 0.5"], "alibi": ["20.9 ± 0.4"]}
    assert "different targets across models" in text


def test_one_seed_more_or_less(tmp_path: Path) -> None:
    """Seeds that both have are paired; a single seed is shown without a deviation."""
    lines = [*seeded("kerple-log", LOG), *seeded("alibi", {1: 20.9}), *seeded("t5", {2: 21.4, 3: 20.6})]
    text = make([write_run(tmp_path, lines)], "markdown", over_seeds=True)
    assert body(text)["alibi-s1"] == ["20.90"]
    assert paired_t({2: 21.4, 3: 20.6}, {2: LOG[2], 3: LOG[3]}) > 12.706  # the critical value for df = 1
    assert body(text)["t5"] == ["21.0 ± 0.6†"]
    assert "over 1 to 3 seeds" in text
    assert "fewer seeds" not in text


def test_a_mean_over_fewer_seeds_is_said(tmp_path: Path) -> None:
    lines = [*seeded("kerple-log", LOG), *seeded("kerple-log", {1: 19.0, 3: 19.5}, length=1024)]
    text = make([write_run(tmp_path, lines)], "markdown", over_seeds=True)
    assert "* warning: means over fewer seeds: kerple-log at 1024: 2 of 3 seeds\n" in text
    (picture,) = curve.seed_pictures(read_grids(RunReader([tmp_path])))
    assert picture.note.endswith("means over fewer seeds: kerple-log at 1024: 2 of 3 seeds")


def test_what_is_not_seeds_stands_apart_and_is_said(tmp_path: Path) -> None:
    lines = [*seeded("kerple-log", LOG), *seeded("rope", {1: 20.0, 2: 21.0}, seed=3)]
    text = make([write_run(tmp_path, lines)], "markdown", over_seeds=True)
    assert list(body(text)) == ["kerple-log", "rope-s1", "rope-s2"]
    assert "* rope-s1, rope-s2 are not taken as seeds of one scheme: two have one seed\n" in text


def test_runs_of_one_scheme_at_two_trained_lengths_stay_apart(tmp_path: Path) -> None:
    lines = [
        *seeded("rope", {1: 20.0, 2: 21.0}),
        *[
            row(f"long{s}", 512, 15.0 + s, scheme="rope", seed=s, train_length=1024)
            for s in (1, 2)
        ],
    ]  # fmt: skip
    found = body(make([write_run(tmp_path, lines)], "markdown", over_seeds=True))
    assert list(found) == ["rope", "long"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row("a", 512, 20.0), row("b", 512, 21.0)], "one seed of each scheme; --over-seeds needs two"),
        (
            seeded("rope", {1: 20.0, 2: 21.0}, seed=3),
            "rope-s1, rope-s2 are not taken as seeds of one scheme: two have one seed",
        ),
        (
            seeded("rope", {1: 20.0, 2: 21.0}, seed=""),
            "rope-s1, rope-s2 are not taken as seeds of one scheme: a training seed is not recorded",
        ),
    ],
)
def test_what_is_not_seeds_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make([write_run(tmp_path, lines)], over_seeds=True)


def test_options_that_do_not_go_together(three: Path) -> None:
    with pytest.raises(UserError, match="--reference goes with --over-seeds"):
        make([three], reference="alibi")
    with pytest.raises(UserError, match="csv has one row per model"):
        make([three], "csv", over_seeds=True)
    with pytest.raises(UserError, match="unknown direction --down 'length'"):
        make([three], down="length")


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (23.914, 0.61, "23.9 ± 0.6"), (3.4, 0.2, "3.40 ± 0.20"), (2.74, 0.05, "2.74 ± 0.05"),
        (750.2, 345.7, "750 ± 346"), (5.2171, 0.0967, "5.22 ± 0.10"), (5.2171, 0.0948, "5.22 ± 0.09"),
        (5.2171, 0.0354, "5.217 ± 0.035"), (5.2171, 0.0355, "5.22 ± 0.04"), (14039.2, 2325.4, "14039 ± 2325"),
        (2.5, 0.0, "2.500"), (2.5, None, "2.500"),
        (1.0, 1e-9, "1.0000000000 ± 0.0000000010"),
    ],
)  # fmt: skip
def test_digits_follow_the_uncertainty(value: float, error: float | None, shown: str) -> None:
    assert uncertain(value, error) == shown


# --- The paper's rows ------------------------------------------------------------------------------


def test_the_paper_s_table_3_as_printed() -> None:
    """Some cells of Table 3 (KERPLE, arXiv 2205.09921), read in the paper."""
    rows = {(r.dataset, r.scheme): r for r in paper.rows("paper", "sotu")}
    assert len(rows) == 18
    assert rows["GitHub", "kerple-log"].values[16384] == ("2.75 ± 0.16", False)
    assert rows["ArXiv", "t5"].values[4096] == ("5.32 ± 0.16", True)
    assert rows["OpenWebText2", "rope"].values[2048] == ("62.4 ± 6.1", True)
    assert {r.train_length for r in rows.values()} == {512}
    assert {r.scheme for r in paper.rows("paper", "github")} == {name for _, name in rows}
    assert {r.dataset for r in paper.rows("paper", "github")} == {"GitHub"}
    with paper.SOURCE.open(newline="") as file:
        assert {line["scheme"] for line in csv.DictReader(file)} <= set(SCHEMES)


def test_the_paper_stands_beside_without_being_compared(tmp_path: Path) -> None:
    lines = [row(m, n, p) for m, p in (("kerple-log", 2.8), ("alibi", 2.9)) for n in (512, 16384)]
    folder = write_run(tmp_path, [*lines, row("kerple-log", 512, 2.7, protocol="last:k=4")])
    text = make([folder], "markdown", against="paper:dataset=GitHub")
    assert "| *measured here* |" in text
    assert "| *KERPLE paper, GitHub, 162M, trained at 512* |" in text
    assert "| rope | 3.44 ± 0.20† | 31.3 ± 5.20† |" in text
    assert "not comparable with the measured ones: other text and tokeniser" in text
    assert "**2.800**" in text
    assert not [line for line in text.splitlines() if "±" in line and "**" in line]
    assert text.count("KERPLE paper") == 1  # not beside another protocol
    latex = make([folder], "latex", against="paper:dataset=GitHub")
    assert r"31.3\,$\pm$\,5.20$^\dagger$" in latex
    assert r"\multicolumn{3}{l}{\emph{KERPLE paper, GitHub, 162M, trained at 512}}" in latex


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("papr", "unknown table to compare with 'papr': did you mean 'paper'"),
        ("paper:table=4", "table '4' is not included; these are: 3, 5, 6, 9, 10"),
        ("paper:dataset=GitHb", "did you mean 'GitHub'"),
        ("paper:data=GitHub", "unknown option of paper 'data'"),
    ],
)
def test_a_wrong_name_of_the_paper_is_refused(three: Path, against: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make([three], against=against)


def test_the_paper_needs_its_own_protocol(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [row("a", 512, 2.0, protocol="last:k=4")])
    with pytest.raises(UserError, match="needs perplexities by full-context or kerple-release"):
        make([folder], against="paper")


def test_lengths_down(three: Path, tmp_path: Path) -> None:
    lines = [row(m, n, p + n) for m, p in (("log", 2.0), ("alibi", 3.0)) for n in (512, 1024)]
    text = make([write_run(tmp_path / "r", lines)], "markdown", down="lengths")
    assert "| length | log | alibi |" in text
    assert "| 512\\* | **514.0** | 515.0 |" in text
    latex = make([tmp_path / "r"], "latex", down="lengths")
    assert latex.count(r"\midrule") == 2  # below the head, and below the trained length
    assert header(make([tmp_path / "r"], "markdown")) == ["512\\*", "1024"]
    assert r"\midrule\cmidrule(lr){2-2}" in make([tmp_path / "r"], "latex")
