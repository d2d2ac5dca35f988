"""A cell's file is believed only as it was written: flipped bits, edited rows, files that unpack to much."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kerple_eval.protocols.full_context import FullContext
from kerple_eval.records import columns
from kerple_eval.records.cell import Cell, file_name, read_cell, write_cell
from kerple_eval.types import CellKey, UserError, Window
from tests.helpers.records import header

KEY = CellKey("m", "text", "full-context", 16)


@pytest.fixture
def made() -> Cell:
    """Two documents, random losses, answers."""
    draw = np.random.default_rng(1)
    windows = [w for n in (50, 70) for w in FullContext().plan(n, 16, 16)]
    documents = [(f"d{i}", n, hashlib.sha256(b"%d" % i).hexdigest()) for i, n in enumerate((50, 70))]
    first, second = header(documents).documents
    answered = (replace(first, answer=1, depth=0.5), replace(second, answer=1, depth=1.0))
    return Cell(
        KEY, replace(header(documents), documents=answered), np.array([0] * 4 + [1] * 5), windows,
        [draw.exponential(2, w.targets).astype(np.float32) for w in windows],
        [3 * w.targets for w in windows], [draw.random(w.targets) < 0.5 for w in windows],
    )  # fmt: skip


def path_of(folder: Path) -> Path:
    return folder / "cells" / f"{file_name(KEY)}.parquet"


def same(left: object, right: Cell) -> bool:
    return (
        isinstance(left, Cell)
        and left.header == right.header
        and list(left.windows) == list(right.windows)
        and left.document.tolist() == right.document.tolist()
        and all((a == b).all() for a, b in zip(left.losses, right.losses, strict=True))
        and left.byte_counts == right.byte_counts
        and left.hits is not None and right.hits is not None
        and all((a == b).all() for a, b in zip(left.hits, right.hits, strict=True))
    )  # fmt: skip


def test_a_damaged_footer_never_aborts_the_process(made: Cell, tmp_path: Path) -> None:
    """pyarrow ends the process where a histogram of a column (thrift: 0x16, 0x26, 0x36) has a wrong size."""
    write_cell(tmp_path, made)
    path = path_of(tmp_path)
    raw = path.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    places = [i for i in range(footer, len(raw)) if raw[i] in (0x16, 0x26, 0x36)]
    assert len(places) > 10
    child = os.fork()
    if child == 0:
        for i in places:
            path.write_bytes(raw[:i] + bytes([raw[i] ^ 0x30]) + raw[i + 1 :])
            with contextlib.suppress(UserError):
                read_cell(tmp_path, KEY)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_no_flipped_bit_changes_a_number_unnoticed(made: Cell, tmp_path: Path) -> None:
    write_cell(tmp_path, made)
    path = path_of(tmp_path)
    raw = path.read_bytes()
    assert same(read_cell(tmp_path, KEY), made)
    refused = 0
    for bit in np.random.default_rng(2).choice(8 * len(raw), 300, replace=False).tolist():
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert same(read_cell(tmp_path, KEY), made), f"bit {bit}"
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 100  # the others are in what parquet writes and nothing reads


LOSSES = (np.nan, np.inf, -np.inf, -0.5)


def test_losses_keep_the_rule_of_scoring(made: Cell, tmp_path: Path) -> None:
    for value in LOSSES:
        losses = [row.copy() for row in made.losses]
        losses[3][-1] = value
        write_cell(tmp_path, replace(made, losses=losses))
        with pytest.raises(UserError, match="a loss is negative or not finite"):
            read_cell(tmp_path, KEY)


def edited(raw: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    table = pq.read_table(io.BytesIO(raw))
    buffer = io.BytesIO()
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), buffer)
    return buffer.getvalue()


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, t.column(name).cast(kind))


EDITS: list[tuple[Callable[[pa.Table], pa.Table], str]] = [
    (lambda t: t.slice(1), "its columns do not have the sha256"),
    (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "its columns do not have the sha256"),
    (lambda t: t.slice(0, 0), "it has no rows"),
    (lambda t: t.drop_columns(["start"]), "it has no column start"),
    (cast("start", pa.int32()), "column start is int32, expected int64"),
    (cast("losses", pa.list_(pa.float64())), "column losses is list"),
    (lambda t: t.set_column(1, "start", pa.nulls(len(t), pa.int64())), "column start has empty fields"),
    (lambda t: t.set_column(1, "start", pa.array([99] * len(t))), "not a window"),
    (lambda t: t.set_column(0, "document", pa.array(["x"] * len(t))), "KeyError 'x'"),
    (lambda t: t.set_column(2, "stop", pa.array([999] * len(t))), "a window ends after its document"),
    (lambda t: t.set_column(4, "losses", t.column("losses").take(list(range(len(t)))[::-1])), "for every"),
    (lambda t: t.set_column(5, "bytes", pa.array([-1] * len(t))), "a number of bytes is negative"),
]


def test_edited_rows_are_refused_by_name(made: Cell, tmp_path: Path) -> None:
    write_cell(tmp_path, made)
    raw = path_of(tmp_path).read_bytes()
    for change, message in EDITS:
        path_of(tmp_path).write_bytes(edited(raw, change))
        with pytest.raises(UserError) as raised:
            read_cell(tmp_path, KEY)
        assert message in str(raised.value)
        assert "delete it to have it computed again" in str(raised.value)


def test_what_a_small_file_unpacks_to_is_bounded(
    made: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 3 million equal rows takes some kilobytes; nothing of it is read."""
    write_cell(tmp_path, made)
    path = path_of(tmp_path)
    raw = path.read_bytes()
    rows = 3_000_000
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["d0"]))
    path.write_bytes(edited(raw, lambda t: pa.table({"document": one})))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(columns, "MOST_WINDOWS", 2_000_000)
    with pytest.raises(UserError, match="it has 3,000,000 rows, more than the 2,000,000 of a cell"):
        read_cell(tmp_path, KEY)
    monkeypatch.undo()
    monkeypatch.setattr(columns, "MOST_TARGETS", 100)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="a column has 118 values, more than the 100 of a cell"):
        read_cell(tmp_path, KEY)


def test_a_file_that_may_not_be_read_is_not_to_be_deleted(
    made: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cell(tmp_path, made)
    real = Path.open

    def denied(self: Path, *arguments: object, **options: object) -> object:
        if self.suffix == ".parquet":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError) as raised:
        read_cell(tmp_path, KEY)
    assert str(raised.value) == f"{path_of(tmp_path)}: cannot be read: Permission denied"


def test_windows_are_read_as_they_were_written(made: Cell, tmp_path: Path) -> None:
    """One that begins with a marker scores its own first token."""
    marked = [Window(w.start, w.stop, w.start, after_marker=True) for w in made.windows]
    losses = [np.concatenate([row, row[:1]]) for row in made.losses]
    hits = [np.concatenate([row, row[:1]]) for row in made.hits or ()]
    cell = replace(made, windows=marked, losses=losses, hits=hits)
    write_cell(tmp_path, cell)
    assert same(read_cell(tmp_path, KEY), cell)


def test_no_thread_of_pyarrow_is_left(tmp_path: Path) -> None:
    """One that is still ending when the program ends aborts it (``terminate called``, status -6)."""
    script = f"""
import os
import subprocess
import sys
from pathlib import Path
from kerple_eval.records.cell import read_cell, write_cell
from tests.helpers.made_cells import cell
made = cell("m", {{"a": [2.0] * 40, "b": [1.0] * 40}})
write_cell(Path({str(tmp_path)!r}), made)
before = len(os.listdir("/proc/self/task"))
read_cell(Path({str(tmp_path)!r}), made.key)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
