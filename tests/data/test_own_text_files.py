"""``--text`` and ``--tokens``: what becomes a document, and one-line refusals that name file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kerple_eval.data.documents import Document
from kerple_eval.data.sources import files
from kerple_eval.data.sources.files import folder_of
from kerple_eval.data.sources.own import text_files, token_files
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
    one = written(tmp_path / "one.txt", "a\r\nb\n\né\x01\u2028")
    two = written(tmp_path / "two.md", " x")
    assert text_files((two, one)).documents == [
        Document("two.md", " x"),
        Document("one.txt", "a\r\nb\n\né\x01\u2028"),
    ]


def test_json_lines_are_a_document_a_line(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", '{"text": "one\\u2028\\n", "n": 1}\n\n  \n{"text": "zw\u00f6lf\u2028"}'
    )
    assert text_files((path,)).documents == [
        Document("a.jsonl:1", "one\u2028\n"),
        Document("a.jsonl:4", "zwölf\u2028"),
    ]


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
def test_a_file_that_cannot_be_opened(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    monkeypatch.chdir(tmp_path)
    for path, why in (
        (tmp_path / "a.jsonl", "No such file or directory"), ("n" * 300, "File name too long"),
        (loop, "Too many levels of symbolic links"), ("a\0b", "embedded null byte"),
    ):  # fmt: skip
        assert refusal(read, str(path)) == f"{path}: cannot be read: {why}"


@pytest.mark.parametrize(("line", "says"), [
    ('{"text": "a"', "not JSON: "),
    ("text", "not JSON: "),
    ('{"text": ' + "9" * 5000 + "}", "not JSON: "),
    ('["text"]', "expected a JSON object, got list"),
    ('"text"', "expected a JSON object, got str"),
    ("null", "expected a JSON object, got NoneType"),
    ('{"body": 1, "id": 2}', "no column 'text'; it has: body, id"),
    ('{"text": 3}', "column 'text' must hold text, got int 3"),
    ('{"text": ["a"]}', "column 'text' must hold text, got list ['a']"),
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


ROWS = [
    {"text": "one\n", "id": 1},
    {"text": None, "id": 2},
    {"text": 'two, "é"', "id": 3},
    {"text": " ", "id": 4},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def table() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def comma_separated() -> bytes:
    sink = io.StringIO(newline="")
    csv.DictWriter(sink, ["text", "id"]).writeheader()
    csv.DictWriter(sink, ["text", "id"]).writerows(ROWS)
    return sink.getvalue().encode()


WRITTEN = {
    "a.jsonl": LINES, "a.JSONL": LINES, "a.ndjson": LINES, "a.json": LINES,
    "b.json": json.dumps(ROWS).encode(),
    "c.json": json.dumps(ROWS, indent=1).encode(), "a.parquet": table(), "a.csv": comma_separated(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES, "bom.csv": b"\xef\xbb\xbf" + comma_separated(),
    "a.tsv": comma_separated().replace(b",id", b"\tid").replace(b",1", b"\t1").replace(b",2", b"\t2")
    .replace(b",3", b"\t3").replace(b",4", b"\t4"),
    "a.jsonl.gz": gzip.compress(LINES), "a.json.bz2": bz2.compress(LINES),
    "a.csv.xz": lzma.compress(comma_separated()),
    "a.jsonl.zst": pa.compress(LINES, codec="zstd", asbytes=True), "gz.jsonl": gzip.compress(LINES),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_files_of_rows_give_the_same_documents(tmp_path: Path, name: str) -> None:
    """Every format holds the same four rows, of which two have no text."""
    found = text_files([written(tmp_path / name, WRITTEN[name])])
    assert found.documents == [Document(f"{name}:1", "one\n"), Document(f"{name}:3", 'two, "é"')]
    assert found.passed_over == {"rows without text": 2}


def test_compressed_and_marked_text_is_text(tmp_path: Path) -> None:
    raw = "zwölf\r\n".encode()
    zstd = pa.compress(raw, codec="zstd", asbytes=True)
    for name, content in (
        ("a.txt", b"\xef\xbb\xbf" + raw), ("a.txt.gz", gzip.compress(raw)), ("a.bz2", bz2.compress(raw)),
        ("a.md.zst", zstd), ("a", lzma.compress(raw)),
    ):  # fmt: skip
        assert text_files([written(tmp_path / name, content)]).documents == [Document(name, "zwölf\r\n")]


def test_a_json_file_of_texts_or_of_one_object(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '["one", "two"]')
    assert [d.text for d in text_files([path]).documents] == ["one", "two"]
    path = written(tmp_path / "b.json", '{"title": "t",\n "text": "one"}')
    assert [d.text for d in text_files([path]).documents] == ["one"]


@pytest.mark.parametrize(("name", "content", "says"), [
    ("a.zip", b"PK\x03\x04rest", "is a zip archive, not UTF-8 text; "),
    ("a.txt", b"%PDF-1.4", "is a PDF, not UTF-8 text; "),
    ("a.html", b"<p>text</p>", "is HTML, whose markup would be scored as text; extract the text ("),
    ("a.HTM.gz", gzip.compress(b"<p>text</p>"), "is HTML, whose markup"),
    ("a.docx", b"PK\x03\x04rest", "is a Word document, whose markup"),
    ("a.rtf", b"{\\rtf1 text}", "is RTF, whose markup would be scored as text; "),
    ("a.txt", b"{\\rtf1 text}", "is RTF, not UTF-8 text; "),
    ("a.txt", "text".encode("utf-16"), "is UTF-16 text, not UTF-8 text; convert it, for example with iconv"),
    ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "damaged or cut off: "),
    ("a.txt.gz", b"\x1f\x8b\x08\x00broken", ": "),
    ("a.xz", b"\xfd7zXZ\x00broken", "damaged or cut off: "),
    ("a.zst", b"\x28\xb5\x2f\xfdbroken", "cannot be read: "),
    ("a.txt", "text".encode("utf-16-le"), "not text: a NUL at byte 1; if this is UTF-16, convert it, "),
    ("a.json", b"3", "expected a list of texts or an object, got 3"),
    ("a.json", b"[1]", "1: no column 'text'; it has: int"),
    ("a.json", b'{"data": []}', "1: no column 'text'; it has: data"),
    ("a.csv", b"body,id\na,1\n", "1: no column 'text'; it has: body, id"),
    ("a.csv", b"text,id\na\n", "row 1 has 1 fields, the header 2 columns"),
    ("a.csv", b"text,text\na,b\n", "two columns have one name: ['text', 'text']"),
    ("a.csv", b'text\n"a', "damaged or cut off: "),
    ("a.csv", b"text\n\xff\n", "not UTF-8 "),
    ("a.parquet", b"PAR1broken", "cannot be read: "),
    ("a.parquet", b"text", "cannot be read: "),
])  # fmt: skip
def test_what_holds_no_text_is_refused_in_plain_words(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = written(tmp_path / name, content)
    message = refusal(text_files, path)
    assert message.startswith(path) and says in message
    assert "\n" not in message


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    for name, content in (
        ("b.txt", b"b"), ("deep/a.txt", b"a"), ("rows.jsonl", LINES), ("empty.txt", b" "), (".hidden", b"no"),
        ("picture.png", b"\x89PNG\r\n"), ("deep/bytes.bin", b"\xff\x00"), ("latin.txt", b"caf\xe9"),
        ("utf16.txt", "wide".encode("utf-16-le")), ("page.html", b"<p>c</p>"), (".git/a", b"a"),
        (".git/b", b"b"),
    ):  # fmt: skip
        written(tmp_path / "texts" / name, content)
    found = text_files([tmp_path / "texts"])
    assert [(d.name, d.text) for d in found.documents] == [
        ("b.txt", "b"), ("deep/a.txt", "a"), ("rows.jsonl:1", "one\n"), ("rows.jsonl:3", 'two, "é"'),
    ]  # fmt: skip
    assert found.passed_over == {
        "rows without text": 2, "empty files": 1, "hidden files": 1, "hidden folders": 1,
        "files that are not UTF-8 text": 4, "HTML, RTF, PDF and office documents": 1,
    }  # fmt: skip
    (tmp_path / "none").mkdir()
    assert refusal(text_files, str(tmp_path / "none")).endswith("empty; a document needs text")


@pytest.mark.parametrize(("name", "content", "says"), [
    ("a.jsonl", LINES + b'{"txt": "renamed"}\n' + LINES, ":5: no column 'text'; it has: txt"),
    ("a.jsonl", LINES + b'{"text": "caf\xe9"}\n', ":5: not UTF-8 at byte 13; "),
    ("a.json", b'["a", 1]', ":2: no column 'text'; it has: int"),
    ("a.csv", b"text\n" + b"a line\n" * 9999 + b"caf\xe9\nafter\n", ": line 10001: not UTF-8 at byte 3; "),
    ("a.csv", b"text\na\na\x00b\n", ": line 3: not text: a NUL at byte 1; "),
    ("a.csv", b'text\na\n"b" c\n', ": line 3: damaged or cut off: "),
    ("a.csv", b"text,id\na,1\nb\n", ": row 2 has 1 fields, the header 2 columns"),
    ("a.csv", "text\na\n".encode("utf-16"), ": is UTF-16 text, not UTF-8 text; "),
    ("a.jsonl", b'{"words": "all"}\n', ":1: no column 'text'; it has: words"),
])  # fmt: skip
def test_a_bad_row_is_refused_in_a_folder_as_alone(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    """Never the rows before it alone."""
    path = written(tmp_path / "texts" / name, content)
    written(tmp_path / "texts" / "b.txt", b"b")
    assert refusal(text_files, path).startswith(path + says)
    assert refusal(text_files, str(tmp_path / "texts")) == refusal(text_files, path)


def test_a_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    written(tmp_path / "d" / "a.html", b"<p>a</p>")
    written(tmp_path / "d" / "b.bin", b"\xff\x00")
    assert refusal(text_files, str(tmp_path / "d")).endswith(
        "d: empty; a document needs text (passed over: HTML, RTF, PDF and office documents 1, "
        "files that are not UTF-8 text 1)"
    )


def test_links_in_a_folder(tmp_path: Path) -> None:
    """A linked file is read; a linked folder, which may be the folder itself, is counted."""
    other = written(tmp_path / "other" / "b.txt", b"b")
    folder = tmp_path / "texts"
    written(folder / "a.txt", b"a")
    (folder / "b.txt").symlink_to(other)
    (folder / "more").symlink_to(tmp_path / "other")
    (folder / "round").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    found = text_files([folder])
    assert [d.name for d in found.documents] == ["a.txt", "b.txt"]
    assert found.passed_over == {"linked folders": 2, "broken links and special files": 2}


def test_a_closed_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "texts" / "shut" / "a.txt", b"a")
    written(tmp_path / "texts" / "b.txt", b"b")
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    says = f"{tmp_path}/texts/shut: cannot be read: Permission denied"
    assert refusal(text_files, str(tmp_path / "texts")) == says
    with pytest.raises(UserError) as caught:
        folder_of(tmp_path / "texts", "where", "**/*.txt")
    assert str(caught.value) == says
    assert folder_of(tmp_path / "texts", "where", "*.txt") == tmp_path / "texts"


def test_a_column_whose_name_has_a_dot(tmp_path: Path) -> None:
    """The whole name first, then a field of a column."""
    flat, inner = {"meta.text": "flat", "id": 1}, {"meta": {"text": "inner"}, "id": 1}
    pq.write_table(pa.Table.from_pylist([flat]), tmp_path / "flat.parquet")
    pq.write_table(pa.Table.from_pylist([inner]), tmp_path / "inner.parquet")
    written(tmp_path / "flat.csv", b"id,meta.text\n1,flat\n")
    written(tmp_path / "both.jsonl", json.dumps(inner | flat))
    for name, text in (
        ("flat.parquet", "flat"), ("inner.parquet", "inner"), ("flat.csv", "flat"), ("both.jsonl", "flat"),
    ):  # fmt: skip
        found = text_files((f"{tmp_path / name},column=meta.text",))
        assert [d.text for d in found.documents] == [text], name


def test_the_delimiter_is_that_of_the_ending(tmp_path: Path) -> None:
    written(tmp_path / "x.tsv-export" / "a.tsv.csv", b"id,text\n1,words\n")
    assert [d.text for d in text_files([tmp_path]).documents] == ["words"]


def test_lines_of_a_table_end_as_they_may(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        path = written(tmp_path / "a.csv", f'text,id{end}"one{end}two",1{end}three,2{end}'.encode())
        assert [d.text for d in text_files([path]).documents] == [f"one{end}two", "three"]


def test_the_text_of_rows_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes of UTF-8, as it is read; a column of one repeated text is tiny on disk."""
    monkeypatch.setattr(files, "LARGEST_TEXT", 100)
    table = pa.table({"text": pa.DictionaryArray.from_arrays(pa.array([0] * 11, pa.int32()), ["é" * 5])})
    pq.write_table(table, tmp_path / "a.parquet")
    lines = gzip.compress(json.dumps({"text": "a" * 10}).encode() + b"\n") * 11
    for path in (tmp_path / "a.parquet", Path(written(tmp_path / "a.jsonl.gz", lines))):
        assert refusal(text_files, str(path)) == f"{path}: more than 100 bytes of text in its rows; split it"
    lines = gzip.compress(json.dumps({"text": "a" * 10}).encode() + b"\n") * 10
    assert len(text_files([written(tmp_path / "b.jsonl.gz", lines)]).documents) == 10


def test_a_row_of_a_table_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes, in one line or in many; not the table."""
    monkeypatch.setattr(files, "LARGEST_JSON", 100)
    for row in (b"a" * 101, b'"a\n",' * 30, b'"' + b"a\n" * 60):
        path = written(tmp_path / "a.csv", b"text\n" + b"word\n" * 99 + row)
        assert "a row longer than 100 bytes; split it" in refusal(text_files, path)
    assert len(text_files([written(tmp_path / "b.csv", b"text\n" + b"word\n" * 99)]).documents) == 99


def test_a_compressed_file_of_token_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl.gz", gzip.compress(b'{"tokens": [1, 2]}\n'))
    assert [d.ids.tolist() for d in token_files((path,))] == [[1, 2]]
    path = written(tmp_path / "u.jsonl", '{"tokens": [1], "name": 3}\n')
    assert refusal(token_files, path) == f'{path}:1: "name" must be text, got 3'


JOINED = [" = A = \n", "", " text \n", " \n", "", "end"]
SEPARATORS = {"blank-line": "\n\n", "newline": "\n", "space": " ", "nothing": ""}


@pytest.mark.parametrize("rule", SEPARATORS)
def test_joined_rows_are_one_document_with_blank_rows_inside(tmp_path: Path, rule: str) -> None:
    """As ``separator.join(dataset["text"])`` makes it: a row that is left out would change the number."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"page": [*JOINED, None]}), path)
    found = text_files((f"{path},column=page,join={rule}",))
    assert found.documents == [Document("rows.parquet", SEPARATORS[rule].join([*JOINED, ""]))]
    assert found.record == {"join": {"rows.parquet": rule}}
    assert text_files((f"{path},join={rule},column=page",)).documents == found.documents


def test_a_folder_is_joined_in_the_order_of_its_files(tmp_path: Path) -> None:
    written(tmp_path / "d" / "b.txt", "two\n")
    written(tmp_path / "d" / "a.jsonl", '{"text": "one"}\n{"text": ""}\n')
    written(tmp_path / "d" / ".hidden", "x")
    found = text_files((f"{tmp_path / 'd'},join=newline", written(tmp_path / "c.txt", "apart")))
    assert found.documents == [Document("d", "one\n\ntwo\n"), Document("c.txt", "apart")]
    assert found.record == {"passed_over": {"hidden files": 1}, "join": {"d": "newline"}}


def test_joining_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    blank = written(tmp_path / "blank.jsonl", '{"text": " "}')
    assert "did you mean 'blank-line'? available: blank-line, " in refusal(
        text_files, f"{blank},join=blankline"
    )
    assert "empty; a document needs text" in refusal(text_files, f"{blank},join=space")
    assert "join is given twice" in refusal(text_files, f"{blank},join=space,join=space")
    odd = written(tmp_path / "odd,join=space", "a file of that name")
    assert text_files((odd,)).documents == [Document("odd,join=space", "a file of that name")]
