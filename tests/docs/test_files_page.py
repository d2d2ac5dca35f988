"""docs/files.md names every column and key that a run writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq

from kerple_eval.records.cell import COLUMNS
from tests.helpers.command import Cli

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()


def named(heading: str) -> set[str]:
    """What the first column of the tables below a heading names."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_summary_columns_in_order() -> None:
    section = PAGE.split("\n## summary.csv\n")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == COLUMNS


def test_a_run_writes_what_the_page_names(
    tmp_path: Path, models: dict[str, str], library: str, invoke: Cli
) -> None:
    """Two protocols, one of whose windows depend on the longest length."""
    out = tmp_path / "run"
    done = invoke(
        "run", models["alibi"], "--text", library, "--length", "8,16", "--max-tokens", "40",
        "--protocol", "full-context", "--protocol", "aligned:k=4", "--out", str(out),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    cell = pq.read_table(next((out / "cells").glob("*.parquet")))
    assert set(cell.column_names) <= named("cells/*.parquet")
    assert set(json.loads(cell.schema.metadata[b"kerple_eval"])) <= named("cells/*.parquet")
    run = json.loads((out / "run.json").read_text())
    for part in ("specification", "provenance"):
        assert set(run[part]) <= named("run.json"), part
