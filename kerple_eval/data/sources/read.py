"""Sources of documents: a task's, and text files or token ids of the user's own."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import platform
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kerple_eval.data.documents import Document, TokenDocument, check_encodable
from kerple_eval.data.sources.hub import hub_documents
from kerple_eval.data.sources.kinds import (
    FilesSource,
    HubSource,
    MegatronSource,
    PackageSource,
    Source,
    StdlibSource,
    SyntheticSource,
)
from kerple_eval.data.task import Task
from kerple_eval.support.readers import json_lines
from kerple_eval.types import UserError


def documents_of(task: Task, task_file: Path) -> tuple[list[Document], dict[str, Any]]:
    """All documents of a task, in order of name, and what a record must say of their source."""
    documents, origin = _read(task.source, task.name, task_file)
    if not documents:
        raise UserError(f"task {task.name}: its source holds no document")
    return sorted(documents, key=lambda d: d.name), origin


def _read(source: Source, name: str, task_file: Path) -> tuple[list[Document], dict[str, Any]]:
    match source:
        case PackageSource():
            return _package(source, name)
        case StdlibSource():
            root = Path(sysconfig.get_paths()["stdlib"])
            documents = _files(root, source.files, source.exclude)
            return documents, {"kind": "stdlib", "python": platform.python_version()}
        case FilesSource():
            root = (task_file.parent / source.path).resolve()
            if not root.is_dir():
                raise UserError(f"task {name}: source.path: {root} is not a folder")
            return _files(root, source.files), {"kind": "files", "files": source.files}
        case HubSource():
            return hub_documents(source, name)
        case MegatronSource():
            raise UserError(f"task {name}: its source (megatron) holds token ids, where text is needed")
        case SyntheticSource():
            raise UserError(f"task {name}: is made for each length to be scored; it has no text to read")


def _package(source: PackageSource, task: str) -> tuple[list[Document], dict[str, Any]]:
    distribution = source.distribution or source.package
    right = f"pip install {distribution}=={source.version}"
    try:
        version = importlib.metadata.version(distribution)
        spec = importlib.util.find_spec(source.package)
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        spec, version = None, ""
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"task {task}: package {source.package} is not installed: {right}")
    if version != source.version:
        raise UserError(
            f"task {task}: text of {distribution} {source.version} is wanted, {version} is installed: {right}"
        )
    root = Path(spec.submodule_search_locations[0])
    origin = {"kind": "package", "package": distribution, "version": version}
    return _files(root, source.files), origin


def _files(root: Path, pattern: str, exclude: Sequence[str] = ()) -> list[Document]:
    documents = []
    for path in sorted(root.glob(pattern)):
        name = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatch(name, unwanted) for unwanted in exclude):
            continue
        if path.is_file() and path.stat().st_size:
            documents.append(Document(name, read_text(path)))
    return documents


def read_text(path: Path) -> str:
    """UTF-8 text of a file; newlines stay as they are."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; convert it, for example with iconv"
        ) from None


def text_files(paths: tuple[str, ...]) -> list[Document]:
    """``--text``: a document a file, or the "text" field of each line of a ``.jsonl`` file."""
    documents: list[Document] = []
    for name in paths:
        path = Path(name)
        before = len(documents)
        if path.suffix == ".jsonl":
            for number, row in json_lines(path):
                text = row.get("text")
                if not isinstance(text, str) or not text.strip():
                    raise UserError(f'{path}:{number}: no "text" field holding text')
                check_encodable(text, f"{path}:{number}")
                documents.append(Document(f"{path.name}:{number}", text))
        else:
            text = read_text(path)
            if text.strip():
                documents.append(Document(path.name, text))
        if len(documents) == before:
            raise UserError(f"{path}: empty; a document needs text")
    _refuse_repeats([d.name for d in documents])
    return documents


def token_files(paths: tuple[str, ...]) -> list[TokenDocument]:
    """``--tokens``: lines ``{"tokens": [...]}``, used as given."""
    documents: list[TokenDocument] = []
    for place in paths:
        path = Path(place)
        before = len(documents)
        for number, row in json_lines(path):
            ids = row.get("tokens")
            good = isinstance(ids, list) and all(
                isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in ids
            )
            if not good or not ids:
                raise UserError(f'{path}:{number}: no "tokens" field holding token ids')
            name = str(row.get("name", f"{path.name}:{number}"))
            documents.append(TokenDocument(name, np.array(ids, dtype=np.int64)))
        if len(documents) == before:
            raise UserError(f'{path}: empty; expected lines {{"tokens": [...]}}')
    _refuse_repeats([d.name for d in documents])
    return documents


def _refuse_repeats(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"two documents are named {name!r}; names must differ")
        seen.add(name)
