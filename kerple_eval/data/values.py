"""Texts and token ids that a script or notebook gives as values: strings, paths, data sets, arrays.

A ``str`` is text itself and a ``Path`` names a file, so that neither is ever taken for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.data.documents import Document, TokenDocument, check_encodable, text_hash
from kerple_eval.data.sources.own import TextFiles, read_texts, refuse_repeats
from kerple_eval.data.texts import TextSource, tokens_hash
from kerple_eval.records.specification import TaskRecord
from kerple_eval.support.files import is_file
from kerple_eval.types import BosRule, UserError


def text_of(value: Any, *, column: str = "text", bos: BosRule | None = None) -> TextSource:
    """A text named ``text``: one document per string or row of a data set, and those that a file holds.

    Args:
        value: text, a ``Path``, a ``datasets.Dataset``, or a sequence of these.
        column: the column of a data set that holds the text.

    Raises:
        UserError: nothing to read, a value of another kind, or a string that names an existing file.
    """
    parts = [value] if isinstance(value, str | Path) or _is_dataset(value) else value
    if isinstance(parts, bytes) or not isinstance(parts, Iterable):
        raise UserError(
            f"text: expected a string, a Path, a datasets.Dataset or a sequence of them, got {_kind(value)}"
        )
    found = TextFiles()
    for number, part in enumerate(parts, start=1):
        _read(part, number, column, found)
    if not found.documents:
        raise UserError("text: holds no document; a document needs text")
    refuse_repeats([document.name for document in found.documents])
    rule = bos or "tokenizer"
    record = TaskRecord(
        "text", source=found.record, packing="document", bos=rule, text_sha256=text_hash(found.documents)
    )
    return TextSource("text", record, found.documents, bos=rule)


def _read(part: Any, number: int, column: str, found: TextFiles) -> None:
    """Add the documents of one value to ``found``."""
    if isinstance(part, Path):
        read_texts(part, found, column)
    elif isinstance(part, str):
        if "\n" not in part and is_file(Path(part)):
            raise UserError(
                f"text {part!r} is also the name of a file: write Path({part!r}) for what the file holds, or "
                f"{part + chr(10)!r} for these words"
            )
        if not part.strip():
            raise UserError(f"text: document {number} is empty; a document needs text")
        found.documents.append(Document(f"text:{number}", check_encodable(part, f"text: document {number}")))
    elif _is_dataset(part):
        names = part.column_names
        if column not in (names or ()):
            known = (
                "it names none, so give its texts as a list"
                if names is None
                else f"it has {', '.join(names)}"
            )
            raise UserError(f"text: the data set has no column {column!r}; {known}")
        rows = part[column]
        for i, row in enumerate(rows):
            if not isinstance(row, str | None):
                raise UserError(f"text: row {i} of column {column!r} is {_kind(row)}, expected text")
        name = "row" if number == 1 else f"row {number}"
        for i, row in enumerate(rows):
            if row is None or not row.strip():
                found.passed_over["rows without text"] += 1
            else:
                found.documents.append(Document(f"{name}:{i}", check_encodable(row, f"row {i}")))
    else:
        raise UserError(f"text: expected a string, a Path or a datasets.Dataset, got {_kind(part)}")


def tokens_of(value: Any) -> TextSource:
    """A text named ``tokens``: ids as given, one document per array or a sequence of integers.

    Raises:
        UserError: no ids, ids that are no whole numbers from 0 on, or a value of another kind.
    """
    if isinstance(value, str):
        raise UserError(f"tokens {value!r}: write Path({value!r}) for a file of ids")
    documents = [TokenDocument(f"tokens:{i}", ids) for i, ids in enumerate(_arrays(value), start=1)]
    if not documents:
        raise UserError("tokens: holds no document")
    record = TaskRecord("tokens", tokens_sha256=tokens_hash(documents))
    return TextSource("tokens", record, [], documents, "never")


def holds_ids(value: Any) -> bool:
    """Whether a value is token ids, not text: numbers, an array or tensor, or a sequence of such."""
    if isinstance(value, str | Path) or _is_dataset(value):
        return False
    if hasattr(value, "__array__") or hasattr(value, "dtype"):
        return True
    first = next(iter(value), None) if isinstance(value, Iterable) else None
    return isinstance(first, int | np.integer) or (
        first is not None and not isinstance(first, str) and holds_ids(first)
    )


def _arrays(value: Any) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    array = _array(value)
    if array is not None:
        return [array] if array.ndim == 1 else list(array)
    if not isinstance(value, Sequence):
        raise UserError(f"tokens: expected ids, an array or a sequence of arrays, got {_kind(value)}")
    found = []
    for number, part in enumerate(value, start=1):
        row = _array(part)
        if row is None or row.ndim != 1:
            raise UserError(f"tokens: document {number}: expected a row of ids, got {_kind(part)}")
        found.append(row)
    return found


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Whole numbers as int64 ``[n]`` or ``[documents, n]``; None for rows of several sizes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    if array.dtype.kind not in "iu":
        if array.dtype == object or array.ndim == 0 or not array.size:
            return None
        raise UserError(f"tokens: ids must be whole numbers, got {array.dtype}")
    if array.ndim not in (1, 2) or not array.size:
        raise UserError(f"tokens: expected ids [n] or [documents, n], got the shape {array.shape}")
    if array.min() < 0:
        raise UserError(f"tokens: id {int(array.min())} is below 0")
    return array.astype(np.int64)


def _is_dataset(value: Any) -> bool:
    return type(value).__module__.startswith("datasets.") and hasattr(value, "column_names")


def _kind(value: Any) -> str:
    return type(value).__name__
