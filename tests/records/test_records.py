"""Cells on disk: what is written is read; hash and summary depend on losses and targets only."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kerple_eval.protocols.full_context import FullContext
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.records.cell import Cell, FailedCell, file_name, read_cell, write_cell, write_failure
from kerple_eval.records.run import open_run, write_summary
from kerple_eval.support.differences import differences
from kerple_eval.types import CellKey, UserError, Window
from tests.helpers.records import failed_header, header, model, write_run_json

KEY = CellKey("mine [a/b]", "text", "sliding-window:stride=8", 16, None)


def cell(windows: list[list[Window]], *, known: bool = True, key: CellKey = KEY) -> Cell:
    """A cell over one document a list of windows, with random losses."""
    draw = np.random.default_rng(5)
    flat = [w for ws in windows for w in ws]
    documents = [(f"dokument é {i}", 99, hashlib.sha256(b"%d" % i).hexdigest()) for i in range(len(windows))]
    return Cell(
        key=key,
        header=header(documents, scheme="alibi", seconds=0.5),
        document=np.repeat(np.arange(len(windows)), [len(ws) for ws in windows]),
        windows=flat,
        losses=[draw.exponential(2, w.targets).astype(np.float32) for w in flat],
        byte_counts=[3 * w.targets for w in flat] if known else None,
    )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("longest", [None, 64])
def test_round_trip(tmp_path: Path, known: bool, longest: int | None) -> None:
    key = replace(KEY, longest=longest)
    written = cell([SlidingWindow(stride=8).plan(50, 16, 64), [Window(3, 19, 12)]], known=known, key=key)
    write_cell(tmp_path, written)
    read = read_cell(tmp_path, key)
    assert isinstance(read, Cell)
    assert read.key == key
    assert read.header == written.header
    assert read.windows == written.windows
    assert read.document.tolist() == written.document.tolist()
    assert read.byte_counts == written.byte_counts
    assert [x.dtype for x in read.losses] == [np.dtype("float32")] * len(written.losses)
    for a, b in zip(read.losses, written.losses, strict=True):
        assert a.tobytes() == b.tobytes()
    assert read.summary() == written.summary()


def test_parquet_schema_is_the_contracts(tmp_path: Path) -> None:
    write_cell(tmp_path, cell([[Window(0, 4, 1), Window(4, 6, 5)]]))
    table = pq.read_table(next((tmp_path / "cells").glob("*.parquet")))
    assert {f.name: str(f.type) for f in table.schema} == {
        "document": "string",
        "start": "int64",
        "stop": "int64",
        "first_target": "int64",
        "losses": "list<element: float>",
        "bytes": "int64",
    }
    assert table.column("start").to_pylist() == [0, 4]
    assert json.loads(table.schema.metadata[b"kerple_eval"])["cell"]["model"] == "mine [a/b]"


def test_file_names_are_safe_and_tell_keys_apart() -> None:
    keys = [
        KEY,
        replace(KEY, model="mine _a_b_"),
        replace(KEY, longest=64),
        replace(KEY, length=32),
        replace(KEY, task="other"),
        replace(KEY, protocol="full-context"),
        replace(KEY, model="m" * 500),
        replace(KEY, model="m" * 499),
        replace(KEY, model="../../etc"),
    ]
    names = [file_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    for name in names:
        assert "/" not in name
        assert len(name.encode()) < 200


def test_failed_cells(tmp_path: Path) -> None:
    failed = FailedCell(KEY, failed_header(seed=1, train_length=None), 'MemoryError: "no, really"')
    write_failure(tmp_path, failed)
    assert read_cell(tmp_path, KEY) is not None
    read = read_cell(tmp_path, KEY)
    assert isinstance(read, FailedCell)
    assert read.error == failed.error
    assert read.summary() == failed.summary()
    write_cell(tmp_path, cell([[Window(0, 4, 1)]]))
    assert isinstance(read_cell(tmp_path, KEY), Cell)
    assert [p.suffix for p in (tmp_path / "cells").iterdir()] == [".parquet"]


def test_a_cell_not_run_is_none(tmp_path: Path) -> None:
    assert read_cell(tmp_path, KEY) is None


def test_targets_hash_does_not_depend_on_windows() -> None:
    plans = [FullContext().plan(50, length, 64) for length in (3, 7, 16, 64)]
    plans += [SlidingWindow(stride=s).plan(50, 16, 64) for s in (1, 5, 16)]
    hashes = {cell([plan, FullContext().plan(20, 4, 64)]).targets_hash for plan in plans}
    assert len(hashes) == 1
    one = FullContext().plan(50, 16, 64)
    others = [
        [one[:-1], FullContext().plan(20, 4, 64)],  # fewer targets
        [one],  # a document less
        [FullContext().plan(20, 4, 64), one],  # the targets of the documents exchanged
        [[*one, Window(0, 1, 1)], FullContext().plan(20, 4, 64)],  # target 1 twice
    ]
    hashes |= {cell(windows).targets_hash for windows in others}
    assert len(hashes) == 1 + len(others)


def test_targets_hash_knows_the_text_but_not_the_order_of_documents() -> None:
    base = cell([FullContext().plan(50, 16, 64), FullContext().plan(20, 16, 64)])
    flipped = replace(
        base,
        header=replace(base.header, documents=base.header.documents[::-1]),
        document=1 - base.document,
    )
    assert flipped.targets_hash == base.targets_hash
    first, second = base.header.documents
    changed = replace(base.header, documents=(first, replace(second, sha256="0" * 64)))
    assert replace(base, header=changed).targets_hash != base.targets_hash


def test_summary_is_the_formula(tmp_path: Path) -> None:
    made = cell([FullContext().plan(50, 16, 64)])
    row = made.summary()
    total = math.fsum(float(x) for window in made.losses for x in window)
    assert row["targets"] == 49
    assert row["nll"] == pytest.approx(total / 49, rel=1e-15)
    assert row["ppl"] == pytest.approx(math.exp(total / 49), rel=1e-14)
    assert row["bits_per_byte"] == pytest.approx(total / (math.log(2) * 3 * 49), rel=1e-15)
    assert cell([FullContext().plan(50, 16, 64)], known=False).summary()["bits_per_byte"] is None
    huge = replace(made, losses=[x + np.float32(1000) for x in made.losses]).summary()
    assert huge["nll"] > 1000
    assert huge["ppl"] is None
    write_summary(tmp_path, [row, huge])
    with (tmp_path / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["nll"]) == row["nll"]
    assert float(first["bits_per_byte"]) == row["bits_per_byte"]
    assert (first["seed"], first["error"], second["ppl"]) == ("", "", "")


def test_summary_does_not_see_times(tmp_path: Path) -> None:
    made = cell([FullContext().plan(50, 16, 64)])
    later = replace(made, header=replace(made.header, seconds=99.0, threads=7))
    assert later.summary() == made.summary()


def test_run_frames_of_failed_and_missing_cells(tmp_path: Path) -> None:
    protocol = {"protocol": "full-context", "lengths": [4, 8], "longest": None}
    write_run_json(
        tmp_path,
        models=[model("a", scheme="alibi", train_length=16), model("b")],
        tasks=["text"],
        protocols=[protocol],
    )
    run = open_run(tmp_path)
    run.write_specification()
    assert open_run(tmp_path) == run
    assert len(run.summary()) == 0
    assert len(run.losses()) == 0
    failed = FailedCell(CellKey("b", "text", "full-context", 8), failed_header(train_length=64), "boom")
    write_failure(tmp_path, failed)
    frame = run.summary()
    assert frame["nll"].dtype == np.float64
    assert frame["targets"].isna().all()
    write_cell(tmp_path, cell([FullContext().plan(9, 4, 8)], key=CellKey("a", "text", "full-context", 4)))
    assert run.summary()["model"].tolist() == ["a", "b"]
    losses = run.losses()
    assert losses["target"].tolist() == list(range(1, 9))
    assert losses["context"].tolist() == [1, 2, 3, 4] * 2
    assert len(run.losses(model="b")) == 0


def test_differences_name_what_differs() -> None:
    old = {"a": 1, "b": [16, 32], "c": [{"label": "x", "n": 1}, {"label": "y", "n": 2}], "same": [{}]}
    assert differences(old, json.loads(json.dumps(old))) == []
    new = {"a": 2, "b": [16], "c": [{"label": "x", "n": 3}], "d": None, "same": [{}]}
    assert [difference.describe() for difference in differences(old, new)] == [
        "a was 1 there and is 2 now",
        "b was [16, 32] there and is [16] now",
        "c[0].n was 1 there and is 3 now",
        "c[1] was 'y' there and is absent now",
    ]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    write_run_json(tmp_path, models=[model("m")], tasks=["book"], protocols=[])
    run = open_run(tmp_path)
    for seed, held in ((2**63 - 1, True), (2**63, False), (10**30, False)):
        models = (replace(run.specification.models[0], seed=seed),)
        changed = replace(run, specification=replace(run.specification, models=models))
        if held:
            changed.write_specification()
            continue
        with pytest.raises(UserError, match=rf"seed: expected a whole number of 64 bits, got {seed}$"):
            changed.write_specification()
    assert open_run(tmp_path).specification.models[0].seed == 2**63 - 1
