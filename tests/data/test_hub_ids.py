"""Hub data sets by id, against a local stand-in for the hub's endpoint."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kerple_eval.data.task import open_task, parse_task
from kerple_eval.types import UserError
from tests.helpers.hub_stub import COMMIT, serving


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: test
    path: small/test-*.parquet
- config_name: lines
  data_files:
  - split: train
    path: lines/train.jsonl
---
"""
FILES = {
    "README.md": CARD,
    "small/test-00000-of-00002.parquet": table([{"text": f"s{i}", "body": f"b{i}"} for i in range(4)]),
    "small/test-00001-of-00002.parquet": table([{"text": f"s{i}", "body": None} for i in range(4, 6)]),
    "lines/train.jsonl": b"".join(json.dumps({"text": f"l{i}"}).encode() + b"\n" for i in range(3)),
    "code.py": b"raise SystemExit('code ran')\n",
}

SCRIPT = """
import json, sys
from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import open_task, parse_task
from kerple_eval.types import UserError
for text in sys.argv[1:]:
    try:
        documents, origin = documents_of(*open_task(parse_task(text)))
        print(json.dumps({"texts": [d.text for d in documents], "origin": origin}))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read(endpoint: str, home: Path, *texts: str) -> list[Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HTTP", "http"))}
    env |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *texts], env=env, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_splits_columns_and_what_is_missing(tmp_path: Path) -> None:
    with serving("org/set", FILES) as (endpoint, asked):
        whole, column, limited, lines, joined, *refused = read(
            endpoint, tmp_path,
            "hf:org/set,split=test,config=small", "hf:org/set@main,split=test,config=small,column=body",
            f"hf:org/set@{COMMIT},split=test,config=small,limit=3", "hf:org/set,split=train,config=lines",
            "hf:org/set,split=test,config=small,column=body,join=space",
            "hf:org/set,split=valid,config=small", "hf:org/set,config=small",
            "hf:org/set,split=test,config=small,column=words", "hf:org/set,split=test,config=large",
            "hf:org/other,split=test", "hf:org/set,split=test",
        )  # fmt: skip
    assert whole["texts"] == [f"s{i}" for i in range(6)]
    files = ["small/test-00000-of-00002.parquet", "small/test-00001-of-00002.parquet"]
    assert whole["origin"] == {
        "kind": "hub", "repository": "org/set", "revision": COMMIT, "files": files, "split": "test",
        "text_column": "text", "where": {}, "join": "none", "limit": None, "limit_reached": False,
        "rows_read": 6, "rows_passed_over": 0, "empty_documents": 0, "config": "small",
    }  # fmt: skip
    assert column["texts"] == [f"b{i}" for i in range(4)]
    assert column["origin"]["empty_documents"] == 2
    assert (limited["texts"], limited["origin"]["limit_reached"]) == (["s0", "s1", "s2"], True)
    assert lines["texts"] == ["l0", "l1", "l2"]
    assert (joined["texts"], joined["origin"]["join"]) == (["b0 b1 b2 b3  "], "space")
    for message, words in zip(refused, (
        ("no split 'valid'; it has test",), ("no split is given; it has test",),
        ("no column 'words'; it has: text, body",), ("large", "small", "lines"), ("the hub refuses it",),
        ("small", "lines"),
    ), strict=True):  # fmt: skip
        assert isinstance(message, str) and message.startswith("task "), message
        assert all(word in message for word in words), message
    assert not any(path.endswith("/code.py") for path in asked)


def test_a_loading_script_is_refused(tmp_path: Path) -> None:
    files = {"old.py": FILES["code.py"], "data.jsonl": FILES["lines/train.jsonl"]}
    with serving("org/old", files) as (endpoint, _):
        (message,) = read(endpoint, tmp_path, "hf:org/old,split=train")
    assert message == "task hf:org/old: Dataset scripts are no longer supported, but found old.py"


def test_without_a_network(tmp_path: Path) -> None:
    (message,) = read("http://127.0.0.1:9", tmp_path, "hf:org/set,split=test")
    assert message.startswith("task hf:org/set: the hub cannot be reached (")
    assert message.endswith("with a local copy of the files: --text DIR, or --text FILE,column=NAME")


@pytest.mark.parametrize(("text", "says"), [
    ("hf:", "expected hf:ORG/NAME"), ("hf:a/b/c,split=test", "expected hf:ORG/NAME"),
    ("hf:../b,split=test:", "expected hf:ORG/NAME"), ("hf:a/b,split", "expected key=value"),
    ("hf:a/b,splt=test", "did you mean 'split'?"), ("hf:a/b,split=test,limit=0", "limit=0 is not a number"),
    ("hf:a/b,split=test,limit=" + "1" * 5000, "is not a number of documents"),
    ("hf:a/b,split=test,limit=x", "limit=x is not a number"),
])  # fmt: skip
def test_what_is_no_id(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        open_task(parse_task(text))
    assert says in str(caught.value)
