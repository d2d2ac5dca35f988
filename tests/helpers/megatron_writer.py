"""Writes memory-mapped data sets byte by byte with ``struct``, independently of the reader."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

CODES = {  # name -> (code in the index, letter of ``struct``)
    "uint8": (1, "B"), "int8": (2, "b"), "int16": (3, "h"), "int32": (4, "i"), "int64": (5, "q"),
    "uint16": (8, "H"), "float64": (6, "d"), "float32": (7, "f"),
}  # fmt: skip


def write(
    prefix: Path,
    documents: Sequence[Sequence[float]],
    dtype: str = "uint16",
    *,
    code: int | None = None,
    version: int = 1,
    magic: bytes = b"MMIDIDX\0\0",
    doc_idx: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    pointers: Sequence[int] | None = None,
    tail: bytes = b"",
) -> Path:
    """``PREFIX.bin`` and ``PREFIX.idx``; keywords put something else than the truth into the index."""
    number, letter = CODES[dtype]
    body, places = b"", []
    for document in documents:
        places.append(len(body))
        body += struct.pack(f"<{len(document)}{letter}", *document)
    Path(f"{prefix}.bin").write_bytes(body)
    sizes = [len(d) for d in documents] if sizes is None else sizes
    pointers = places if pointers is None else pointers
    doc_idx = range(len(documents) + 1) if doc_idx is None else doc_idx
    index = magic + struct.pack("<Q", version) + bytes([number if code is None else code])
    index += struct.pack("<QQ", len(sizes), len(doc_idx))
    index += b"".join(struct.pack("<i", size) for size in sizes)
    index += b"".join(struct.pack("<q", pointer) for pointer in pointers)
    index += b"".join(struct.pack("<q", edge) for edge in doc_idx)
    Path(f"{prefix}.idx").write_bytes(index + tail)
    return prefix
