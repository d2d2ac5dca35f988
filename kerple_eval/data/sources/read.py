"""Sources of a task's documents, see ``kinds.py``. Nothing is imported to find a package's files."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.data.documents import Document
from kerple_eval.data.sources.files import check_name, folder_of, matching, opened, plain_text
from kerple_eval.data.sources.hub import hub_documents
from kerple_eval.data.sources.hub_id import hub_id_documents
from kerple_eval.data.sources.kinds import (
    FilesSource,
    HubIdSource,
    HubSource,
    MegatronSource,
    PackageSource,
    Source,
    StdlibSource,
    SyntheticSource,
)
from kerple_eval.data.task import Task
from kerple_eval.support.files import is_folder
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError


def documents_of(task: Task, task_file: Path) -> tuple[list[Document], dict[str, Any]]:
    """All documents of a task, in order of name, and what a record must say of their source."""
    documents, origin = _read(task.source, task.name, task_file)
    if not documents:
        raise UserError(f"task {task.name}: its source holds no document")
    return sorted(documents, key=lambda d: d.name), origin


def _read(source: Source, name: str, task_file: Path) -> tuple[list[Document], dict[str, Any]]:
    where = f"task {name}: source.files"
    match source:
        case PackageSource():
            return _package(source, name)
        case StdlibSource():
            root = Path(sysconfig.get_paths()["stdlib"])
            documents = _files(root, source.files, where, source.exclude)
            return documents, {"kind": "stdlib", "python": platform.python_version()}
        case FilesSource():
            where_path = f"task {name}: source.path: {quoted(source.path)}"
            root = folder_of(task_file.parent / source.path, where_path, source.files)
            return _files(root, source.files, where), {"kind": "files", "files": source.files}
        case HubSource():
            return hub_documents(source, name)
        case HubIdSource():
            return hub_id_documents(source, name)
        case MegatronSource():
            raise UserError(f"task {name}: its source (megatron) holds token ids, where text is needed")
        case SyntheticSource():
            raise UserError(f"task {name}: is synthetic, generated for each length; it has no text to read")


def _package(source: PackageSource, task: str) -> tuple[list[Document], dict[str, Any]]:
    """Files of an installed package, found by its distribution's record; no code of it runs."""
    distribution = source.distribution or source.package
    right = f"pip install {distribution}=={source.version}"
    if not re.fullmatch(r"[A-Za-z_]\w*", source.package, re.ASCII):
        raise UserError(
            f"task {task}: source.package: must be the name of a package without dots, "
            f"got {quoted(source.package)}; folders inside it belong to source.files"
        )
    missing = UserError(f"task {task}: package {quoted(source.package)[1:-1]} is not installed: {right}")
    try:
        installed = importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):  # the last two: not a name
        raise missing from None
    if installed.version != source.version:
        raise UserError(
            f"task {task}: text of {distribution} {source.version} is wanted, {installed.version} is "
            f"installed: {right}"
        )
    root = Path(str(installed.locate_file(source.package)))
    if not is_folder(root):
        raise missing
    origin = {"kind": "package", "package": distribution, "version": installed.version}
    return _files(root, source.files, f"task {task}: source.files"), origin


def _files(root: Path, pattern: str, where: str, exclude: Sequence[str] = ()) -> list[Document]:
    documents = []
    for path in matching(root, pattern, where):
        name = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatch(name, unwanted) for unwanted in exclude):
            continue
        check_name(name)
        with opened(path) as file:
            text = plain_text(file, path)
        if text:
            documents.append(Document(name, text))
    return documents
