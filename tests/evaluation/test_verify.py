"""A run goes on only with cells that were computed from what it plans, whatever their name says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kerple_eval
from kerple_eval.records.cell import Cell, file_name, read_cell, write_cell
from kerple_eval.types import UserError
from tests.helpers.command import make_model


@pytest.fixture(scope="module")
def run(models: dict[str, str], text: str, tmp_path_factory: pytest.TempPathFactory) -> kerple_eval.Run:
    out = tmp_path_factory.mktemp("verify") / "run"
    return kerple_eval.evaluate(f"m={models['alibi']}", text=text, lengths=[16, 32], out=out)


def taken(run: kerple_eval.Run, other: kerple_eval.Run, to: Path) -> kerple_eval.Run:
    """A copy of ``run`` with the cells of ``other`` under its own run.json."""
    shutil.copytree(run.folder, to)
    shutil.rmtree(to / "cells")
    shutil.copytree(other.folder / "cells", to / "cells")
    return kerple_eval.open_run(to)


def test_cells_of_something_else(
    run: kerple_eval.Run, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    other_text = tmp_path / Path(text).name
    other_text.write_text(Path(text).read_text()[::-1])
    others = {
        "seed was 5 in it and is 0": {"models": f"m=native:{make_model(tmp_path / 'm', 'alibi', 5)}"},
        "scheme was 'rope'": {"models": f"m={models['rope']}"},
        "dtype was 'bfloat16' in it and is 'float32' in run.json": {"dtype": "bfloat16"},
        "another text, choice of documents or option": {"text": other_text},
        "states: another text, choice of documents or option": {"max_tokens": 100},
    }
    base = {"models": f"m={models['alibi']}", "text": text, "lengths": [16, 32]}
    for number, (message, change) in enumerate(others.items()):
        other = kerple_eval.evaluate(**{**base, **change}, out=tmp_path / f"other{number}")
        mixed = taken(run, other, tmp_path / f"mixed{number}")
        with pytest.raises(UserError) as raised:
            kerple_eval.evaluate(**base, out=mixed.folder)
        assert message in str(raised.value)
        assert "delete it to have it computed again" in str(raised.value)


def test_a_checkpoint_trained_again(
    run: kerple_eval.Run, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    shutil.copytree(run.folder, tmp_path / "r")
    cell = read_cell(run.folder, run.keys()[1])
    assert isinstance(cell, Cell)
    write_cell(tmp_path / "r", replace(cell, header=replace(cell.header, weights_sha256="0" * 64)))
    with pytest.raises(UserError, match=r"weights_sha256 was '0000.* in it and is '.*' in run.json"):
        kerple_eval.evaluate(f"m={models['alibi']}", text=text, lengths=[16, 32], out=tmp_path / "r")


def test_rows_removed_or_doubled(
    run: kerple_eval.Run, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    """Written again with checksums that fit: only the plan tells."""
    shutil.copytree(run.folder, tmp_path / "r")
    key = run.keys()[0]
    cell = read_cell(run.folder, key)
    assert isinstance(cell, Cell) and cell.byte_counts is not None
    count = len(cell.windows)
    for rows in (range(count - 1), [*range(count), count - 1], [1, 0, *range(2, count)]):
        write_cell(
            tmp_path / "r",
            replace(
                cell,
                document=cell.document[list(rows)],
                windows=[cell.windows[i] for i in rows],
                losses=[cell.losses[i] for i in rows],
                byte_counts=[cell.byte_counts[i] for i in rows],
            ),
        )
        with pytest.raises(UserError, match="its windows are not those of the run's plan"):
            kerple_eval.evaluate(f"m={models['alibi']}", text=text, lengths=[16, 32], out=tmp_path / "r")
    (tmp_path / "r" / "cells" / f"{file_name(key)}.parquet").unlink()
    kerple_eval.evaluate(f"m={models['alibi']}", text=text, lengths=[16, 32], out=tmp_path / "r")
    assert (tmp_path / "r/summary.csv").read_bytes() == (run.folder / "summary.csv").read_bytes()
    sessions = json.loads((tmp_path / "r/run.json").read_text())["provenance"]["sessions"]
    assert len(sessions) == 2  # a refused call leaves none
