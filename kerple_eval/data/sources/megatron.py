"""Memory-mapped token data sets of Megatron-LM and GPT-NeoX: ``PREFIX.idx`` beside ``PREFIX.bin``.

    PREFIX.bin   token ids of one sequence after the other, all of one dtype
    PREFIX.idx   little-endian: magic ``MMIDIDX\\0\\0`` (9 bytes), version 1 (uint64), dtype code (uint8),
                 n sequences (uint64), m document edges (uint64), then sizes int32[n] in tokens,
                 pointers int64[n] in bytes into the .bin, doc_idx int64[m] in sequences; newer
                 Megatron-LM may add modes int8[n], which say nothing of text

A document here is one sequence of the index, as GPT-NeoX's ``GPT2Dataset`` and its split by documents
count them (``indexed_dataset.sizes``); each ends in the end-of-document token where the data was
prepared with ``--append-eod``. doc_idx is checked, and groups nothing. Nothing is unpickled, and the
.bin is read only where asked for. Written from the format of EleutherAI/gpt-neox and
NVIDIA/Megatron-LM, ``indexed_dataset.py`` (commits 1d482247 and 00caa53a).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from kerple_eval.data.documents import TokenDocument
from kerple_eval.support.files import is_file
from kerple_eval.support.readers import cannot_read, open_regular
from kerple_eval.types import UserError

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, str] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
#: Floating-point codes, whose widths differ between releases (GPT-NeoX: 8 bytes both, or 4 and 8;
#: Megatron-LM: 8 and 4): the .bin's size decides. Their values must be whole numbers.
FLOATS = (6, 7)


class MegatronDocuments(Sequence[TokenDocument]):
    """The documents of a data set, read from the mapped file one at a time, named ``PREFIX:number``.

    Ids of a document are a view of the mapping in its own dtype, or int64 where that is a
    floating-point one. ``sizes`` is int64 ``[documents]``, in tokens.
    """

    def __init__(self, index: Path, data: Path) -> None:
        self.name = index.name.removesuffix(".idx")
        self._number = 0  # of the first document in the data set
        raw = _mapped(index)
        code, count, edges = _header(index, raw)
        at = _HEADER.size
        self.sizes: NDArray[np.int64] = _part(raw, at, "<i4", count).astype(np.int64)
        self._pointers = _part(raw, at + 4 * count, "<i8", count)
        doc_idx = _part(raw, at + 12 * count, "<i8", edges)
        self._bytes = _mapped(data, beside=index)
        self._dtype = np.dtype(DTYPE_CODES[code]) if code in DTYPE_CODES else self._float(code, index)
        self._check(index, data, doc_idx)
        self.record: dict[str, Any] = {
            "kind": "megatron",
            "documents": count,
            "tokens": int(self.sizes.sum()),
            "dtype": self._dtype.name,
            "idx_sha256": hashlib.sha256(raw.data).hexdigest(),
            "bin_bytes": len(self._bytes),
        }

    def _float(self, code: int, index: Path) -> np.dtype[Any]:
        tokens = int(self.sizes.sum())
        for width in (4, 8):
            if tokens and tokens * width == len(self._bytes):
                return np.dtype(f"<f{width}")
        raise UserError(
            f"{index}: dtype code {code} means numbers of 4 or 8 bytes, but the .bin has "
            f"{len(self._bytes)} bytes for {tokens} tokens"
        )

    def _check(self, index: Path, data: Path, doc_idx: NDArray[np.int64]) -> None:
        count = len(self.sizes)
        if (bad := _first(self.sizes < 0)) is not None:
            raise UserError(f"{index}: damaged: document {bad} has {self.sizes[bad]} tokens")
        if (bad := _first(self._pointers < 0)) is not None:
            raise UserError(f"{index}: damaged: document {bad} begins at byte {self._pointers[bad]}")
        room = len(self._bytes) - self.sizes * self._dtype.itemsize  # latest byte each may begin at
        if (bad := _first(self._pointers > room)) is not None:
            stop = int(self._pointers[bad]) + int(self.sizes[bad]) * self._dtype.itemsize
            raise UserError(
                f"{data}: truncated, or of another index: document {bad} ends at byte {stop}, "
                f"the file at {len(self._bytes)}"
            )
        if len(doc_idx) and doc_idx[0] != 0:
            raise UserError(f"{index}: damaged: doc_idx begins at {doc_idx[0]}, not at 0")
        if (bad := _first(np.diff(doc_idx) < 0)) is not None:
            raise UserError(
                f"{index}: damaged: doc_idx is out of order, {doc_idx[bad + 1]} after {doc_idx[bad]}"
            )
        if len(doc_idx) and doc_idx[-1] > count:
            raise UserError(f"{index}: damaged: doc_idx ends at {doc_idx[-1]}, beyond its {count} sequences")

    def part(self, numbers: range) -> MegatronDocuments:
        """The documents of a range of numbers, under the names they have in the whole."""
        part = copy(self)
        part.sizes = self.sizes[numbers.start : numbers.stop]
        part._pointers = self._pointers[numbers.start : numbers.stop]
        part._number = self._number + numbers.start
        return part

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> TokenDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenDocument]: ...
    def __getitem__(self, index: int | slice) -> TokenDocument | list[TokenDocument]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = int(self._pointers[number])
        raw = self._bytes[start : start + int(self.sizes[number]) * self._dtype.itemsize]
        return TokenDocument(self.document_name(number), self._ids(raw.view(self._dtype), number))

    def _ids(self, values: NDArray[Any], number: int) -> NDArray[Any]:
        if values.dtype.kind != "f":
            return values
        whole: NDArray[np.int64] = np.nan_to_num(values, nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.int64)
        if (bad := _first(whole != values)) is not None:
            raise UserError(
                f"document {self.document_name(number)}: token {bad} is {values[bad]}, not a token id"
            )
        return whole

    def document_name(self, number: int) -> str:
        return f"{self.name}:{self._number + number}"

    def __iter__(self) -> Iterator[TokenDocument]:
        return (self[i] for i in range(len(self)))


def is_megatron(path: str) -> bool:
    """Whether ``--tokens`` names a data set: PREFIX.idx, PREFIX.bin, or PREFIX with a .idx beside it."""
    return path.endswith((".idx", ".bin")) or (not is_file(Path(path)) and is_file(Path(path + ".idx")))


def open_megatron(path: str | Path) -> MegatronDocuments:
    """The data set of PREFIX, PREFIX.idx or PREFIX.bin, checked whole against its index.

    Raises:
        UserError: a file is missing, truncated, damaged, or holds something else than token ids.
    """
    name = str(path)
    prefix = name[:-4] if name.endswith((".idx", ".bin")) else name
    return MegatronDocuments(Path(prefix + ".idx"), Path(prefix + ".bin"))


def _mapped(path: Path, beside: Path | None = None) -> NDArray[np.uint8]:
    try:
        with open_regular(path) as file:
            if path.stat().st_size == 0:
                return np.zeros(0, dtype=np.uint8)
            return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)  # memmap slices slowly
    except (OSError, ValueError) as error:
        with_what = f" (it belongs beside {beside.name})" if beside else ""
        raise UserError(cannot_read(path, error) + with_what) from None


def _header(index: Path, raw: NDArray[np.uint8]) -> tuple[int, int, int]:
    """dtype code of the ids, number of sequences, number of document edges."""
    head = raw[: _HEADER.size].tobytes()
    if head[: len(MAGIC)] != MAGIC:
        old = " (an index of the older, not memory-mapped kind)" if head.startswith(b"TNTIDX") else ""
        raise UserError(
            f"{index}: not the index of a memory-mapped data set: begins with {head[:9]!r}, "
            f"not {MAGIC!r}{old}"
        )
    if len(head) < _HEADER.size:
        raise UserError(f"{index}: truncated: {len(head)} bytes, the header alone has {_HEADER.size}")
    _, version, code, count, edges = _HEADER.unpack(head)
    if version != 1:
        raise UserError(f"{index}: version {version}; only version 1 is known")
    if code not in DTYPE_CODES and code not in FLOATS:
        known = ", ".join(f"{c} {np.dtype(d).name}" for c, d in DTYPE_CODES.items()) + ", 6 and 7 float"
        raise UserError(f"{index}: unknown dtype code {code}; known: {known}")
    wanted = _HEADER.size + 12 * count + 8 * edges
    if len(raw) < wanted:
        raise UserError(
            f"{index}: truncated: {len(raw)} bytes, {count} sequences and {edges} document edges "
            f"take {wanted}"
        )
    if len(raw) not in (wanted, wanted + count):  # modes, a byte a sequence
        raise UserError(f"{index}: damaged: {len(raw)} bytes where its header says {wanted}")
    return code, count, edges


def _part(raw: NDArray[np.uint8], start: int, dtype: str, count: int) -> NDArray[Any]:
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def _first(wrong: NDArray[np.bool_]) -> int | None:
    """Index of the first True."""
    return int(wrong.argmax()) if wrong.any() else None
