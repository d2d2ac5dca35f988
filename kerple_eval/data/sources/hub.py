"""Hub data sets: named files of a repository at a pinned commit, read as documents.

Only the files that the task names are read, by the generic parquet and text readers of ``datasets``:
no loading script, configuration or data-set card is looked for, and nothing from the hub is executed.
JSON lines are parsed here, a line a row, so that rows whose metadata differ in shape do no harm.
Rows come in the order of the files; reading stops at the task's ``limit``, and the record says so.

Join rules (``source.join``):

none
    A row is a document.
wikitext-articles
    A row is a line (Merity et al., arXiv 1609.07843, as the hub spells it: a blank line is an empty
    row). An article starts at a row `` = Title = `` with a blank row, or nothing, before it and a
    blank row, or nothing, after it; `` = = Section = = `` starts none. Lines are put back as released,
    blank ones as a space and a newline.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kerple_eval.data.documents import Document, check_encodable
from kerple_eval.data.sources.kinds import HubSource
from kerple_eval.support.readers import parse_json
from kerple_eval.types import UserError

_HEADING = re.compile(r" = [^=]+ = ")
Rows = Iterator[tuple[int, str]]  # (row number, text)


def hub_documents(source: HubSource, task: str) -> tuple[list[Document], dict[str, Any]]:
    """The documents of a hub source, and what a record must say of it."""
    tally = {"rows_read": 0, "rows_passed_over": 0, "empty_documents": 0}
    rows = _texts(source, task, tally)
    pieces = _wikitext_articles(rows, task) if source.join == "wikitext-articles" else rows
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
    origin |= {"files": source.data_files, "split": source.split, "text_column": source.text_column}
    origin |= {"where": source.where, "join": source.join}
    origin |= {"limit": source.limit, "limit_reached": len(documents) == source.limit, **tally}
    return documents, origin


def _texts(source: HubSource, task: str, tally: dict[str, int]) -> Rows:
    """The text of every row that ``where`` lets pass."""
    try:
        for number, raw in enumerate(_open(source, task)):
            tally["rows_read"] += 1
            row = raw if _is_parquet(source) else parse_json(raw["text"], f"task {task}: row {number}")
            if any(str(_field(row, key, task)) != wanted for key, wanted in source.where.items()):
                tally["rows_passed_over"] += 1
                continue
            text = _field(row, source.text_column, task)
            if not isinstance(text, str):
                raise UserError(
                    f"task {task}: row {number}: column {source.text_column!r} must hold text, "
                    f"got {type(text).__name__}"
                )
            yield number, check_encodable(text, f"task {task}: row {number}")
    except UserError:
        raise
    except Exception as error:  # hub, network, cache and format errors share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"task {task}: cannot read {source.path or source.repository} ({reason}); "
            f"with a local copy of {source.data_files}: --task {task}:path=DIR"
        ) from None


def _open(source: HubSource, task: str) -> Any:
    """Rows, streamed where not all may be wanted; what is read whole from the hub is cached."""
    import datasets  # noqa: PLC0415 - slow to import, and only hub tasks need it

    if source.path is not None:
        folder = Path(source.path)
        if not folder.is_dir():
            raise UserError(f"task {task}: path={source.path} is not a folder")
        if not any(folder.glob(source.data_files)):
            raise UserError(
                f"task {task}: {source.path} holds no file {source.data_files}, "
                f"where {source.repository} keeps its {source.split} split"
            )
        root = str(folder)
    else:
        root = f"hf://datasets/{source.repository}@{source.revision}"
    return datasets.load_dataset(
        "parquet" if _is_parquet(source) else "text",
        data_files={source.split: f"{root}/{source.data_files}"},
        split=source.split,
        streaming=bool(source.path or source.where or source.limit),
    )


def _is_parquet(source: HubSource) -> bool:
    return source.data_files.endswith(".parquet")


def _field(row: Any, column: str, task: str) -> Any:
    value = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"task {task}: no column {column!r}; the data set has: {known}")
        value = value[part]
    return value


def _wikitext_articles(rows: Rows, task: str) -> Rows:
    """Lines put back together: (number of the heading's row, article)."""
    lines: list[str] = []
    start: int | None = None
    blank_before = True
    # a row is judged with the next one at hand; after the last comes nothing, which counts as blank
    for (number, text), (_, following) in itertools.pairwise(itertools.chain(rows, [(-1, "")])):
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
