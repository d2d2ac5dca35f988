"""Whatever reads a cell refuses one that was computed from something else than run.json states."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import kerple_eval
from kerple_eval.records.cell import Cell, FailedCell, file_name, read_cell, write_cell, write_failure
from kerple_eval.records.cell_origin import specification_sha256
from kerple_eval.types import UserError
from tests.helpers.command import Cli, make_model, refusal
from tests.helpers.records import failed_header

PROTOCOLS = ["full-context", "sliding-window:stride=4"]


def evaluated(out: Path, tiny: dict[str, str], text: Path, **change: object) -> kerple_eval.Run:
    base = {"models": [f"m={tiny['alibi']}", f"n={tiny['rope']}"], "text": text, "protocols": PROTOCOLS}
    return kerple_eval.evaluate(**(base | {"lengths": [16, 32]} | change), out=out)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(models: dict[str, str], library: Path, tmp_path_factory: pytest.TempPathFactory) -> kerple_eval.Run:
    return evaluated(tmp_path_factory.mktemp("origin") / "run", models, library)


def with_cells_of(other: Path, run: kerple_eval.Run, to: Path) -> Path:
    """A copy of ``run`` with the last cell of another run of the same key under its own run.json."""
    shutil.copytree(run.folder, to)
    name = f"{file_name(run.keys()[1])}.parquet"
    shutil.copy(other / "cells" / name, to / "cells" / name)
    return to


def test_every_reader_refuses_a_foreign_cell(
    run: kerple_eval.Run, models: dict[str, str], library: Path, tmp_path: Path, invoke: Cli
) -> None:
    """The text differs by one letter, so that no fact of the header but the specification's hash tells."""
    text = tmp_path / library.name
    text.write_text(library.read_text().replace("quick", "quack"))
    other = evaluated(tmp_path / "other", models, text)
    folder = str(with_cells_of(other.folder, run, tmp_path / "mixed"))
    file = tmp_path / "mixed" / "cells" / f"{file_name(run.keys()[1])}.parquet"
    says = (
        f"{file}: computed from something else than run.json states: another text, choice of documents or "
        "option of the model; delete it to have it computed again"
    )
    out = ["--out", str(tmp_path / "new")]
    words = [
        "run",
        f"m={models['alibi']}",
        f"n={models['rope']}",
        "--text",
        str(library),
        "--length",
        "16,32",
    ]
    words += ["--protocol", PROTOCOLS[0], "--protocol", PROTOCOLS[1], "--out", folder]
    for command in (
        ["intervals", folder], ["compare", folder, "--against", "n"], ["explain", folder],
        ["export", folder, *out], ["merge", folder, str(run.folder), *out], ["report", folder],
        ["longppl", folder, "--reference", "n"],
        ["plot", folder, "--kind", "position", "--out", str(tmp_path / "p.png")],
        ["plot", folder, "--kind", "ratio", "--against", "n", "--out", str(tmp_path / "p.png")],
        ["plot", folder, "--out", str(tmp_path / "p.png")], words, [*words, "--dry-run"],
    ):  # fmt: skip
        assert refusal(invoke(*command)) == f"error: {says}", command
    opened = kerple_eval.open_run(folder)
    for read in (opened.summary, opened.losses, opened.answers, lambda: opened.cell(run.keys()[1])):
        with pytest.raises(UserError, match="another text, choice of documents or option"):
            read()


def test_other_facts_are_named(
    run: kerple_eval.Run, models: dict[str, str], library: Path, tmp_path: Path
) -> None:
    again = f"native:{make_model(tmp_path / 'again', 'alibi', 5)}"
    others = {
        "seed was 5 in it and is 0 in run.json": {"models": [f"m={again}", f"n={models['rope']}"]},
        "scheme was 'rope' in it": {"models": [f"m={models['rope']}", f"n={models['rope']}"]},
        "dtype was 'float64' in it and is 'float32' in run.json": {"dtype": "float64"},
        "another text, choice of documents or option": {"documents": 3},
    }
    for number, (message, change) in enumerate(others.items()):
        other = evaluated(tmp_path / f"o{number}", models, library, **change)
        mixed = with_cells_of(other.folder, run, tmp_path / f"m{number}")
        with pytest.raises(UserError) as raised:
            kerple_eval.open_run(mixed).losses()
        assert message in str(raised.value)


def test_edited_headers(run: kerple_eval.Run, tmp_path: Path) -> None:
    key = run.keys()[1]
    cell = read_cell(run.folder, key)
    assert isinstance(cell, Cell)
    marker = replace(cell.header.first_token, rule="window", id=3)
    for message, change in {
        "weights_sha256 was '0000": {"weights_sha256": "0" * 64},
        "train_length was 99 in it": {"train_length": 99},
        "device was 'cuda' in it": {"device": "cuda"},
        "first_token.rule was 'window' in it and is 'never' in run.json": {"first_token": marker},
        "reduction was 'another' in it and is absent": {"reduction": "another"},
    }.items():
        folder = tmp_path / message[:6]
        shutil.copytree(run.folder, folder)
        write_cell(folder, replace(cell, header=replace(cell.header, **change)))
        with pytest.raises(UserError) as raised:
            kerple_eval.open_run(folder).losses()
        assert message in str(raised.value)
    failed = FailedCell(key, failed_header(scheme="path", seed=0), "boom")
    write_failure(folder, failed)
    with pytest.raises(UserError, match=r"\.json: computed from .*: scheme was 'path' in it and is 'alibi'"):
        kerple_eval.open_run(folder).summary()


def test_the_hash_is_of_the_cell_s_own_part(
    run: kerple_eval.Run, models: dict[str, str], library: Path, tmp_path: Path
) -> None:
    """Other models, texts, protocols and lengths beside it, and the model's label, do not enter."""
    key = run.keys()[0]
    whole = specification_sha256(run.specification, key)
    alone = evaluated(
        tmp_path / "alone", models, library, models=f"m={models['alibi']}", protocols="full-context",
        documents=None,
    )  # fmt: skip
    assert specification_sha256(alone.specification, key) == whole
    cell = run.cell(key)
    assert cell is not None and cell.header.specification_sha256 == whole
    named = evaluated(tmp_path / "named", models, library, models=f"x={models['alibi']}")
    assert specification_sha256(named.specification, replace(key, model="x")) == whole
    kept = evaluated(tmp_path / "kept", models, library, keep_short=True)
    assert specification_sha256(kept.specification, key) != whole
    read = kerple_eval.open_run(run.folder)
    for key in run.keys():  # noqa: SIM118
        assert specification_sha256(read.specification, key) == specification_sha256(run.specification, key)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda rows: [*rows, rows[-1]], "two rows of n, text, sliding-window:stride=4 at 32"),
        (
            lambda rows: [*rows[:-1], rows[-1].replace(",32,", ",64,")],
            "a cell that run.json does not ask for",
        ),
        (
            lambda rows: [rows[0], rows[1].replace("m,alibi,", "m,rope,"), *rows[2:]],
            "scheme of m, text, full",
        ),
    ],
)
def test_rows_of_a_summary(
    run: kerple_eval.Run, tmp_path: Path, invoke: Cli, edit: object, says: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    rows = (folder / "summary.csv").read_text().splitlines()
    (folder / "summary.csv").write_text("\n".join(edit(rows)) + "\n")  # type: ignore[operator]
    for command in (["table"], ["report"]):
        line = refusal(invoke(*command, str(folder)))
        assert says in line and "summary.csv" in line and "delete it" in line


def test_a_long_value_of_run_json_is_cut(run: kerple_eval.Run, tmp_path: Path, invoke: Cli) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    whole = json.loads((folder / "run.json").read_text())
    for changed in (
        whole | {"schema_version": "v" * 5000},
        whole | {"specification": whole["specification"] | {"dtype": "d" * 5000}},
        whole | {"specification": whole["specification"] | {"device": "d" * 5000}},
    ):
        (folder / "run.json").write_text(json.dumps(changed))
        assert "..." in (line := refusal(invoke("intervals", str(folder)))) and len(line) < 600
