"""Runs of several machines joined: the bytes of one run of everything, conflicts named, nothing half done."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kerple_eval
from kerple_eval.records.cell import Cell, FailedCell, file_name, read_cell, write_cell, write_failure
from kerple_eval.records.merging import merge
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers.command import Cli, contents, refusal
from tests.helpers.dying import content, deaths
from tests.helpers.records import PRECISION

PROTOCOLS = ["full-context", "aligned:k=4"]


@pytest.fixture(scope="module")
def whole(
    models: dict[str, str], library: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, kerple_eval.Run]:
    """One run of two models and protocols at two lengths, and its parts as machines would hold them."""
    root = tmp_path_factory.mktemp("parts")
    two = [models["alibi"], models["rope"]]

    def run(name: str, which: list[str], protocols: list[str], **more: object) -> kerple_eval.Run:
        options = {"text": library, "lengths": [16, 32], "keep_short": True, "documents": 6} | more
        return kerple_eval.evaluate(which, protocols=protocols, out=root / name, **options)  # type: ignore[arg-type]

    return {
        "all": run("all", two, PROTOCOLS),
        "alibi": run("alibi", two[:1], PROTOCOLS),
        "rope": run("rope", two[1:], PROTOCOLS),
        "full": run("full", two, PROTOCOLS[:1]),
        "aligned": run("aligned", two, PROTOCOLS[1:]),
        "short": run("short", two, PROTOCOLS[:1], lengths=[16]),
        "long": run("long", two, PROTOCOLS[:1], lengths=[32]),
        "fewer": run("fewer", two, PROTOCOLS[:1], documents=3),
        "double": run("double", two[:1], PROTOCOLS[:1], dtype="float64"),
        "longest": run("longest", two, PROTOCOLS[1:], lengths=[16, 64]),
        "answers": kerple_eval.evaluate(
            two[0], tasks="copy:samples=2,depths=2", lengths=[64], out=root / "answers"
        ),
        "answers-long": kerple_eval.evaluate(
            two, tasks="copy:samples=2,depths=2", lengths=[64, 80], out=root / "answers-long"
        ),
    }


def folders(whole: dict[str, kerple_eval.Run], *names: str) -> list[Path]:
    return [whole[name].folder for name in names]


@pytest.mark.parametrize("parts", [("alibi", "rope"), ("full", "aligned"), ("alibi", "full", "all", "rope")])
def test_parts_make_the_whole(
    whole: dict[str, kerple_eval.Run], parts: tuple[str, ...], tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    said = merge(folders(whole, *parts), tmp_path / "out")
    joined, wanted = open_run(tmp_path / "out"), whole["all"]
    assert (tmp_path / "out" / "summary.csv").read_bytes() == (wanted.folder / "summary.csv").read_bytes()
    assert joined.specification == wanted.specification
    pd.testing.assert_frame_equal(joined.losses(), wanted.losses())
    assert said == f"8 cells of {len(parts)} runs in {tmp_path / 'out'}/summary.csv"
    assert joined.provenance.merged == parts
    assert [session.run for session in joined.provenance.sessions] == list(parts)
    assert not passes


def test_lengths_join_and_the_run_goes_on(
    whole: dict[str, kerple_eval.Run], models: dict[str, str], library: str, tmp_path: Path,
    passes: list[tuple[int, ...]],
) -> None:  # fmt: skip
    """The command of everything goes on in the joined directory and computes what is missing only."""
    said = merge(folders(whole, "long", "short", "alibi"), tmp_path / "out")
    assert said.startswith("6 cells of 3 runs")
    assert said.endswith("; 2 more of the joined specification are in none of them")
    run = kerple_eval.evaluate(
        [models["alibi"], models["rope"]], protocols=PROTOCOLS, text=library, lengths=[16, 32],
        keep_short=True, documents=6, out=tmp_path / "out",
    )  # fmt: skip
    assert (run.folder / "summary.csv").read_bytes() == (whole["all"].folder / "summary.csv").read_bytes()
    computed = [c.key for c in run.cells() if c.key.protocol == "aligned:k=4" and c.key.model == "rope"]
    assert len(computed) == 2
    assert {shape[1] for shape in passes} <= {16, 32}


def test_made_tasks_join_by_model_and_length(whole: dict[str, kerple_eval.Run], tmp_path: Path) -> None:
    merge(folders(whole, "answers", "answers-long"), tmp_path / "out")
    joined = open_run(tmp_path / "out")
    assert len(joined.answers()) == 2 * 2 * 2 * 2
    (task,) = joined.specification.tasks
    assert list(task.tokens_sha256["ids 0..255 never None"]) == ["64", "80"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("full", "fewer"), r"fewer cannot join .*full: task text: selection.count was 6 in .* and is 3 in"),
        (("alibi", "double"), r"double cannot join .*alibi: dtype was 'float32' in .* and is 'float64' in"),
        (("aligned", "longest"), r"protocol aligned:k=4: longest was 32 in .*aligned and is 64 in .*longest"),
        (("full", "full"), "full is given twice"),
        (("full",), "two run directories or more"),
    ],
)
def test_conflicts(
    whole: dict[str, kerple_eval.Run], parts: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        merge(folders(whole, *parts), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_weights_under_one_label(whole: dict[str, kerple_eval.Run], tmp_path: Path) -> None:
    other = shutil.copytree(whole["alibi"].folder, tmp_path / "other")
    data = json.loads((other / "run.json").read_text())
    data["specification"]["models"][0]["weights_sha256"] = "0" * 64
    (other / "run.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="model alibi: weights_sha256 was"):
        merge([whole["alibi"].folder, other], tmp_path / "out")


def test_cells_that_grew(whole: dict[str, kerple_eval.Run], tmp_path: Path) -> None:
    sure = shutil.copytree(whole["alibi"].folder, tmp_path / "sure")
    data = json.loads((sure / "run.json").read_text())
    data["specification"]["precision"] = PRECISION
    (sure / "run.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="sure: its cells hold as many documents as --precision needed"):
        merge([whole["rope"].folder, sure], tmp_path / "out")


def changed(run: kerple_eval.Run, to: Path, **changes: object) -> Path:
    """A copy of the run whose last cell differs."""
    shutil.copytree(run.folder, to)
    cell = list(run.cells())[-1]
    assert isinstance(cell, Cell)
    write_cell(to, replace(cell, **changes))  # type: ignore[arg-type]
    return to


def test_equal_cells_must_agree(whole: dict[str, kerple_eval.Run], tmp_path: Path, invoke: Cli) -> None:
    run = whole["alibi"]
    cell = list(run.cells())[-1]
    assert isinstance(cell, Cell)
    losses = [row.copy() for row in cell.losses]
    losses[-1][-1] += np.float32(1e-3)
    apart = changed(run, tmp_path / "apart", losses=losses)
    words = ["merge", str(run.folder), str(apart), "--out", str(tmp_path / "out")]
    line = refusal(invoke(*words))
    assert "alibi, text, aligned:k=4 at 32: their losses differ by up to 0.001 nats" in line
    assert refusal(invoke(*words, "--within", "0.0005")) == line
    assert "nan is not a finite number" in refusal(invoke(*words, "--within", "nan"))
    done = invoke(*words, "--within", "0.002")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "summary.csv").read_bytes() == (run.folder / "summary.csv").read_bytes()
    windows = [replace(w, first_target=w.first_target + 1) for w in cell.windows]
    other = changed(run, tmp_path / "other", windows=windows, losses=[row[1:] for row in cell.losses])
    assert "they scored other windows" in refusal(invoke(*words[:2], str(other), *words[3:4], "x"))
    marker = replace(cell.header.first_token, rule="prefix", id=0)
    marked = changed(run, tmp_path / "marked", header=replace(cell.header, first_token=marker))
    line = refusal(invoke(*words[:2], str(marked), *words[3:4], "x"))
    assert "first_token.rule was 'prefix' in it and is 'never' in run.json" in line
    half = changed(run, tmp_path / "half", header=replace(cell.header, dtype="bfloat16"))
    line = refusal(invoke(*words[:2], str(half), *words[3:4], "x"))
    assert "alibi, text, aligned:k=4 at 32: dtype is float32 in one and bfloat16 in the other" in line
    documents = tuple(replace(document, sha256="0") for document in cell.header.documents)
    text = changed(run, tmp_path / "text", header=replace(cell.header, documents=documents))
    assert "they scored other documents" in refusal(invoke(*words[:2], str(text), *words[3:4], "x"))


def test_finished_goes_before_failed(whole: dict[str, kerple_eval.Run], tmp_path: Path) -> None:
    broken = shutil.copytree(whole["alibi"].folder, tmp_path / "broken")
    cell = next(iter(whole["alibi"].cells()))
    (broken / "cells" / f"{file_name(cell.key)}.parquet").unlink()
    write_failure(broken, FailedCell(cell.key, cell.header, "MemoryError: no room"))
    for order in ([broken, whole["alibi"].folder], [whole["alibi"].folder, broken]):
        out = tmp_path / order[0].name
        merge(order, out / "out")
        assert isinstance(read_cell(out / "out", cell.key), Cell)
    again = shutil.copytree(broken, tmp_path / "again")
    assert merge([broken, again], tmp_path / "both").endswith(", 1 failed")
    assert isinstance(read_cell(tmp_path / "both", cell.key), FailedCell)


def test_out_must_be_new(whole: dict[str, kerple_eval.Run], tmp_path: Path, invoke: Cli) -> None:
    words = ["merge", *map(str, folders(whole, "alibi", "rope")), "--out"]
    assert "is not an empty folder" in refusal(invoke(*words, str(whole["all"].folder)))
    before = contents(whole["alibi"].folder)
    assert "is not an empty folder" in refusal(invoke(*words, str(whole["alibi"].folder)))
    assert contents(whole["alibi"].folder) == before
    (tmp_path / "file").write_text("x")
    assert "is not an empty folder" in refusal(invoke(*words, str(tmp_path / "file")))


def test_died_at_any_change_the_same_command_goes_on(
    whole: dict[str, kerple_eval.Run], tmp_path: Path
) -> None:
    """The joined run is there whole or not at all; after the same command nothing else is."""
    parts = folders(whole, "short", "long")
    merge(parts, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    count = [0]

    def command() -> None:
        count[0] += 1
        merge(parts, tmp_path / str(count[0]) / "out")

    def goes_on(number: int) -> None:
        out = tmp_path / str(number) / "out"
        with suppress(UserError) if out.exists() else nullcontext():  # refused, as the run is there
            merge(parts, out)
        assert content(out.parent) == {f"out/{name}": data for name, data in expected.items()}

    assert len(list(deaths(command, goes_on))) > 20


def test_a_merged_run_reports_like_any(
    whole: dict[str, kerple_eval.Run], tmp_path: Path, invoke: Cli
) -> None:
    assert (
        invoke("merge", *map(str, folders(whole, "alibi", "rope")), "--out", str(tmp_path / "m")).exit_code
        == 0
    )
    for words in (["table"], ["intervals"], ["compare", "--against", "alibi"], ["explain"]):
        done = invoke(words[0], str(tmp_path / "m"), *words[1:])
        assert done.exit_code == 0, done.stderr
    page = tmp_path / "page.md"
    assert invoke("report", str(tmp_path / "m"), "--out", str(page)).exit_code == 0
    shown = page.read_text()
    asked = shown[shown.index("## What was asked") :].split("\n## ")[0]
    commands = [line for line in asked.splitlines() if line.split()[:1] == ["kerple-eval"]]
    assert len(commands) == 2  # of each run that was joined; what a test worker was started with
    assert all(f"first_token.{model}.rule" in shown for model in ("alibi", "rope"))


def test_explain_asks_for_all_of_a_merged_run(
    whole: dict[str, kerple_eval.Run], tmp_path: Path, invoke: Cli
) -> None:
    """The missing cells' command names both models, though each part's command had one."""
    merge(folders(whole, "alibi", "rope"), tmp_path / "m")
    shown = invoke("explain", str(tmp_path / "m")).stdout
    line = next(line for line in shown.splitlines() if "kerple-eval run" in line)
    assert "alibi=native:" in line
    assert "rope=native:" in line


def test_a_run_directory_moved_elsewhere_stays_whole(
    models: dict[str, str], tmp_path: Path, invoke: Cli, passes: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Relative paths, another directory, no original: tables are the same, and the run goes on in it."""
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    here.mkdir()
    there.mkdir(parents=True)
    (here / "book.txt").write_text("A line of text, and a longer one after it. " * 8)
    monkeypatch.chdir(here)
    words = ["run", models["rope"], "--text", "book.txt", "--length", "16,32"]
    assert invoke(*words, "--out", "run").exit_code == 0
    before = contents(here / "run")
    tables = {w: invoke(w, "run").stdout for w in ("table", "intervals", "explain")}
    frame = open_run("run").losses()
    shutil.move(here / "run", there / "elsewhere")
    monkeypatch.chdir(there)
    assert contents(there / "elsewhere") == before
    for word, shown in tables.items():
        assert invoke(word, "elsewhere").stdout.replace("elsewhere", "run") == shown
    pd.testing.assert_frame_equal(open_run("elsewhere").losses(), frame)
    for kind in ("curve", "position"):
        assert invoke("plot", "elsewhere", "--kind", kind, "--out", "x.png").exit_code == 0
    computed = len(passes)
    monkeypatch.chdir(here)
    assert invoke(*words, "--out", str(there / "elsewhere")).exit_code == 0
    assert len(passes) == computed  # nothing is computed again
    assert (there / "elsewhere" / "summary.csv").read_bytes() == before["summary.csv"]


def test_first_tokens_of_a_protocol_are_put_together(
    models: dict[str, str], text: str, tmp_path: Path
) -> None:
    """A protocol whose rule gives each model its own marker: every model's stays, and one has one alone."""
    words = {"protocols": "lm-eval-rolling:prefix_token_id=7", "text": text, "lengths": [16]}

    def run(name: str, *schemes: str, **more: Any) -> Path:
        made = kerple_eval.evaluate([models[s] for s in schemes], out=tmp_path / name, **(words | more))
        return made.folder

    whole = run("whole", "alibi", "rope")
    alibi, rope = run("alibi", "alibi"), run("rope", "rope")
    merge([alibi, rope], tmp_path / "joined")
    joined = open_run(tmp_path / "joined")
    assert joined.specification == open_run(whole).specification
    (protocol,) = json.loads((tmp_path / "joined" / "run.json").read_text())["specification"]["protocols"]
    marker = {"rule": "prefix", "id": 7}
    assert protocol["first_token"] == {"text": {"alibi": marker, "rope": marker}}
    record = json.loads((alibi / "run.json").read_text())
    record["specification"]["protocols"][0]["first_token"]["text"]["alibi"]["id"] = 8
    other = shutil.copytree(alibi, tmp_path / "other")
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"first_token: text: alibi\W.*id was 7 in .* and is 8 in"):
        merge([alibi, other], tmp_path / "out")
