"""The user's own files: ``--text`` (documents) and ``--tokens`` (token ids)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.data.documents import Document, TokenDocument
from kerple_eval.data.sources.files import (
    NoTextError,
    check_name,
    kind_of,
    lines,
    opened,
    plain_text,
    refuse_markup,
    rows,
    texts,
)
from kerple_eval.support.files import is_file, is_folder
from kerple_eval.support.readers import json_lines, quoted
from kerple_eval.types import UserError

_COLUMN = re.compile(r"(?P<path>.+),column=(?P<column>[^,]+)", re.DOTALL)


@dataclass
class TextFiles:
    """Documents of text files, and what was passed over: reason -> how many."""

    documents: list[Document] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def record(self) -> dict[str, Any] | None:
        """What a record must say of them: nothing, where nothing was passed over."""
        return {"passed_over": dict(sorted(self.passed_over.items()))} if self.passed_over else None


def text_files(paths: Sequence[str | Path]) -> TextFiles:
    """``--text``: plain files (a document each), files of rows (a column of them), folders of both.

    The column is ``text``, or the one named as in ``FILE,column=NAME``.

    Rows and files without text are passed over and counted, inside a folder also files that hold no text at
    all; a file given by name must hold some.
    """
    found = TextFiles()
    for given in paths:
        match = _COLUMN.fullmatch(str(given))
        if match is None or is_file(Path(given)):
            read_texts(Path(given), found)
        else:
            read_texts(Path(match["path"]), found, match["column"])
    refuse_repeats([document.name for document in found.documents])
    return found


def read_texts(path: Path, found: TextFiles, column: str = "text") -> None:
    """Add the documents of a file or folder to ``found``."""
    before = len(found.documents)
    if is_folder(path):
        _read_folder(path, found, column)
    else:
        _read_file(path, path.name, found, column)
    if len(found.documents) == before:
        raise UserError(f"{path}: empty; a document needs text")


def _read_folder(folder: Path, found: TextFiles, column: str) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file():
            continue
        if any(part.startswith(".") for part in name.parts):
            found.passed_over["hidden files"] += 1
            continue
        try:
            _read_file(path, name.as_posix(), found, column)
        except NoTextError:
            found.passed_over["files that hold no text"] += 1


def _read_file(path: Path, name: str, found: TextFiles, column: str) -> None:
    check_name(name)
    refuse_markup(name, path)
    with opened(path) as file:
        if kind_of(name) == "text":
            text = plain_text(file, path)
            if text.strip():
                found.documents.append(Document(name, text))
            else:
                found.passed_over["empty files"] += 1
            return
        for number, row_text in texts(rows(file, name, path, [column.partition(".")[0]]), column, str(path)):
            if row_text is None:
                found.passed_over["rows without text"] += 1
            else:
                found.documents.append(Document(f"{name}:{number}", row_text))


def token_files(paths: Sequence[str | Path]) -> list[TokenDocument]:
    """``--tokens``: lines ``{"tokens": [...]}``, used as given."""
    documents: list[TokenDocument] = []
    for given in paths:
        path = Path(given)
        before = len(documents)
        check_name(path.name)
        with opened(path) as file:
            for number, row in json_lines(lines(file), path):
                ids = row.get("tokens")
                good = isinstance(ids, list) and all(
                    isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids
                )
                if not good or not ids:
                    raise UserError(f'{path}:{number}: no "tokens" field holding token ids')
                name = row.get("name", f"{path.name}:{number}")
                if not isinstance(name, str):
                    raise UserError(f'{path}:{number}: "name" must be text, got {quoted(name)}')
                documents.append(TokenDocument(name, np.array(ids, dtype=np.int64)))
        if len(documents) == before:
            raise UserError(f'{path}: empty; expected lines {{"tokens": [...]}}')
    refuse_repeats([document.name for document in documents])
    return documents


def refuse_repeats(names: Sequence[str]) -> None:
    """Refuse two documents of one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"two documents are named {quoted(name)}; names must differ")
        seen.add(name)
