"""Files that are whole or absent: written beside, flushed to disk, then renamed; and one writer a folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kerple_eval.types import UserError

_TEMPORARY = re.compile(r"\..+\.\w{8}\.tmp")  # what write_atomically writes beside a file


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``content``; a reader sees the old file or the new one, never a part.

    ``durable``: whether it is to survive a power cut; it always survives the end of the process.

    Raises UserError where the disk is full or the folder cannot be written.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            name = file.name
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
        name = None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for one writer; the kernel lets go when the process ends, however it ends.

    Temporary files that a killed writer left in the folder or in one directly below it are removed.

    Raises:
        UserError: another process holds the folder, it cannot be written, or there are no locks here.
    """
    try:
        import fcntl  # noqa: PLC0415 - Windows has none, and reading works there
    except ImportError:
        raise UserError(
            f"{folder}: this system has no file locks (fcntl), which writing here needs; use Linux, macOS or "
            "WSL (reading works without)"
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another kerple-eval is writing here; wait for it") from None
        except OSError as error:  # some network file systems have none
            raise UserError(f"{folder}: cannot be locked: {error.strerror or error}") from None
        for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


def inside(path: Path, *folders: Path) -> Path:
    """``path``, which may not exist; a link out of every one of ``folders`` and a pipe are refused."""
    target = path.resolve()
    if not any(target.is_relative_to(folder.resolve()) for folder in folders):
        raise UserError(f"{path}: refused: a link that leads out of {folders[0]}")
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UserError(f"{path}: not a regular file")
    return path
