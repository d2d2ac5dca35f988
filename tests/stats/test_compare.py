"""Comparisons from run directories: what is paired with what, what is said, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kerple_eval.records.cell import FailedCell, write_failure
from kerple_eval.records.reader import RunReader
from kerple_eval.reports.tables.compare import make
from kerple_eval.reports.tables.intervals import make as render_intervals
from kerple_eval.stats.compare import Comparison, compare, corrected
from kerple_eval.stats.groups import read_tables, stem
from kerple_eval.stats.intervals import Interval, ratio_interval
from kerple_eval.stats.seeds import crossed
from kerple_eval.stats.significance import holm, seed_test, sign_flip_p
from tests.helpers.command import Cli, refusal
from tests.helpers.made_cells import cell, drawn, shifted, write_cells
from tests.helpers.records import PRECISION, failed_header

SIZES = [30, 12, 50, 24, 41, 18, 33, 27]
TEXT = drawn(0, SIZES)
N = len(SIZES)


def noise(seed: int, mean: float, spread: float = 0.05) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).standard_normal(N)).tolist()


@pytest.fixture
def seeded(tmp_path: Path) -> Path:
    """Three seeds of log and alibi, one rope; alibi is worse by 0.2 nats, give and take."""
    cells = [cell(f"log-s{k}", shifted(TEXT, noise(k, 0.0)), seed=k) for k in (1, 2, 3)]
    cells += [
        cell(f"alibi-s{k}", shifted(TEXT, noise(10 + k, 0.2)), scheme="alibi", seed=k) for k in (1, 2, 3)
    ]
    cells.append(cell("rope", shifted(TEXT, noise(20, 0.0)), scheme="rope", seed=1))
    return write_cells(tmp_path / "seeded", cells)


def test_seeds_of_one_scheme_are_one_group(seeded: Path) -> None:
    (table,) = read_tables(RunReader([seeded]))
    assert [(g.name, g.seeds) for g in table.groups] == [
        ("log", [1, 2, 3]), ("alibi", [1, 2, 3]), ("rope", [1]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("log-s2", "log"),
        ("log-seed12", "log"),
        ("log_2", "log"),
        ("log", "log"),
        ("log-code", "log-code"),
        ("bias-1", "bias"),
        ("transformers_3", "transformers"),
        ("cross1", "cross"),
        ("log.s3", "log"),
    ],
)
def test_a_label_without_its_seed(label: str, expected: str) -> None:
    assert stem(label) == expected


def test_what_is_not_a_seed_stays_apart(tmp_path: Path) -> None:
    """Another text behind the label, a seed twice, a seed unknown, another scheme."""
    cells = [
        cell("log", TEXT, seed=1), cell("log-s2", TEXT, seed=2), cell("log-code", TEXT, seed=3),
        cell("rope-1", TEXT, scheme="rope", seed=1), cell("rope-2", TEXT, scheme="rope", seed=1),
        cell("t5-1", TEXT, scheme="t5", seed=None), cell("t5-2", TEXT, scheme="t5", seed=None),
        cell("log-s3", TEXT, scheme="other", seed=3),
    ]  # fmt: skip
    (table,) = read_tables(RunReader([write_cells(tmp_path / "run", cells)]))
    groups = [[m.label for m in g.members] for g in table.groups]
    assert groups == [["log", "log-s2"], ["log-code"], ["rope-1"], ["rope-2"], ["t5-1"], ["t5-2"], ["log-s3"]]


def test_one_model_a_side_is_over_documents(tmp_path: Path) -> None:
    by = noise(1, 0.1)
    folder = write_cells(tmp_path / "run", [cell("a", shifted(TEXT, by), scheme="x"), cell("b", TEXT)])
    (found,) = compare(read_tables(RunReader([folder]))[0], "b")
    losses = [np.asarray(v, dtype=np.float32).sum(dtype=np.float64) for v in TEXT.values()]
    moved = [np.asarray(v, dtype=np.float32).sum(dtype=np.float64) for v in shifted(TEXT, by).values()]
    d, counts = np.subtract(moved, losses), np.array(SIZES)
    expected = ratio_interval(d, counts)
    assert found.difference == expected == found.over_documents
    assert found.mean_difference == pytest.approx(np.dot(by, counts) / counts.sum(), abs=1e-6)
    assert found.p_documents == sign_flip_p(d)
    assert found.p_corrected == found.p_documents  # one comparison
    assert found.worse_on == sum(x > 0 for x in by)
    assert (found.pooled, found.over_seeds, found.seeds) == (None, None, ())
    assert found.verdict.startswith("worse: perplexity +")
    assert found.note is not None
    (reverse,) = compare(read_tables(RunReader([folder]))[0], "a")
    assert reverse.difference is not None
    assert reverse.difference.low == pytest.approx(-expected.high, rel=1e-12)
    assert reverse.verdict.startswith("better: perplexity -")


def test_seeds_pool_with_documents(seeded: Path) -> None:
    table = read_tables(RunReader([seeded]))[0]
    alibi, rope = compare(table, "log")
    log, other = (g for g in table.groups[:2])
    mine, theirs = (np.stack([c.sums.sums for c in g.at(64)]) for g in (other, log))
    counts = log.at(64)[0].sums.counts
    pooled = crossed(mine - theirs, counts)
    assert alibi.seeds == (1, 2, 3)
    assert alibi.pooled == pooled
    assert alibi.difference == pooled.interval
    powers = [[math.exp(c.sums.mean) for c in g.at(64)] for g in (other, log)]
    assert alibi.over_seeds == seed_test(*powers)
    assert alibi.dagger
    assert alibi.side is not None
    assert alibi.side.ppl is not None
    assert alibi.side.ppl.std == pytest.approx(np.std(powers[0], ddof=1), rel=1e-12)
    assert rope.seeds == ()
    assert rope.pooled is None
    assert "fewer than two seeds in common" in (rope.note or "")
    p = [alibi.p_pooled, rope.p_documents]
    assert [alibi.p_corrected, rope.p_corrected] == holm([x for x in p if x is not None])
    assert alibi.p_pooled is not None
    assert alibi.p_pooled < 0.05
    assert pooled.interval.low > 0 or pooled.interval.high < 0
    assert rope.verdict.startswith("no difference shown")


def test_a_seeds_label_names_its_group(seeded: Path) -> None:
    assert make([seeded], "log-s2", "csv") == make([seeded], "log", "csv")


def test_csv_holds_every_figure(seeded: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(make([seeded], "log", "csv"))))
    assert [(r["model"], r["dagger"], r["seeds"]) for r in rows] == [
        ("alibi", "yes", "1 2 3"),
        ("rope", "no", ""),
    ]
    found = compare(read_tables(RunReader([seeded]))[0], "log")[0]
    assert found.difference is not None
    assert float(rows[0]["low"]) == found.difference.low
    assert float(rows[0]["p_seeds"]) == (found.over_seeds.p if found.over_seeds else None)
    assert rows[1]["p_seeds"] == ""


def test_text_and_markdown_say_it(seeded: Path) -> None:
    text = make([seeded], "log")
    assert "alibi†" in text
    assert "8 documents, 235 targets" in text
    assert "corrected for 2 comparisons" in text
    lines = [line for line in make([seeded], "log", "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["log", "alibi†", "rope"]


def test_few_documents_are_said_plainly(tmp_path: Path) -> None:
    few = dict(list(TEXT.items())[:4])
    cells = [cell("a", shifted(few, [0.5] * 4), scheme="x"), cell("b", few)]
    folder = write_cells(tmp_path / "few", cells)
    (found,) = compare(read_tables(RunReader([folder]))[0], "b")
    assert found.mean_difference == pytest.approx(0.5, abs=1e-6)
    assert (found.difference, found.p_documents, found.p_corrected) == (None, None, None)
    assert "not enough documents: 4, and an interval needs 5" in make([folder], "b")
    five = dict(list(TEXT.items())[:5])
    cells = [cell("a", shifted(five, [0.5, 0.4, 0.5, 0.6, 0.5]), scheme="x"), cell("b", five)]
    (found,) = compare(read_tables(RunReader([write_cells(tmp_path / "five", cells)]))[0], "b")
    assert found.p_documents == 0.0625
    assert found.verdict.startswith("not enough documents: 5 allow no comparisons, not 1; perplexity +")


def test_a_difference_of_rounding_is_said_to_be_equal(tmp_path: Path) -> None:
    cells = [
        cell("same", TEXT, scheme="x"),
        cell("near", shifted(TEXT, noise(1, 0.0, 1e-6)), scheme="y"),
        cell("apart", shifted(TEXT, noise(2, 0.0, 1e-4)), scheme="z"),
        cell("b", TEXT),
    ]
    folder = write_cells(tmp_path / "run", cells)
    verdicts = {c.model: c.verdict for c in compare(read_tables(RunReader([folder]))[0], "b")}
    assert verdicts["same"] == verdicts["near"] == "equal: perplexity within 0.001 %"
    assert verdicts["apart"].startswith("no difference shown")
    lines = {line.split()[0]: line for line in make([folder], "b").splitlines() if line.strip()}
    assert "0.0000 to 0.0000" in lines["near"]
    assert "+0.0000" not in lines["near"]
    assert "-0.0000" not in lines["near"]


def test_fewer_comparisons_are_corrected_for_less(tmp_path: Path, invoke: Cli) -> None:
    """Eight documents allow six comparisons: eight are too many, four at one length or one model are not."""
    cells = [cell("b", TEXT, length=n) for n in (64, 128)]
    cells += [
        cell(name, shifted(TEXT, [0.1 * k] * N), length=n, scheme=name)
        for k, name in enumerate("vwxy", 1)
        for n in (64, 128)
    ]
    folder = str(write_cells(tmp_path / "run", cells))
    every = invoke("compare", folder, "--against", "b").stdout
    assert every.count("not enough documents: 8 allow 6 comparisons, not 8") == 8
    by_length = invoke("compare", folder, "--against", "b", "--length", "128").stdout
    assert by_length.count("worse: perplexity") == 4
    assert "corrected for 4 comparisons" in by_length
    one = invoke("compare", folder, "--against", "b", "--model", "w", "--model", "y").stdout
    assert [line.split()[0] for line in one.splitlines() if "worse: " in line] == ["w", "y"] * 2
    assert "unknown model 'z'" in refusal(invoke("compare", folder, "--against", "b", "--model", "z"))
    assert "unknown length '512'" in refusal(invoke("compare", folder, "--against", "b", "--length", "512"))
    alone = invoke("compare", folder, "--against", "b", "--model", "b")
    assert "nothing to compare b with" in refusal(alone)


def test_models_and_lengths_asked_for_alone(tmp_path: Path, invoke: Cli) -> None:
    """Rows and what failed; a seed that has no finished cell belongs to its scheme."""
    cells = [cell(name, TEXT, length=n, scheme=name) for name in ("b", "w") for n in (64, 128)]
    cells += [cell(f"v-s{k}", TEXT, length=64, scheme="v", seed=k) for k in (1, 2)]
    folder = write_cells(tmp_path / "run", [*cells, cell("v-s3", TEXT, length=64, scheme="v", seed=3)])
    (unfinished,) = (folder / "cells").glob("v-s3--*")
    unfinished.unlink()
    for label, seed, length in (("w", 1, 256), ("v-s1", 1, 128), ("v-s3", 3, 64)):
        key = replace(cells[0].key, model=label, length=length)
        failed = failed_header(scheme=label[0], seed=seed, train_length=64)
        write_failure(folder, FailedCell(key, failed, "no"))
    run = json.loads((folder / "run.json").read_text())
    run["specification"]["protocols"][0]["lengths"].append(256)
    (folder / "run.json").write_text(json.dumps(run))

    def told(*words: str) -> tuple[set[str], set[str], list[str]]:
        lines = [line.split() for line in invoke(*words).stdout.splitlines()]
        rows = [line for line in lines if len(line) > 3 and line[1] in ("64", "128")]
        failed = [" ".join(line[:3]) for line in lines if line[-1:] == ["failed"]]
        return {row[0] for row in rows}, {row[1] for row in rows}, failed

    intervals, against = ["intervals", str(folder)], ["compare", str(folder), "--against", "b"]
    everything = ["v-s1 at 128", "v-s3 at 64", "w at 256"]
    assert sorted(told(*intervals)[2]) == sorted(told(*against)[2]) == everything
    assert told(*intervals, "--model", "w") == ({"w"}, {"64", "128"}, ["w at 256"])
    assert told(*intervals, "--model", "v-s1")[2] == ["v-s1 at 128", "v-s3 at 64"]  # the scheme v
    assert told(*intervals, "--length", "128") == ({"b", "w"}, {"128"}, ["v-s1 at 128"])
    assert told(*against, "--model", "w") == ({"b", "w"}, {"64", "128"}, ["w at 256"])
    assert told(*against, "--length", "64")[1:] == ({"64"}, ["v-s3 at 64"])
    assert "unknown model 'z'" in refusal(invoke(*intervals, "--model", "z"))
    nothing = invoke(*intervals, "--model", "v", "--length", "128")
    assert "no finished cell of v at 128" in refusal(nothing)


def test_other_targets_are_refused_in_one_line(tmp_path: Path, invoke: Cli) -> None:
    other = drawn(0, [*SIZES[:-1], SIZES[-1] + 3])
    folder = write_cells(tmp_path / "run", [cell("a", other, scheme="x"), cell("b", TEXT)])
    line = refusal(invoke("compare", str(folder), "--against", "b"))
    assert "a and b were not scored on the same targets at length 64" in line
    more = [
        cell("a", other, scheme="x"),
        cell("c", shifted(TEXT, noise(2, 0.1)), scheme="y"),
        cell("b", TEXT),
    ]
    text = make([write_cells(tmp_path / "more", more)], "b")
    assert "not scored on the same targets" in text
    assert "p Holm" in text  # c is compared all the same


def test_same_targets_under_other_names_pair_by_order(tmp_path: Path) -> None:
    """Names do not enter the hash: documents pair in the order that it goes by."""
    made = cell("a", shifted(TEXT, noise(1, 0.1)), scheme="x")
    documents = tuple(replace(document, name="e" + document.name) for document in made.header.documents)
    renamed = replace(made, header=replace(made.header, documents=documents))
    folders = [write_cells(tmp_path / "one", [renamed]), write_cells(tmp_path / "two", [cell("b", TEXT)])]
    (found,) = compare(read_tables(RunReader(folders))[0], "b")
    assert found.mean_difference == pytest.approx(np.dot(noise(1, 0.1), SIZES) / sum(SIZES), abs=1e-6)


def test_bad_input(seeded: Path, tmp_path: Path, invoke: Cli) -> None:
    run = str(seeded)
    assert "did you mean 'log'" in refusal(invoke("compare", run, "--against", "lgo"))
    assert "no finished cell of nothing" in refusal(
        invoke("compare", run, "--against", "log", "--task", "nothing")
    )
    assert "unknown table format" in refusal(invoke("intervals", run, "--format", "pdf"))
    assert "--against" in refusal(invoke("compare", run))
    assert "level" in refusal(invoke("intervals", run, "--level", "95"))
    alone = write_cells(tmp_path / "alone", [cell("b", TEXT)])
    assert "nothing to compare b with" in refusal(invoke("compare", str(alone), "--against", "b"))
    empty = write_cells(tmp_path / "empty", [])
    assert "no finished cell" in refusal(invoke("intervals", str(empty)))


def test_two_runs_with_a_model_of_one_name(tmp_path: Path) -> None:
    one = write_cells(tmp_path / "one", [cell("a", TEXT)])
    two = write_cells(tmp_path / "two", [cell("a", shifted(TEXT, noise(3, 0.3)))])
    (table,) = read_tables(RunReader([one, two]))
    assert [g.name for g in table.groups] == ["a", "a (two)"]
    assert "worse" in make([one, two], "a")


def test_intervals_by_cell_over_seeds_and_pooled(seeded: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render_intervals([seeded], "csv"))))
    assert [r["over"] for r in rows].count("documents") == 7
    assert [r["model"] for r in rows if r["over"] == "seeds"] == ["log (3 seeds)", "alibi (3 seeds)"]
    pooled = [r for r in rows if r["over"] == "seeds and documents"]
    assert len(pooled) == 2
    sums = np.stack([c.sums.sums for c in read_tables(RunReader([seeded]))[0].groups[0].at(64)])
    expected = crossed(sums, np.array(SIZES))
    assert float(pooled[0]["nll_low"]) == pytest.approx(expected.interval.low, rel=1e-12)
    assert float(pooled[0]["ppl_high"]) == pytest.approx(math.exp(expected.interval.high), rel=1e-12)
    assert float(pooled[0]["seed_variance"]) == pytest.approx(expected.seed, rel=1e-9)
    text = render_intervals([seeded])
    assert "pooled:" in text
    assert "±" in text


def test_a_run_that_stopped_when_sure_says_so(tmp_path: Path) -> None:
    folder = write_cells(
        tmp_path / "run", [cell("a", TEXT), cell("b", TEXT, scheme="x")], precision=PRECISION
    )
    for text in (make([folder], "b"), render_intervals([folder])):
        assert "documents were added until it was sure" in text


def test_identical_models(tmp_path: Path) -> None:
    folder = write_cells(tmp_path / "run", [cell("a", TEXT, scheme="x"), cell("b", TEXT)])
    (found,) = compare(read_tables(RunReader([folder]))[0], "b")
    assert found.p_documents == 1.0
    assert found.effect is None
    assert found.verdict == "equal: perplexity within 0.001 %"


def test_more_comparisons_than_the_flips_allow_are_said() -> None:
    """9999 drawn flips give no p below 0.0002: 250 times that is 0.05."""
    span = Interval(0.1, 0.09, 0.11, 0.95, "delta", 0.005)
    found = Comparison("m", "r", 64, documents=100, difference=span, p_documents=0.0002)
    every = corrected([found] * 250)
    assert every[0].verdict.startswith(
        "too many comparisons: 9999 flips allow 249 comparisons, not 250; perp"
    )
    assert corrected([found] * 249)[0].verdict.startswith("worse: ")


def test_a_model_whose_cells_failed_is_not_called_unknown(tmp_path: Path, invoke: Cli) -> None:
    folder = write_cells(tmp_path / "run", [cell("a", TEXT), cell("bad", TEXT)])
    for one in RunReader([folder]).cells():
        if one[1].key.model == "bad":
            write_failure(folder, FailedCell(one[1].key, failed_header(train_length=64, seed=1), "no"))
    for words in (["intervals", "--model", "bad"], ["compare", "--against", "bad"]):
        line = refusal(invoke(words[0], str(folder), *words[1:]))
        assert "'bad' has no finished cell: it failed at 64" in line
