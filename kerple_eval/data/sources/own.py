"""The user's own files: ``--text`` (documents) and ``--tokens`` (token ids)."""

from __future__ import annotations

import os
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
    reading,
    refuse_closed,
    refuse_markup,
    rows,
    texts,
)
from kerple_eval.data.sources.kinds import SEPARATORS
from kerple_eval.records.notes import passed_over_words
from kerple_eval.support.files import is_file, is_folder
from kerple_eval.support.readers import json_lines, quoted
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

_OPTION = re.compile(r"(?P<path>.+),(?P<name>column|join)=(?P<value>[^,]+)", re.DOTALL)


@dataclass
class TextFiles:
    """Documents of text files; what was passed over: reason -> how many; joined documents -> their rule."""

    documents: list[Document] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    join: dict[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any] | None:
        """What a record must say of them: nothing, where nothing was passed over or joined."""
        kept = {"passed_over": dict(sorted(self.passed_over.items())), "join": self.join}
        return {name: value for name, value in kept.items() if value} or None

    def add(self, document: Document, blank: str, *, keep_blank: bool) -> None:
        """Take a document; one without text is passed over as one of ``blank``, unless it is to be joined."""
        if keep_blank or document.text.strip():
            self.documents.append(document)
        else:
            self.passed_over[blank] += 1


def text_files(paths: Sequence[str | Path]) -> TextFiles:
    """``--text``: plain files (a document each), files of rows (a column of them), folders of both.

    The column is ``text``, or the one named as in ``FILE,column=NAME``. ``PATH,join=RULE`` makes one document
    of all that the path holds, blank rows too, named after it.

    Rows and files without text are passed over and counted, inside a folder also what is hidden, linked
    folders and files that are no text as a whole; a file given by name must hold some. A file of rows with a
    bad one is refused in a folder too.
    """
    found = TextFiles()
    for given in paths:
        path, options = str(given), dict[str, str]()
        while not is_file(Path(path)) and (match := _OPTION.fullmatch(path)):
            if match["name"] in options:
                raise UserError(f"--text {given}: {match['name']} is given twice")
            path, options[match["name"]] = match["path"], match["value"]
        read_texts(Path(path), found, **options)
    refuse_repeats([document.name for document in found.documents])
    return found


def read_texts(path: Path, found: TextFiles, column: str = "text", join: str | None = None) -> None:
    """Add the documents of a file or folder to ``found``, or the one that they are joined to."""
    before, passed_over = len(found.documents), found.passed_over.copy()
    if join is not None and join not in SEPARATORS:
        raise unknown(f"join rule of {path}", join, SEPARATORS)
    if is_folder(path):
        _read_folder(path, found, column, keep_blank=join is not None)
    else:
        _read_file(path, path.name, found, column, keep_blank=join is not None)
    if join is not None:
        text = SEPARATORS[join].join(document.text for document in found.documents[before:])
        del found.documents[before:]
        if text.strip():
            name = path.name or path.resolve().name
            found.documents.append(Document(name, text))
            found.join[name] = join
    if len(found.documents) == before:
        passed = passed_over_words(found.passed_over - passed_over) if is_folder(path) else ""
        raise UserError(f"{path}: empty; a document needs text" + (passed and f" ({passed})"))


def _read_folder(folder: Path, found: TextFiles, column: str, *, keep_blank: bool) -> None:
    for path in _files_below(folder, found.passed_over):
        name = path.relative_to(folder).as_posix()
        try:
            _read_file(path, name, found, column, keep_blank=keep_blank)
        except NoTextError as error:
            if kind_of(name) != "text":
                raise
            found.passed_over[error.counted] += 1


def _files_below(folder: Path, passed_over: Counter[str]) -> list[Path]:
    """Regular files in order of name; what is hidden, linked folders (which may go in circles) and pipes,
    sockets and the like are counted in ``passed_over``.

    Raises:
        UserError: a folder cannot be read.
    """
    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse_closed):
        for name in folders:
            if name.startswith("."):
                passed_over["hidden folders"] += 1
            elif Path(parent, name).is_symlink():
                passed_over["linked folders"] += 1
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in files):
            with reading(path):
                if path.name.startswith("."):
                    passed_over["hidden files"] += 1
                elif path.is_file():
                    found.append(path)
                else:
                    passed_over["broken links and special files"] += 1
    return sorted(found)


def _read_file(path: Path, name: str, found: TextFiles, column: str, *, keep_blank: bool) -> None:
    check_name(name)
    refuse_markup(name, path)
    with opened(path) as file:
        if kind_of(name) == "text":
            text = plain_text(file, path)
            found.add(Document(name, text), "empty files", keep_blank=keep_blank)
            return
        for number, row_text in texts(rows(file, name, path, [column]), column, str(path)):
            document = Document(f"{name}:{number}", row_text)
            found.add(document, "rows without text", keep_blank=keep_blank)


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
