"""Files that hold texts: plain text, JSON lines, JSON, CSV and parquet, compressed or not.

The kind is the name's last ending, in any case and with a compression's ending taken off: ``.jsonl``,
``.jl`` and ``.ndjson``, ``.json`` (a list of objects or texts, one object, or JSON lines), ``.csv`` and
``.tsv`` (with a header), ``.parquet``; every other file is one plain text. gzip, bzip2, xz and zstd are
recognised by their first bytes. A row is an object with columns. UTF-8 alone is read; a byte-order mark is
taken off. Rows are read one by one, and the text that is kept of a file is bounded by ``LARGEST_TEXT``,
compressed or not.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

from kerple_eval.support.readers import (
    LARGEST_JSON,
    cannot_read,
    json_lines,
    open_regular,
    parse_json,
    quoted,
)
from kerple_eval.types import UserError

LARGEST_TEXT = 1 << 30  # bytes of one plain text, or of all rows of a file, decompressed
_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}
_KINDS = {
    ".jsonl": "jsonl", ".jl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
#: First bytes of files that hold no text as they are -> what they are.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive", b"%PDF": "a PDF", b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
    b"SQLite format 3": "an SQLite data base", b"\x89PNG": "an image", b"\x7fELF": "a program",
    b"{\\rtf": "RTF", b"\xd0\xcf\x11\xe0": "an Office document",
}  # fmt: skip

#: Endings of documents whose text is not what the file holds -> what they are.
_DOCUMENTS = {
    ".html": "HTML", ".htm": "HTML", ".xhtml": "HTML", ".rtf": "RTF", ".pdf": "PDF", ".ps": "PostScript",
    ".doc": "a Word document", ".docx": "a Word document", ".odt": "an OpenDocument text",
    ".epub": "an e-book",
}  # fmt: skip

_NUL = "not text: a NUL at byte {}; if this is UTF-16, convert it, for example with iconv"
NumberedRow = tuple[int, Any]  # number of the line or row, counted from 1; its content


class NoTextError(UserError):
    """A file that is no text as a whole, told before any of it is taken."""

    counted = "files that are not UTF-8 text"


class MarkupError(NoTextError):
    """A file whose text stands between markup."""

    counted = "HTML, RTF, PDF and office documents"


def kind_of(name: str) -> str:
    """text, jsonl, json, csv or parquet."""
    return _KINDS.get(_ending(name), "text")


def _ending(name: str) -> str:
    """The last ending without those of compressions, in small letters."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def refuse_markup(name: str, where: object) -> None:
    """Refuse a file whose ending says that its text stands between markup."""
    what = _DOCUMENTS.get(_ending(name))
    if what is not None:
        raise MarkupError(
            f"{where}: is {what}, whose markup would be scored as text; extract the text (pandoc -t plain, "
            "say), or name the file .txt to score it as it is"
        )


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed content of a file; an error of reading it becomes a UserError."""
    with reading(path), open_regular(path) as file, decompressed(file, path) as content:
        yield content


@contextmanager
def reading(where: object) -> Iterator[None]:
    """What the readers of files raise inside, as one line."""
    try:
        yield
    except UserError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{where}: damaged or cut off: {quoted(str(error), 200)[1:-1]}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); convert it, for example with iconv") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are kinds of these
        raise UserError(" ".join(cannot_read(where, error).split())[:400]) from None


@contextmanager
def decompressed(file: BinaryIO, where: object) -> Iterator[BinaryIO]:
    """The content of an open file, decompressed where its first bytes say that it is compressed."""
    buffered = cast(io.BufferedReader, file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file)))
    head = buffered.peek(512)[:512]
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            right = "convert it, for example with iconv" if "UTF-16" in what else "give the text itself"
            raise NoTextError(f"{where}: is {what}, not UTF-8 text; {right}")
    if head[257:262] == b"ustar":
        raise NoTextError(f"{where}: is a tar archive, not UTF-8 text; unpack it and give the folder")
    if head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=buffered) as content:
            yield cast(BinaryIO, content)
    elif head.startswith(b"BZh"):
        with bz2.BZ2File(buffered) as content:
            yield cast(BinaryIO, content)
    elif head.startswith(b"\xfd7zXZ\x00"):
        with lzma.LZMAFile(buffered) as content:
            yield cast(BinaryIO, content)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        from pyarrow import CompressedInputStream  # noqa: PLC0415 - only where a file needs it

        yield cast(BinaryIO, io.BufferedReader(CompressedInputStream(buffered, "zstd")))
    else:
        yield buffered


def plain_text(file: BinaryIO, where: object) -> str:
    """The whole of a file as UTF-8 text; newlines stay as they are, a byte-order mark is taken off."""
    raw = file.read(LARGEST_TEXT + 1)
    if len(raw) > LARGEST_TEXT:
        raise UserError(f"{where}: more than {LARGEST_TEXT:,} bytes of text; split it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoTextError(
            f"{where}: not UTF-8 at byte {error.start}; convert it, for example with iconv"
        ) from None
    if "\0" in text:
        raise NoTextError(f"{where}: {_NUL.format(raw.index(0))}")
    return text


def rows(
    file: BinaryIO, name: str, where: object, columns: Sequence[str] | None = None
) -> Iterator[NumberedRow]:
    """The rows of a file: plain text is one row ``text``; of parquet only ``columns``, where given."""
    kind = kind_of(name)
    if kind == "text":
        yield 1, {"text": plain_text(file, where)}
    elif kind == "jsonl":
        yield from json_lines(lines(file), where)
    elif kind == "json":
        yield from _json_rows(file, where)
    elif kind == "csv":
        yield from _csv_rows(file, where, tab=_ending(name) == ".tsv")
    else:
        yield from _parquet_rows(file, columns)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; of one that is too long to be read, its beginning."""
    return iter(lambda: file.readline(LARGEST_JSON + 1), b"")


def _json_rows(file: BinaryIO, where: object) -> Iterator[NumberedRow]:
    """The items of a list, the lines of JSON lines, or one object."""
    rest = lines(file)
    first = next((line for line in rest if line.strip()), b"")
    second = next((line for line in rest if line.strip()), None)
    if second is not None and _is_object(first):
        yield from json_lines(itertools.chain([first, second], rest), where)
        return
    raw = first + (second or b"")
    for line in rest:
        raw += line
        if len(raw) > LARGEST_JSON:
            raise UserError(f"{where}: larger than {LARGEST_JSON:,} bytes; write it as JSON lines (.jsonl)")
    value = parse_json(raw, where)
    if isinstance(value, dict):
        yield 1, value
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield number, {"text": item} if isinstance(item, str) else item
    else:
        raise UserError(f"{where}: expected a list of texts or an object, got {quoted(value)}")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line, ""), dict)
    except UserError:
        return False


def _csv_rows(file: BinaryIO, where: object, *, tab: bool) -> Iterator[NumberedRow]:
    size = 0  # bytes read since the last row

    def decoded() -> Iterator[str]:
        """Lines with the ends they have: a line feed, a carriage return or both."""
        nonlocal size
        for number, raw in enumerate(lines(file), start=1):
            here = f"{where}: line {number}"
            size += len(raw)
            if size > LARGEST_JSON:
                raise UserError(f"{here}: a row longer than {LARGEST_JSON:,} bytes; split it")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{here}: not UTF-8 at byte {error.start}; convert it, for example with iconv"
                ) from None
            if "\0" in text:
                raise UserError(f"{here}: {_NUL.format(raw.index(0))}")
            yield from io.StringIO(text, newline="")

    before = csv.field_size_limit(LARGEST_JSON)
    reader = csv.reader(decoded(), delimiter="\t" if tab else ",", strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UserError(f"{where}: two columns have one name: {quoted(header)}")
        for number, fields in enumerate(reader, start=1):
            size = 0
            if fields and len(fields) != len(header):
                raise UserError(
                    f"{where}: row {number} has {len(fields)} fields, the header {len(header)} columns"
                )
            if fields:
                yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: line {reader.line_num}: damaged or cut off: {error}") from None
    finally:
        csv.field_size_limit(before)


def _parquet_rows(file: BinaryIO, columns: Sequence[str] | None) -> Iterator[NumberedRow]:
    """Read in this thread alone: a thread of pyarrow's that still reads when the program ends aborts it."""
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415 - only where a file needs it

    parquet = ParquetFile(file, pre_buffer=False)
    names = parquet.schema_arrow.names
    wanted = {name if name in names else name.partition(".")[0] for name in columns or names}
    if not wanted <= set(names):
        wanted = set(names)  # one is missing: the caller's message lists those there are
    # one row a batch: a column that repeats one long text is small until its rows are made
    kept = [name for name in names if name in wanted]
    batches = parquet.iter_batches(batch_size=1, columns=kept, use_threads=False)
    for number, batch in enumerate(batches, start=1):
        yield number, batch.to_pylist()[0]


def folder_of(path: Path, where: str, pattern: str) -> Path:
    """``path``, refused where it is no folder, or where ``pattern`` would look into one that is closed."""
    try:
        root = path.resolve()
        if root.is_dir():
            for _ in os.walk(root, onerror=refuse_closed) if "/" in pattern else ():
                pass
            return root
    except (OSError, RuntimeError, ValueError):  # too long a name, a link to itself, a NUL inside
        pass
    raise UserError(f"{where} is not a folder")


def refuse_closed(error: OSError) -> NoReturn:
    """For ``os.walk``, which would leave out a folder that cannot be read."""
    raise UserError(cannot_read(error.filename, error))


def check_name(name: str) -> None:
    """Refuse a file name that no record could hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"file name {name!a} is not UTF-8; rename the file") from None


def matching(root: Path, pattern: str, where: str) -> list[Path]:
    """Regular files below ``root`` that match a pattern, in order of name."""
    parts = PurePosixPath(pattern).parts
    if not parts or pattern.startswith("/") or ".." in parts or "\0" in pattern:
        raise UserError(f"{where}: {quoted(pattern)} must be a pattern inside the folder, as *.txt")
    try:
        return [path for path in sorted(root.glob(pattern)) if path.is_file()]
    except (ValueError, NotImplementedError, OSError, RecursionError) as error:
        raise UserError(f"{where}: {quoted(pattern)} is no pattern of file names: {error}") from None


def column_of(row: Any, column: str, where: str) -> Any:
    """The value of a column, or of ``column.field`` inside one where no column has that whole name."""
    if isinstance(row, dict) and column in row:
        return row[column]
    value = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where}: no column {quoted(column)}; it has: {known[:300]}")
        value = value[part]
    return value


def texts(numbered: Iterable[NumberedRow], column: str, where: str) -> Iterator[tuple[int, str]]:
    """The text of each row's column, empty where it is null; in all at most ``LARGEST_TEXT`` bytes."""
    size = 0
    for number, row in numbered:
        value = column_of(row, column, f"{where}:{number}")
        if value is not None and not isinstance(value, str):
            raise UserError(
                f"{where}:{number}: column {quoted(column)} must hold text, "
                f"got {type(value).__name__} {quoted(value)}"
            )
        size += len((value or "").encode("utf-8", "surrogatepass"))
        if size > LARGEST_TEXT:
            raise UserError(f"{where}: more than {LARGEST_TEXT:,} bytes of text in its rows; split it")
        yield number, value or ""
