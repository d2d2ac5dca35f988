"""``--text`` and ``--tokens``: what becomes a document, and one-line refusals that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kerple_eval.data.documents import Document
from kerple_eval.data.sources.read import text_files, token_files
from kerple_eval.types import UserError


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refusal(read: Callable[[tuple[str, ...]], Any], *paths: str) -> str:
    with pytest.raises(UserError) as caught:
        read(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_file_is_a_document_and_keeps_its_newlines(tmp_path: Path) -> None:
    one = written(tmp_path / "one.txt", "a\r\nb\n\né\x00\u2028")
    two = written(tmp_path / "two.md", " x")
    assert text_files((two, one)) == [Document("two.md", " x"), Document("one.txt", "a\r\nb\n\né\x00\u2028")]


def test_json_lines_are_a_document_a_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", '{"text": "one\\u2028\\n", "n": 1}\n\n  \n{"text": "zw\u00f6lf\u2028"}'
    )
    assert text_files((path,)) == [Document("a.jsonl:1", "one\u2028\n"), Document("a.jsonl:4", "zwölf\u2028")]


@pytest.mark.parametrize("content", ["", " \n\t\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_is_refused_also_after_a_full_one(tmp_path: Path, name: str, content: str) -> None:
    full = written(tmp_path / "full.txt", "text")
    path = written(tmp_path / name, content)
    assert refusal(text_files, path) == f"{path}: empty; a document needs text"
    assert refusal(text_files, full, path) == f"{path}: empty; a document needs text"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", b'{"text": "caf\xe9"}')
    assert refusal(text_files, path) == f"{path}: not UTF-8 at byte 13; convert it, for example with iconv"
    for read, good in ((text_files, b'{"text": "a"}'), (token_files, b'{"tokens": [1]}')):
        path = written(tmp_path / "a.jsonl", good + b'\n{"text": "caf\xe9"}')
        assert refusal(read, path) == f"{path}:2: not UTF-8 at byte 13; save it as UTF-8"


@pytest.mark.parametrize("read", [text_files, token_files])
def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path, read: Any) -> None:
    missing = str(tmp_path / "a.jsonl")
    assert refusal(read, missing) == f"{missing}: cannot be read: No such file or directory"
    assert refusal(read, str(tmp_path)) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.mark.parametrize(("line", "says"), [
    ('{"text": "a"', "not JSON: "),
    ("text", "not JSON: "),
    ('{"text": ' + "9" * 5000 + "}", "not JSON: "),
    ('["text"]', "expected a JSON object, got list"),
    ('"text"', "expected a JSON object, got str"),
    ("null", "expected a JSON object, got NoneType"),
    ("{}", 'no "text" field holding text'),
    ('{"text": 3}', 'no "text" field holding text'),
    ('{"text": null}', 'no "text" field holding text'),
    ('{"text": ""}', 'no "text" field holding text'),
    ('{"text": " \\n"}', 'no "text" field holding text'),
    ('{"text": "a\\ud800"}', "half a surrogate pair"),
])  # fmt: skip
def test_a_bad_line_of_text_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "good"}\n' + line + '\n{"text": "good"}\n')
    assert refusal(text_files, path).startswith(f"{path}:2: {says}")


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a/x.txt", "one"), written(tmp_path / "b/x.txt", "two")
    assert refusal(text_files, one, two).startswith("two documents are named 'x.txt'; ")
    twice = written(tmp_path / "t.jsonl", '{"tokens": [1], "name": "x"}\n{"tokens": [2], "name": "x"}\n')
    assert refusal(token_files, twice).startswith("two documents are named 'x'; ")


def test_token_ids_are_used_as_given(tmp_path: Path) -> None:
    rows = [{"tokens": [0, 5, 2**31 - 1]}, {"tokens": [7], "name": "seven"}]
    path = written(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    documents = token_files((path,))
    assert [(d.name, d.ids.tolist(), d.byte_counts) for d in documents] == [
        ("t.jsonl:1", [0, 5, 2**31 - 1], None),
        ("seven", [7], None),
    ]
    assert all(d.ids.dtype == "int64" for d in documents)


@pytest.mark.parametrize(
    "ids",
    [
        "[]",
        "[true]",
        "[1, false]",
        "[-1]",
        "[1.0]",
        '["1"]',
        "[2147483648]",
        "[null]",
        "3",
        '"12"',
        "{}",
        "null",
    ],
)
def test_what_is_no_list_of_token_ids(tmp_path: Path, ids: str) -> None:
    path = written(tmp_path / "t.jsonl", f'{{"tokens": [1]}}\n{{"tokens": {ids}}}\n')
    assert refusal(token_files, path) == f'{path}:2: no "tokens" field holding token ids'


def test_token_lines_without_the_field_or_the_braces(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", '{"ids": [1]}\n')
    assert refusal(token_files, path) == f'{path}:1: no "tokens" field holding token ids'
    path = written(tmp_path / "u.jsonl", "[1, 2]\n")
    assert refusal(token_files, path) == f"{path}:1: expected a JSON object, got list"


def test_an_empty_token_file_is_refused_also_after_a_full_one(tmp_path: Path) -> None:
    full, empty = written(tmp_path / "t.jsonl", '{"tokens": [1]}'), written(tmp_path / "e.jsonl", "\n")
    says = f'{empty}: empty; expected lines {{"tokens": [...]}}'
    assert refusal(token_files, empty) == says
    assert refusal(token_files, full, empty) == says
