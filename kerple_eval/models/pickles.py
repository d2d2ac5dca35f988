"""Safe reading of what ``torch.save`` wrote (``.pt``, ``.bin``): tensors and plain containers only.

Two layouts: a zip archive (torch >= 1.6; ``NAME/data.pkl`` beside ``NAME/data/KEY``, one entry a
storage, all stored uncompressed), and the older stream of five pickles followed by the storages.

Before ``torch.load(weights_only=True)`` sees a file, its structure is verified here: of a zip the
names, sizes and the CRC of every entry (torch checks none of them: a storage that claims more than
its entry would be read past its end); of both every class the pickle names (:mod:`pickle_scan`).
The older layout has no checksum; only its sizes are known.
"""

from __future__ import annotations

import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kerple_eval.models.pickle_scan import Storage, one_line, scan
from kerple_eval.types import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_CHUNK = 1 << 22
_MOST_PICKLE = 1 << 28  # bytes of data.pkl: names and shapes; a model of 70 layers takes 100 kB


def load_tensors(path: Path, *, meta: bool = False) -> Any:
    """The object in ``path``: nested dicts, lists and tuples of tensors, numbers and strings.

    Tensors are on CPU, memory-mapped where the file is a zip (do not write to them), or, with
    ``meta``, on the meta device: dtypes and shapes alone. The whole file is read once either way,
    for its checksums.

    Raises:
        UserError: not what torch.save writes, truncated, damaged, or it asks for a class that is no
            tensor or plain container; one line that names the file.
    """
    where = str(path)
    try:
        if stat.S_ISFIFO(path.stat().st_mode):
            raise UserError(f"{where}: a pipe, not a regular file")  # opening one would wait for ever
        with path.open("rb") as file:
            head = file.read(4)
            zipped = head == b"PK\x03\x04"
            if zipped:
                _check_zip(file, where)
            else:
                _check_stream(file, where)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or one_line(error)}") from None
    loaded = _load(path, "meta" if meta else "cpu", zipped)
    _check_result(loaded, where)
    return loaded


# --- The zip layout ------------------------------------------------------------------------------


def _check_zip(file: IO[bytes], where: str) -> None:
    damaged = f"{where}: truncated or damaged"
    size = file.seek(0, 2)
    file.seek(max(0, size - 22))
    if file.read(4) != b"PK\x05\x06":  # no comment, nothing after it: one reading of the directory
        raise UserError(f"{damaged}: no zip directory at its end")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_names(entries, size, where)
            for entry in entries:
                _check_crc(archive, entry, where)
            (pickle_entry,) = (e for e in entries if e.filename.endswith("/data.pkl"))
            if pickle_entry.file_size > _MOST_PICKLE:
                raise UserError(
                    f"{where}: data.pkl of {pickle_entry.file_size} bytes; weights never need so many"
                )
            storages = scan(BytesIO(archive.read(pickle_entry)), where)
    except UserError:
        raise
    except (
        zipfile.BadZipFile, EOFError, ValueError, KeyError, struct.error, NotImplementedError,
        RuntimeError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise UserError(f"{damaged}: {one_line(error)}") from None
    _check_storages(storages, pickle_entry.filename.removesuffix("data.pkl"), entries, where)


def _check_names(entries: list[zipfile.ZipInfo], size: int, where: str) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if entry.orig_filename != name or name.startswith("/") or "\\" in name or ":" in name:
            raise UserError(f"{where}: refused: zip entry {name[:80]!r} has no plain relative name")
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise UserError(f"{where}: refused: zip entry {name[:80]!r} leaves the archive's folder")
        if name.casefold() in seen:
            raise UserError(f"{where}: refused: zip entry {name[:80]!r} appears twice")
        seen.add(name.casefold())
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise UserError(
                f"{where}: refused: zip entry {name[:80]!r} is compressed "
                f"({entry.compress_size} to {entry.file_size} bytes); torch.save stores plainly"
            )
        if entry.flag_bits & 1:
            raise UserError(f"{where}: refused: zip entry {name[:80]!r} is encrypted")
    if sum(entry.file_size for entry in entries) > size:
        raise UserError(f"{where}: refused: its zip entries claim more bytes than the file has")
    pickles = [name for name in seen if name.endswith("/data.pkl")]
    if len(pickles) != 1 or len({name.split("/")[0] for name in seen}) != 1:
        raise UserError(f"{where}: a zip, but not one of torch.save: no single NAME/data.pkl")
    if pickles[0].replace("data.pkl", "constants.pkl") in seen:
        raise UserError(f"{where}: refused: a TorchScript archive, which holds code")


def _check_crc(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> None:
    try:
        with archive.open(entry) as stream:
            while stream.read(_CHUNK):
                pass
    except zipfile.BadZipFile as error:
        raise UserError(f"{where}: truncated or damaged: {one_line(error)}") from None


def _check_storages(storages: list[Storage], root: str, entries: list[zipfile.ZipInfo], where: str) -> None:
    sizes = {entry.filename: entry.file_size for entry in entries}
    for storage in storages:
        held = sizes.get(f"{root}data/{storage.key}")
        if held is None:
            raise UserError(f"{where}: truncated or damaged: no entry for storage {storage.key[:80]!r}")
        if held != storage.size:
            raise UserError(
                f"{where}: damaged: storage {storage.key[:80]!r} claims {storage.size} bytes, "
                f"its entry has {held}"
            )


# --- The older layout ----------------------------------------------------------------------------


def _check_stream(file: IO[bytes], where: str) -> None:
    """Magic number, version, system facts, the object, the storages' keys: five pickles."""
    size = file.seek(0, 2)
    file.seek(0)
    limited = BytesIO(file.read(min(size, _MOST_PICKLE)))
    head = limited.getvalue()[:20]
    if head.startswith(b"version https://git"):
        raise UserError(f"{where}: a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if (head[:1] != b"\x80" and head[:1] not in b"(]}lcdi") or not head:
        raise UserError(f"{where}: not a file that torch.save writes, or its beginning is damaged")
    scan(limited, where)  # names the class a hostile pickle wants, whatever kind of file this is
    if _LEGACY_MAGIC.to_bytes(10, "little") not in limited.getvalue()[: limited.tell()]:
        raise UserError(f"{where}: not a file that torch.save writes, or its beginning is damaged")
    storages = [storage for _ in range(4) for storage in scan(limited, where)]
    if limited.tell() + sum(storage.size for storage in storages) > size:
        raise UserError(f"{where}: truncated or damaged: its storages claim more bytes than the file has")


# --- Both ----------------------------------------------------------------------------------------


@contextmanager
def _nothing_else_allowed() -> Iterator[None]:
    """Set aside what other code has told torch to unpickle."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _load(path: Path, device: str, zipped: bool) -> Any:
    try:
        with _nothing_else_allowed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True, mmap=zipped)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # torch raises many kinds on a damaged file
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None


def _check_result(loaded: Any, where: str) -> None:
    """Plain containers of tensors that lie wholly inside their storage."""
    todo = [loaded]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if isinstance(item, dict | list | tuple | set):
            if id(item) not in seen:
                seen.add(id(item))
                todo += [*item.keys(), *item.values()] if isinstance(item, dict) else list(item)
        elif isinstance(item, Tensor):
            if item.layout != torch.strided or item.is_quantized:
                raise UserError(f"{where}: a tensor that is not a plain dense one ({item.layout})")
            if item.numel() * item.element_size() > item.untyped_storage().nbytes():
                raise UserError(f"{where}: a tensor of shape {list(item.shape)} exceeds its storage")
        elif not isinstance(
            item, str | bytes | bytearray | int | float | complex | torch.dtype | torch.device | None
        ):
            kind = type(item).__name__
            raise UserError(f"{where}: holds {kind}; only tensors and plain containers are read")
