"""Versions of the layout: an old run made by hand is read and goes on; a newer one is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import kerple_eval
from kerple_eval.records import schema
from kerple_eval.records.cell import Cell, FailedCell, file_name, read_cell, write_failure
from kerple_eval.records.run import open_run
from kerple_eval.records.schema import CELL_STEPS, RUN_STEPS, SCHEMA_VERSION, up_to_date
from kerple_eval.records.specification import Marker
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.records import failed_header

NEVER = {"rule": "never", "id": None}


@pytest.fixture
def now(models: dict[str, str], text: str, tmp_path: Path) -> kerple_eval.Run:
    return kerple_eval.evaluate(models["alibi"], text=text, lengths=[16, 32], out=tmp_path / "now")


def header_of(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_schema(path).metadata[b"kerple_eval"])  # type: ignore[no-any-return]


def rewrite(path: Path, header: dict[str, Any]) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"kerple_eval": json.dumps(header)}), path)


def aged(run: kerple_eval.Run, to: Path) -> Path:
    """The run as a draft before the first release would have written it."""
    shutil.copytree(run.folder, to)
    path = to / "run.json"
    data = json.loads(path.read_text())
    data["schema_version"] = 0
    for task in data["specification"]["tasks"]:
        assert task.pop("first_token") == {"alibi": NEVER}
    path.write_text(json.dumps(data))
    for cell in (to / "cells").glob("*.parquet"):
        header = header_of(cell)
        assert header.pop("first_token") == NEVER
        rewrite(cell, header | {"schema_version": 0})
    return to


def test_an_old_run_is_read_as_it_would_be_written_now(
    now: kerple_eval.Run, models: dict[str, str], text: str, tmp_path: Path, passes: list[tuple[int, ...]],
    invoke: Cli,
) -> None:  # fmt: skip
    old = open_run(aged(now, tmp_path / "old"))
    assert old.specification.tasks[0].first_token == {"alibi": Marker("never", None)}
    assert old.specification == now.specification
    for mine, wanted in zip(old.cells(), now.cells(), strict=True):
        assert isinstance(mine, Cell) and isinstance(wanted, Cell)
        assert mine.header == replace(wanted.header, verified=False)
        assert mine.summary() == wanted.summary()
    for word in ("table", "intervals", "explain"):
        assert (
            invoke(word, str(old.folder)).stdout.replace("/old", "/now")
            == invoke(word, str(now.folder)).stdout
        )
    before = len(passes)
    with pytest.raises(UserError, match=r"before 0\.2, without checksums: .* another --out, or"):
        kerple_eval.evaluate(models["alibi"], text=text, lengths=[16, 32], out=old.folder)
    assert len(passes) == before
    for cell in (old.folder / "cells").iterdir():
        cell.unlink()
    kerple_eval.evaluate(models["alibi"], text=text, lengths=[16, 32], out=old.folder)
    assert json.loads((old.folder / "run.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert {cell.header.verified for cell in old.cells()} == {None}


def test_an_old_failed_cell(now: kerple_eval.Run) -> None:
    cell = next(iter(now.cells()))
    (now.folder / "cells" / f"{file_name(cell.key)}.parquet").unlink()
    write_failure(now.folder, FailedCell(cell.key, failed_header(), "MemoryError: no room"))
    path = now.folder / "cells" / f"{file_name(cell.key)}.json"
    content = json.loads(path.read_text())
    assert content.pop("first_token") == NEVER
    path.write_text(json.dumps(content | {"schema_version": 0}))
    found = read_cell(now.folder, cell.key)
    assert isinstance(found, FailedCell)
    assert (found.header.first_token, found.error) == (Marker("never", None), "MemoryError: no room")
    assert found.header.other == {}


def test_every_step_is_named_and_leads_to_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (RUN_STEPS, CELL_STEPS):
        assert list(steps) == list(range(SCHEMA_VERSION))
        assert all(step.__doc__ and step.__name__ != "<lambda>" for step in steps.values())
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    steps = {n: (lambda data, n=n: data | {"seen": [*data.get("seen", []), n]}) for n in range(3)}
    for version in range(4):
        found = up_to_date({"schema_version": version}, steps, Path("x"))
        assert found["schema_version"] == 3
        assert found.get("seen", []) == list(range(version, 3))


@pytest.mark.parametrize("version", [3, 99, -1, None, "1", True, 1.0])
def test_other_versions_are_refused(now: kerple_eval.Run, version: object, invoke: Cli) -> None:
    path = now.folder / "run.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"schema_version": version}))
    line = refusal(invoke("table", str(now.folder)))
    assert f"schema version {version!r}" in line
    assert ("of a newer kerple-eval" in line) == (version in (3, 99))
    path.write_text(kept)
    cell = next((now.folder / "cells").glob("*.parquet"))
    rewrite(cell, header_of(cell) | {"schema_version": version})
    with pytest.raises(UserError, match="schema version"):
        list(open_run(now.folder).cells())


def test_an_old_run_that_is_damaged(now: kerple_eval.Run, tmp_path: Path) -> None:
    old = aged(now, tmp_path / "old")
    (old / "run.json").write_text('{"schema_version": 0, "specification": {"tasks": []}}')
    with pytest.raises(UserError, match=r"run\.json: damaged: KeyError"):
        open_run(old)
