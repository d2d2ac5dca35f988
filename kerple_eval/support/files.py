"""Files and folders that are whole or not there: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kerple_eval.types import UserError

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # of write_atomically, where a process died in it

#: File locks of the system; None where it has none (Windows).
_fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``content``; a reader sees the old file or the new one, never a part.

    ``durable``: whether it is to survive a power cut; it always survives the end of the process.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with new.open("xb") as file:  # with the rights that the user's umask leaves
            name = str(new)
            with suppress(OSError):  # where the file system has no locks
                take_lock(file)  # while it is held, nobody sweeps the file
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            Path(name).replace(path)
            name = None
        if durable:
            _keep_names(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def _keep_names(folder: Path) -> None:
    """Have the system write down what the files of a folder are called, where it can be asked to."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_output(path: Path, content: bytes) -> None:
    """:func:`write_atomically` where nobody locks the folder: what killed calls left of it goes first."""
    with suppress(OSError, ValueError):  # said where the file is written
        _sweep(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    write_atomically(path, content)


@contextmanager
def locked(folder: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold ``folder``, which is made where it is missing, for one writer, by the file ``lock`` (in it unless
    given).

    The lock ends with the process, however that ends. Whoever holds it first removes the temporary files
    that killed processes left in the folder and in its subfolders.

    Raises:
        UserError: another process holds it, it cannot be written, or the system has no file locks.
    """
    if _fcntl is None:
        raise UserError(
            f"{folder}: this system has no file locks (fcntl), which writing here needs; use Linux, macOS or "
            "WSL (reading works without)"
        )
    path = lock or folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not path.is_file():  # opening a pipe would wait for its reader
            raise UserError(f"{path}: not a regular file; delete it")
        file = path.open("a")
    except OSError as error:
        raise _cannot_write(folder, error) from None
    with file:
        try:
            held = take_lock(file) and _is_still(file, path)
        except OSError as error:  # some network file systems have none
            raise UserError(f"{folder}: cannot be locked: {error.strerror or error}") from None
        if not held:
            raise UserError(f"{folder}: another kerple-eval is writing here; wait for it")
        _sweep((*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")))
        yield


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Build ``folder`` as a whole: yields an empty folder to write into, renamed to ``folder`` at the end.

    Until then ``folder`` stays as it was, absent or empty. The folder yielded lies beside it, hidden, and so
    does its lock; an error or Ctrl-C removes both, and after a kill the next call does.

    Raises:
        UserError: ``folder`` is a file or not empty, it cannot be written, or another process builds it.
    """
    target = folder.resolve()
    lock = target.with_name(f".{target.name}.building.tmp")
    _sweep([lock])  # of a call that was killed after its last step
    empty = is_folder(target) and all(entry.name == LOCK for entry in target.iterdir())
    if os.path.lexists(target) and not empty:
        raise UserError(f"{folder}: exists and is not an empty folder; choose a new one")
    partial = target.with_name(f".{target.name}.partial")
    with locked(partial, lock):
        try:
            for entry in partial.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            yield partial
            try:
                (target / LOCK).unlink(missing_ok=True)
                partial.rename(target)
            except OSError as error:
                raise _cannot_write(folder, error) from None
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            lock.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


def take_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; False where another process has it."""
    if _fcntl is None:
        return True
    try:
        _fcntl.flock(file, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(file: IO[Any], path: Path) -> bool:
    """Whether ``path`` still names the open file: whoever held the lock before may have moved it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _sweep(paths: Iterable[Path]) -> None:
    """Remove those of the paths that are temporary files which no living process is writing."""
    for path in paths:
        if _TEMPORARY.fullmatch(path.name) and is_file(path) and not path.is_symlink():
            with suppress(OSError), path.open("rb") as file:
                if take_lock(file):
                    path.unlink()


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False too for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def inside(path: Path, *folders: Path) -> Path:
    """``path``, unless it is a link that leads out of all of ``folders``, or is neither file nor folder.

    The path need not exist.

    Raises:
        UserError: the path is refused.
    """
    try:
        target = path.resolve()
        other = target.exists() and not (target.is_file() or target.is_dir())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a link to itself
        raise UserError(
            f"{path}: cannot be read: a link to itself, or a name that no file can have"
        ) from None
    if not any(target.is_relative_to(folder.resolve()) for folder in folders):
        raise UserError(f"{path}: refused: a link that leads out of {folders[0]}")
    if other:
        raise UserError(f"{path}: not a regular file")
    return path
