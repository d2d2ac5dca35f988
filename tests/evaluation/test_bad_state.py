"""Damaged checkpoints and run directories, full disks: one line, exit status 2, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from kerple_eval.schemes.nope import Nope
from tests.helpers.command import Cli, command, contents, make_model, refusal


def damage_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def damage_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_missing(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["layers.1.mlp_in.bias"]
    save_file(state, folder / "model.safetensors")


def damage_unclaimed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors") | {"layers.9.extra": torch.zeros(2)}
    save_file(state, folder / "model.safetensors")


def damage_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["norm.bias"] = torch.zeros(17)
    save_file(state, folder / "model.safetensors")


def damage_integers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["norm.bias"] = torch.zeros(16, dtype=torch.int64)
    save_file(state, folder / "model.safetensors")


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["model"] |= changes
    path.write_text(json.dumps(data))


def damage_type(folder: Path) -> None:
    _config(folder, layers="2")


def damage_zero(folder: Path) -> None:
    _config(folder, heads=0)


def damage_key(folder: Path) -> None:
    _config(folder, witdh=16)


def damage_scheme(folder: Path) -> None:
    _config(folder, scheme="alibbi")


def damage_scheme_option(folder: Path) -> None:
    _config(folder, scheme="t5", scheme_options={"bukets": 8})


def damage_json(folder: Path) -> None:
    (folder / "config.json").write_text('{"format": ')


def damage_foreign(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


DAMAGES = [
    (damage_truncated, ["model.safetensors", "truncated or damaged"]),
    (damage_empty, ["model.safetensors", "truncated or damaged"]),
    (damage_no_weights, ["no model.safetensors"]),
    (damage_missing, ["missing tensor layers.1.mlp_in.bias"]),
    (damage_unclaimed, ["not claimed", "layers.9.extra"]),
    (damage_shape, ["norm.bias", "[17]", "expected [16]"]),
    (damage_integers, ["norm.bias", "I64", "floating"]),
    (damage_type, ["config.json", "model.layers must be int", "str '2'"]),
    (damage_zero, ["config.json", "heads must be at least 1"]),
    (damage_key, ["config.json", "'witdh'", "did you mean 'width'"]),
    (damage_scheme, ["unknown scheme 'alibbi'", "did you mean 'alibi'"]),
    (damage_scheme_option, ["unknown option of t5 'bukets'", "did you mean 'buckets'"]),
    (damage_json, ["config.json", "not JSON"]),
    (damage_foreign, ["config.json", "not a native checkpoint"]),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES, ids=[d[0].__name__ for d in DAMAGES])
def test_damaged_checkpoints(
    damage: Callable[[Path], None],
    expected: list[str],
    invoke: Cli,
    good: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    folder = make_model(tmp_path / "m", "alibi")
    damage(folder)
    line = refusal(invoke(*command(good, model=[f"native:{folder}"])))
    for part in expected:
        assert part in line
    assert refusal(invoke("inspect", f"native:{folder}")) == line
    assert not (tmp_path / "out").exists()


def test_positions_beyond_a_table_are_refused(
    invoke: Cli,
    good: dict[str, list[str]],
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Nope, "max_positions", 31)
    line = refusal(invoke(*command(good, model=[models["nope"]])))
    assert "model nope: its positions (nope) end at 31, length 32 was asked for" in line
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Nope, "max_positions", 32)
    assert invoke(*command(good, model=[models["nope"]])).exit_code == 0


def test_out_that_cannot_be_written(invoke: Cli, good: dict[str, list[str]], tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("precious")
    assert "is a file" in refusal(invoke(*command(good, out=["--out", str(occupied)])))
    assert "cannot be written" in refusal(invoke(*command(good, out=["--out", str(occupied / "below")])))
    assert occupied.read_text() == "precious"
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o555)
        line = refusal(invoke(*command(good, out=["--out", str(tmp_path / "locked" / "below")])))
        assert "Permission denied" in line


CHANGES = [
    (
        {"length": ["--length", "16,48"]},
        ["specification: --length was '16,32' there and is '16,48' now"],
        "length",
    ),
    (
        {"more": ["--dtype", "float64"]},
        ["specification: --dtype was 'float32' there and is 'float64' now"],
        "dtype",
    ),
    (
        {"more": ["--max-tokens", "100"]},
        ["specification: --max-tokens was absent there and is 100 now"],
        "max-tokens",
    ),
    (
        {"more": ["--protocol", "prefix"]},
        ["--protocol was ['full-context'] there and is ['prefix'] now; choose"],
        "protocol",
    ),
    (
        {"more": ["--protocol", "full-context", "--protocol", "prefix"]},
        ["--protocol was ['full-context'] there and is ['full-context', 'prefix'] now; choose"],
        "more protocols",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), [c[:2] for c in CHANGES], ids=[c[2] for c in CHANGES])
def test_a_changed_specification_is_refused_with_the_difference(
    changes: dict[str, list[str]], expected: list[str], invoke: Cli,
    good: dict[str, list[str]], tmp_path: Path,
) -> None:  # fmt: skip
    assert invoke(*command(good)).exit_code == 0
    before = contents(tmp_path / "out")
    line = refusal(invoke(*command(good, **changes)))
    assert "another specification" in line
    assert len(line) < 500
    for part in expected:
        assert part in line
    assert contents(tmp_path / "out") == before


def test_changed_text_or_weights_are_another_specification(
    invoke: Cli, good: dict[str, list[str]], tmp_path: Path, text: str
) -> None:
    folder = make_model(tmp_path / "m", "alibi", 1)
    copy = tmp_path / "one.txt"
    copy.write_bytes(Path(text).read_bytes())
    words = command(good, model=[f"native:{folder}"], text=["--text", str(copy)])
    assert invoke(*words).exit_code == 0
    before = contents(tmp_path / "out")
    copy.write_bytes(Path(text).read_bytes()[:-1] + b"!")
    assert "task text: text_sha256 was" in refusal(invoke(*words))
    copy.write_bytes(Path(text).read_bytes())
    make_model(folder, "alibi", 2)
    assert "model m: seed was 1 there and is 2 now" in refusal(invoke(*words))
    assert contents(tmp_path / "out") == before
    make_model(folder, "alibi", 1)
    assert invoke(*words).exit_code == 0


EMPTY = '{"schema_version": 1, "specification": {"models": [], "tasks": [], "protocols": []}, "provenance": '


@pytest.mark.parametrize(
    "raw",
    ["", "{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}',
     '{"schema_version": 1, "specification": [], "provenance": {}}',
     '{"schema_version": 1, "specification": {"models": 3}, "provenance": {"sessions": []}}',
     EMPTY + '{"sessions": [3]}}', EMPTY + '{"sessions": [], "models": [1]}}'],
)  # fmt: skip
def test_corrupt_run_json(raw: str, invoke: Cli, good: dict[str, list[str]], tmp_path: Path) -> None:
    assert invoke(*command(good)).exit_code == 0
    path = tmp_path / "out" / "run.json"
    path.write_text(raw)
    before = contents(tmp_path / "out")
    for line in (
        refusal(invoke(*command(good))),
        refusal(invoke("table", str(tmp_path / "out"))),
        refusal(invoke("plot", str(tmp_path / "out"), "--out", str(tmp_path / "x.png"))),
    ):
        assert "run.json" in line
    assert contents(tmp_path / "out") == before


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _flip(raw: bytes) -> bytes:
    return raw[:-4] + b"XXXX"


@pytest.mark.parametrize("damage", [_cut, _flip, lambda raw: b""], ids=["cut", "magic", "empty"])
def test_corrupt_cell(
    damage: Callable[[bytes], bytes], invoke: Cli, good: dict[str, list[str]], tmp_path: Path
) -> None:
    assert invoke(*command(good)).exit_code == 0
    summary = (tmp_path / "out" / "summary.csv").read_bytes()
    cell = sorted((tmp_path / "out" / "cells").glob("*.parquet"))[0]
    cell.write_bytes(damage(cell.read_bytes()))
    before = contents(tmp_path / "out")
    line = refusal(invoke(*command(good)))
    assert str(cell) in line
    assert "delete it" in line
    assert contents(tmp_path / "out") == before
    cell.unlink()
    assert invoke(*command(good)).exit_code == 0
    assert (tmp_path / "out" / "summary.csv").read_bytes() == summary


@pytest.mark.parametrize("at", range(1, 6))
def test_full_disk(
    at: int, invoke: Cli, good: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at the n-th flush of a file: one line, no partial file, and the same command goes on.

    The first two write run.json and an empty summary; from the third on something was computed.
    """
    calls = 0
    real = os.fsync

    def fsync(number: int) -> None:
        nonlocal calls
        calls += not stat.S_ISDIR(os.fstat(number).st_mode)
        if calls == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    done = invoke(*command(good))
    assert done.exit_code == (2 if at <= 2 else 1)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'out'}")
    assert "No space left on device" in line
    assert line.endswith("finished cells are kept, the same command continues") == (at > 2)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    monkeypatch.undo()
    assert invoke(*command(good)).exit_code == 0
    again = command(good, out=["--out", str(tmp_path / "whole")])
    assert invoke(*again).exit_code == 0
    assert (tmp_path / "out/summary.csv").read_bytes() == (tmp_path / "whole/summary.csv").read_bytes()


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        table = pq.read_table(path)
        header = json.loads(table.schema.metadata[b"kerple_eval"])
        changed = change(header) or header
        pq.write_table(table.replace_schema_metadata({"kerple_eval": json.dumps(changed)}), path)

    return damage


def _table(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


def _column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Path], None]:
    def changed(table: Any) -> Any:
        place = table.schema.get_field_index(name)
        column = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
        return table.set_column(place, name, column)

    return _table(changed)


INCONSISTENT = {
    "no first token": _header(lambda h: h.pop("first_token") and None),
    "no documents": _header(lambda h: h.pop("documents") and None),
    "no dtype": _header(lambda h: h.pop("dtype") and None),
    "no key": _header(lambda h: h.pop("cell") and None),
    "another key": _header(lambda h: h["cell"].update(model="other")),
    "no object": _header(lambda h: [1]),
    "no sha256": _header(lambda h: h["documents"][0].pop("sha256") and None),
    "other documents": _header(lambda h: h["documents"][0].update(name="other")),
    "no column": _table(lambda table: table.drop_columns(["bytes"])),
    "no losses": _table(lambda table: table.drop_columns(["losses"])),
    "no rows": _table(lambda table: table.slice(0, 0)),
    "no window": _column("start", lambda starts: [500, *starts[1:]]),
    "too few losses": _column("losses", lambda rows: [rows[0][1:], *rows[1:]]),
}


@pytest.mark.parametrize("damage", INCONSISTENT.values(), ids=INCONSISTENT)
def test_a_cell_that_is_parquet_and_no_cell(
    damage: Callable[[Path], None], invoke: Cli, good: dict[str, list[str]], tmp_path: Path
) -> None:
    assert invoke(*command(good)).exit_code == 0
    cell = sorted((tmp_path / "out" / "cells").glob("*.parquet"))[0]
    damage(cell)
    before = contents(tmp_path / "out")
    for words in (command(good), ["explain", str(tmp_path / "out")], ["report", str(tmp_path / "out")]):
        line = refusal(invoke(*words))
        assert f"{cell}: not a readable cell" in line
        assert "delete it" in line
    assert contents(tmp_path / "out") == before


def test_a_failed_cell_that_is_no_cell(invoke: Cli, good: dict[str, list[str]], tmp_path: Path) -> None:
    assert invoke(*command(good)).exit_code == 0
    cell = sorted((tmp_path / "out" / "cells").glob("*.parquet"))[0]
    cell.unlink()
    cell.with_suffix(".json").write_text('{"schema_version": 1, "error": "MemoryError: no room"}')
    assert "not a readable cell (it holds the cell None); delete it" in refusal(invoke(*command(good)))


def test_cells_that_are_not_here_are_said(invoke: Cli, good: dict[str, list[str]], tmp_path: Path) -> None:
    """A copy without ``cells/`` is computed again, and a run refused for another reason says that alone."""
    assert invoke(*command(good)).stderr == ""
    whole = (tmp_path / "out" / "summary.csv").read_bytes()
    shutil.rmtree(tmp_path / "out" / "cells")
    refusal(invoke(*command(good, length=["--length", "16"])))
    done = invoke(*command(good))
    said = f"{tmp_path / 'out'}: finished cells of its summary without a file, computed again: 2\n"
    assert (done.exit_code, done.stderr) == (0, said)
    assert (tmp_path / "out" / "summary.csv").read_bytes() == whole
    assert invoke(*command(good)).stderr == ""
