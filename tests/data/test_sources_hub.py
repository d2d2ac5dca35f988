"""Hub sources: local copies in the hub's layout, what is asked of the hub, and how failure reads."""

from __future__ import annotations

import fnmatch
import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kerple_eval.data.documents import Document
from kerple_eval.data.sources.hub import hub_documents
from kerple_eval.data.sources.kinds import HubSource
from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import open_task
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import UserError

SURROGATE = "half a surrogate pair (\\ud800 to \\udfff) in a string, which UTF-8 cannot encode; remove it"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def opened(spec: str) -> tuple[list[Document], dict[str, Any]]:
    return documents_of(*open_task(parse_spec(spec)))


def toy(**changes: Any) -> HubSource:
    keys = {"repository": "o/n", "revision": COMMIT, "data_files": "*.jsonl", "split": "test"}
    return HubSource(**{**keys, "text_column": "text", **changes})


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def json_lines(path: Path, rows: list[Any], *, ascii_only: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def refusal(source: HubSource) -> str:
    with pytest.raises(UserError) as caught:
        hub_documents(source, "toy")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pg19_from_a_local_copy(tmp_path: Path) -> None:
    books = [
        {"short_book_title": f"B{i}", "publication_date": 1900, "text": f"Book {i} é\n"} for i in range(5)
    ]
    parquet(tmp_path / "data/test-00000-of-00002-29a5.parquet", books[:3])
    parquet(tmp_path / "data/test-00001-of-00002-29a5.parquet", books[3:])
    parquet(tmp_path / "data/train-00000-of-00001-29a5.parquet", [{"text": "not this"}])
    documents, origin = opened(f"pg19:path={tmp_path}")
    assert documents == [Document(f"test-{i:09d}", f"Book {i} é\n") for i in range(5)]
    assert origin == {
        **{"kind": "hub", "repository": "emozilla/pg19", "local_copy": True},
        **{"files": "data/test-*.parquet", "split": "test", "text_column": "text"},
        **{"where": {}, "join": "none", "limit": None, "limit_reached": False},
        **{"rows_read": 5, "rows_passed_over": 0, "empty_documents": 0},
    }


@pytest.mark.parametrize(
    ("task", "subset", "limit"),
    [("openwebtext2", "OpenWebText2", 6000), ("github", "Github", 3000), ("arxiv", "ArXiv", 350)],
)
def test_the_papers_sets_take_their_part_of_the_pile(
    tmp_path: Path, task: str, subset: str, limit: int
) -> None:
    names = ["Pile-CC", "ArXiv", "Github", "OpenWebText2", "PubMed Central"]
    rows = [{"text": f"{name} {i}", "meta": {"pile_set_name": name}} for i in range(3) for name in names]
    json_lines(tmp_path / "test.jsonl", rows)
    documents, origin = opened(f"{task}:path={tmp_path}")
    at = names.index(subset)
    assert documents == [Document(f"test-{5 * i + at:09d}", f"{subset} {i}") for i in range(3)]
    assert (origin["rows_read"], origin["rows_passed_over"]) == (15, 12)
    assert (origin["limit"], origin["limit_reached"]) == (limit, False)


def test_proof_pile_rows_need_no_common_shape_of_metadata(tmp_path: Path) -> None:
    texts = ["$x$ and\r\ny\u2028z", "theorem é", "lemma"]
    metas = [{"config": "arxiv", "file": "a"}, {"set_name": 3, "question": {"id": 1}}, "plain"]
    rows = [{"text": t, "meta": m} for t, m in zip(texts, metas, strict=True)]
    json_lines(tmp_path / "test/proofpile_test.jsonl.gz", rows, ascii_only=False)
    documents, _ = opened(f"proof-pile:path={tmp_path}")
    assert [d.text for d in documents] == texts


ARTICLES = [
    " = Robert Boulter = \n \n Boulter is an actor . \n \n = = Career = = \n \n Then \n = Not = a \n \n",
    " = Gold dollar = \n \n It was a coin . \n = 1 = \n It follows . \n \n = = = Coin = = = \n \n",
    " = Last = \n \n End . \n",
]


def test_wikitext_lines_become_articles_again(tmp_path: Path) -> None:
    """The released text, blank lines spelt as empty rows as on the hub, comes back to the letter."""
    lines = (" \n" + "".join(ARTICLES)).splitlines(keepends=True)
    rows = [{"text": line if line.strip() else ""} for line in lines]
    parquet(tmp_path / "wikitext-103-raw-v1/test-00000-of-00001.parquet", rows)
    documents, origin = opened(f"wikitext-103:path={tmp_path}")
    assert [d.text for d in documents] == ARTICLES
    starts = list(itertools.accumulate([1, *(a.count("\n") for a in ARTICLES[:-1])]))
    assert [d.name for d in documents] == [f"test-{at:09d}" for at in starts]
    assert origin["rows_read"] == len(lines)


@pytest.mark.parametrize(("rows", "found"), [
    ([" = A = ", "", "a"], [" = A = \n \na\n"]),  # no newlines kept; nothing before the first heading
    ([" = A = \n", "", "", " = B = \n"], [" = A = \n \n \n", " = B = \n"]),  # nothing after the last
    ([" = A = \n", "", " = B = \n", "b"], [" = A = \n \n = B = \nb\n"]),  # text right below: a line of A
    ([" = A = \n", "", "a\n", " = B = \n", ""], [" = A = \n \na\n = B = \n \n"]),  # text right above
    (["", ""], []),
])  # fmt: skip
def test_what_makes_a_heading(tmp_path: Path, rows: list[str], found: list[str]) -> None:
    json_lines(tmp_path / "a.jsonl", [{"text": row} for row in rows])
    documents, _ = hub_documents(toy(path=str(tmp_path), join="wikitext-articles"), "toy")
    assert [d.text for d in documents] == found


def test_text_before_the_first_heading_is_refused(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", [{"text": row} for row in ("", " a \n", "", " = A = \n", "")])
    assert refusal(toy(path=str(tmp_path), join="wikitext-articles")) == (
        "task toy: join: wikitext-articles: row 1 stands before the first article heading, "
        "a row ' = Title = ' between blank rows"
    )


def test_empty_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", [{"text": t} for t in ("a", "", " \n", "b", None)])
    documents, origin = hub_documents(toy(path=str(tmp_path)), "toy")
    assert documents == [Document("test-000000000", "a"), Document("test-000000003", "b")]
    assert origin["empty_documents"] == 3


class Hub:
    """Stands in for the hub's file system, with files at one commit; keeps the names that were opened."""

    def __init__(self, files: dict[str, bytes], repository: str = "o/n", revision: str = COMMIT) -> None:
        self.files = {f"datasets/{repository}@{revision}/{name}": raw for name, raw in files.items()}
        self.opened: list[str] = []

    def glob(self, pattern: str) -> list[str]:
        return [name for name in self.files if fnmatch.fnmatchcase(name, pattern)]

    def open(self, name: str, mode: str) -> io.BytesIO:
        assert mode == "rb"
        self.opened.append(name)
        return io.BytesIO(self.files[name])


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def test_a_hub_set_is_fetched_at_its_commit_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task, _ = open_task(parse_spec("pg19"))
    assert isinstance(task.source, HubSource)
    hub = Hub(
        {"data/test-1.parquet": b"", "data/test-0.parquet": b"", "data/train-0.parquet": b"", "code.py": b""},
        "emozilla/pg19", task.source.revision,
    )  # fmt: skip
    fetched = []

    def fetch(repository: str, name: str, *, repo_type: str, revision: str) -> str:
        fetched.append((repository, name, repo_type, revision))
        path = tmp_path / name
        parquet(path, [{"text": f"book of {name}"}])
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    documents, origin = opened("pg19")
    names = ["data/test-0.parquet", "data/test-1.parquet"]
    assert fetched == [("emozilla/pg19", name, "dataset", task.source.revision) for name in names]
    assert documents == [Document(f"test-{i:09d}", f"book of {name}") for i, name in enumerate(names)]
    assert origin["revision"] == task.source.revision
    assert "local_copy" not in origin and not hub.opened


def test_reading_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are streamed in order of name; only as many rows and files are read as the limit needs."""
    part = ["".join(json.dumps({"text": f"t{i}", "kind": "ab"[i % 2]}) + "\n" for i in range(n, n + 4))
            for n in (0, 4, 8)]  # fmt: skip
    hub = Hub({"2.jsonl": part[2].encode(), "0.jsonl": part[0].encode(), "1.jsonl": part[1].encode()})
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    documents, origin = hub_documents(toy(where={"kind": "b"}, limit=3), "toy")
    assert [d.text for d in documents] == ["t1", "t3", "t5"]
    assert (origin["limit"], origin["limit_reached"]) == (3, True)
    assert (origin["rows_read"], origin["rows_passed_over"]) == (6, 3)
    assert [name.rsplit("/", 1)[1] for name in hub.opened] == ["0.jsonl", "1.jsonl"]


def test_a_limit_counts_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [" = A = ", "", "a", ""] * 50
    hub = Hub({"a.parquet": parquet_bytes([{"text": t} for t in lines])})
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    source = toy(join="wikitext-articles", limit=2, data_files="*.parquet")
    documents, origin = hub_documents(source, "toy")
    assert [d.text for d in documents] == [" = A = \n \na\n \n"] * 2
    assert [d.name for d in documents] == ["test-000000000", "test-000000004"]
    assert origin["rows_read"] == 10  # the third heading and the blank row that makes it one


def test_a_connection_that_breaks_while_reading_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(io.BytesIO):
        def readline(self, *sizes: Any) -> bytes:
            if self.tell():
                raise ConnectionError("reset\nby peer")
            return super().readline(*sizes)

        def peek(self, size: int) -> bytes:
            return self.getvalue()[:size]

    hub = Hub({"a.jsonl": b'{"text": "a"}\n{"text": "b"}\n'})
    monkeypatch.setattr(hub, "open", lambda name, mode: Breaking(hub.files[name]))
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    assert refusal(toy(limit=5)) == (
        "task toy: cannot read o/n (reset by peer); with a local copy of *.jsonl: --task toy:path=DIR"
    )


@pytest.mark.slow
def test_a_refusal_while_parquet_is_read_ends_as_a_refusal(tmp_path: Path) -> None:
    """Status 2 every time: threads that still read as the program ended aborted it, in half of the runs."""
    parquet(tmp_path / "a.parquet", [{"body": "a" * 1000, "n": i} for i in range(20_000)])
    script = (
        "import sys\n"
        "from kerple_eval.data.sources.hub import hub_documents\n"
        "from kerple_eval.data.sources.kinds import HubSource\n"
        "from kerple_eval.types import UserError\n"
        f"source = HubSource('o/n', {COMMIT!r}, '*.parquet', 'test', 'text', path={str(tmp_path)!r})\n"
        "try:\n"
        "    hub_documents(source, 'toy')\n"
        "except UserError:\n"
        "    sys.exit(2)\n"
    )
    assert {subprocess.run([sys.executable, "-c", script], check=False).returncode for _ in range(6)} == {2}


@pytest.mark.parametrize(("row", "changes", "says"), [
    ({"body": "a", "meta": 1}, {}, "no column 'text'; it has: body, meta"),
    ({"text": "a"}, {"where": {"meta.kind": "b"}}, "no column 'meta.kind'; it has: text"),
    ({"text": 3}, {}, "column 'text' must hold text, got int 3"),
    ({"text": "\ud800"}, {}, SURROGATE),
    ([1], {}, "expected a JSON object, got list"),
])  # fmt: skip
def test_rows_of_another_shape(tmp_path: Path, row: Any, changes: dict[str, Any], says: str) -> None:
    json_lines(tmp_path / "a.jsonl", [row])
    assert refusal(toy(path=str(tmp_path), **changes)) == f"task toy: a.jsonl:1: {says}"


def test_a_parquet_file_without_the_column(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"body": "a", "meta": 1}])
    assert refusal(toy(path=str(tmp_path), data_files="*.parquet")) == (
        "task toy: a.parquet:1: no column 'text'; it has: body, meta"
    )


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert refusal(toy(path=str(tmp_path))).startswith("task toy: a.jsonl:2: not JSON: ")


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"text": "a"}])
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    message = refusal(toy(path=str(tmp_path), data_files="*.parquet"))
    assert message.startswith(f"task toy: cannot read {tmp_path} (")


def test_a_local_copy_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(toy(path=str(tmp_path / "no"))) == f"task toy: path={tmp_path / 'no'} is not a folder"
    assert refusal(toy(path=str(tmp_path))) == (
        f"task toy: {tmp_path} holds no file *.jsonl, where o/n keeps its test split"
    )


def test_without_a_hub_the_answer_is_one_line_and_quick(tmp_path: Path) -> None:
    script = (
        "from kerple_eval.support.specs import parse_spec\n"
        "from kerple_eval.data.sources.read import documents_of\n"
        "from kerple_eval.data.task import open_task\n"
        "from kerple_eval.types import UserError\n"
        "for name in ('pg19', 'arxiv'):\n"
        "    try:\n"
        "        documents_of(*open_task(parse_spec(name)))\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 20
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line, name, files in zip(
        lines, ("pg19", "arxiv"), ("data/test-*.parquet", "test.jsonl"), strict=True
    ):
        assert line.startswith(f"task {name}: cannot read ")
        assert line.endswith(f"; with a local copy of {files}: --task {name}:path=DIR")


def test_rows_joined_by_a_separator_keep_blank_ones(tmp_path: Path) -> None:
    """The quantisation papers' ``"\\n\\n".join(testdata["text"])``."""
    rows = ["", " = A = \n", " \n", "b", None]
    parquet(tmp_path / "a.parquet", [{"text": row} for row in rows])
    changes = {"path": str(tmp_path), "data_files": "*.parquet", "join": "blank-line"}
    documents, origin = hub_documents(toy(**changes), "toy")
    assert documents == [Document("test-000000000", "\n\n".join(row or "" for row in rows))]
    assert (origin["join"], origin["rows_read"], origin["limit_reached"]) == ("blank-line", 5, False)
    documents, origin = hub_documents(toy(**changes, limit=2), "toy")
    assert documents == [Document("test-000000000", "\n\n = A = \n")]
    assert (origin["rows_read"], origin["limit_reached"]) == (2, True)
    parquet(tmp_path / "a.parquet", [{"text": ""}])
    assert hub_documents(toy(**changes), "toy")[0] == []
