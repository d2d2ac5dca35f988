"""Hub data sets: named files of a repository at a pinned commit, read as documents.

Only the files that the task names are read, see ``files.py``: no loading script, configuration or data-set
card is looked for, and nothing from the hub is executed. Rows come in the order of the files' names; reading
stops at the task's ``limit``, and the record says so.

Join rules (``source.join``):

none
    A row is a document.
wikitext-articles
    A row is a line (Merity et al., arXiv 1609.07843, as the hub has it: a blank line is an empty
    row). An article starts at a row `` = Title = `` with a blank row, or nothing, before it and a
    blank row, or nothing, after it; `` = = Section = = `` starts none. Lines are put back as released,
    blank ones as a space and a newline.
blank-line, newline, space, nothing
    All rows, blank ones too, are one document with that between them; ``limit`` then counts rows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kerple_eval.data.documents import Document, check_encodable
from kerple_eval.data.sources.files import (
    NumberedRow,
    column_of,
    decompressed,
    folder_of,
    matching,
    rows,
    texts,
)
from kerple_eval.data.sources.kinds import SEPARATORS, HubSource
from kerple_eval.types import UserError

_HEADING = re.compile(r" = [^=]+ = ")
NumberedTexts = Iterator[tuple[int, str]]  # (row number, text)


def hub_documents(
    source: HubSource, task: str, names: Sequence[str] | None = None
) -> tuple[list[Document], dict[str, Any]]:
    """The documents of a hub source, and what a record must say of it; of the files ``names`` where given."""
    tally = {"rows_read": 0, "rows_passed_over": 0, "empty_documents": 0}
    numbered = _texts(source, task, tally, names)
    rows_joined = None
    pieces = numbered
    if source.join == "wikitext-articles":
        pieces = _wikitext_articles(numbered, task)
    elif source.join in SEPARATORS:
        parts = [text for _, text in itertools.islice(numbered, source.limit)]
        pieces, rows_joined = iter([(0, SEPARATORS[source.join].join(parts))]), len(parts)
    documents: list[Document] = []
    for number, text in pieces:
        if not text.strip():
            tally["empty_documents"] += 1
            continue
        documents.append(Document(f"{source.split}-{number:09d}", text))
        if len(documents) == source.limit:
            break
    origin: dict[str, Any] = {"kind": "hub", "repository": source.repository}
    origin |= {"local_copy": True} if source.path else {"revision": source.revision}
    origin |= {
        "files": source.data_files if names is None else list(names),
        "split": source.split,
        "text_column": source.text_column,
    }
    origin |= {"where": source.where, "join": source.join}
    counted = len(documents) if rows_joined is None else rows_joined
    origin |= {"limit": source.limit, "limit_reached": counted == source.limit, **tally}
    return documents, origin


def _texts(source: HubSource, task: str, tally: dict[str, int], names: Sequence[str] | None) -> NumberedTexts:
    """The text of every row that ``where`` lets pass, numbered over all files from 0."""
    columns = [source.text_column, *source.where]
    try:
        for name, open_file in _files(source, task, names):
            where = f"task {task}: {name}"
            with open_file() as raw, decompressed(raw, where) as content:
                kept = _passing(rows(content, name, where, columns), source.where, where, tally)
                for line, text in texts(kept, source.text_column, where):
                    yield tally["rows_read"] - 1, check_encodable(text, f"{where}:{line}")
    except UserError:
        raise
    except Exception as error:  # the hub, the network and its cache raise errors without a common class
        raise _unreachable(source, task, " ".join(str(error).split()) or type(error).__name__) from None


def _passing(
    numbered: Iterable[NumberedRow], wanted: Mapping[str, str], where: str, tally: dict[str, int]
) -> Iterator[NumberedRow]:
    """The rows whose columns have the ``wanted`` values; all are counted."""
    for line, row in numbered:
        tally["rows_read"] += 1
        if all(str(column_of(row, key, f"{where}:{line}")) == value for key, value in wanted.items()):
            yield line, row
        else:
            tally["rows_passed_over"] += 1


def _unreachable(source: HubSource, task: str, reason: str) -> UserError:
    return UserError(
        f"task {task}: cannot read {source.path or source.repository} ({reason[:200]}); "
        f"with a local copy of {source.data_files}: --task {task}:path=DIR"
    )


def _files(
    source: HubSource, task: str, names: Sequence[str] | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name of each file and what opens it: of the local copy, or of the hub; in order of name.

    What is read to its end is fetched into the hub's cache first; where not all may be wanted it is
    streamed.
    """
    if source.path is not None:
        folder = folder_of(Path(source.path), f"task {task}: path={source.path}", source.data_files)
        paths = matching(folder, source.data_files, f"task {task}: source.data_files")
        if not paths:
            raise UserError(
                f"task {task}: {source.path} holds no file {source.data_files}, "
                f"where {source.repository} keeps its {source.split} split"
            )
        for path in paths:
            yield path.relative_to(folder).as_posix(), partial(path.open, "rb")
        return
    import huggingface_hub  # noqa: PLC0415 - slow to import, and only hub tasks need it

    files = huggingface_hub.HfFileSystem()
    root = f"datasets/{source.repository}@{source.revision}/"
    if names is None:
        found = files.glob(root + source.data_files)
        names = sorted(str(name).removeprefix("hf://").removeprefix(root) for name in found)
        if not names:
            raise _unreachable(source, task, f"it has no file {source.data_files}")
    for inner in names:
        if source.where or source.limit:
            yield inner, partial(files.open, root + inner, "rb")
        else:
            local = huggingface_hub.hf_hub_download(
                source.repository, inner, repo_type="dataset", revision=source.revision
            )
            yield inner, partial(Path(local).open, "rb")


def _wikitext_articles(numbered: NumberedTexts, task: str) -> NumberedTexts:
    """Lines put back together: (number of the heading's row, article)."""
    lines: list[str] = []
    start: int | None = None
    blank_before = True
    # a row is judged with the next one at hand; after the last comes nothing, which counts as blank
    for (number, text), (_, following) in itertools.pairwise(itertools.chain(numbered, [(-1, "")])):
        blank = not text.strip()
        heading = _HEADING.fullmatch(text.rstrip("\n")) is not None
        if heading and blank_before and not following.strip():
            if start is not None:
                yield start, "".join(lines)
            start, lines = number, []
        if start is not None:
            lines.append(" \n" if blank else text if text.endswith("\n") else text + "\n")
        elif not blank:
            raise UserError(
                f"task {task}: join: wikitext-articles: row {number} stands before the first "
                f"article heading, a row ' = Title = ' between blank rows"
            )
        blank_before = blank
    if start is not None:
        yield start, "".join(lines)
