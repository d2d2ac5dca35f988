"""GGUF files: headers, and parts put together. What a file states is claimed in ``gguf_claims.py``."""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerple_eval.models.hf.files import StoredTensor, stamp
from kerple_eval.models.hf.foreign import one_line
from kerple_eval.support.scratch import ScratchFolder
from kerple_eval.types import UserError


@lru_cache(maxsize=8)
def _table(path: Path, stamp: tuple[int, int]) -> tuple[dict[str, Any], list[tuple[Any, ...]], int, int]:
    """Metadata, tensor table, and where the metadata and the table end, in bytes."""
    from transformers.integrations.gguf import reader  # noqa: PLC0415

    try:
        blob: Any = memoryview(reader._mapped(str(path)))  # cut faster than an array is
        metadata, count, table_start = reader._read_metadata(blob, str(path))
        table, end = reader._read_tensor_table(blob, count, table_start)
    except (
        OSError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError, struct.error,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return metadata, table, table_start, end


def metadata(path: Path) -> dict[str, Any]:
    """Keys and values; an array of texts as its length."""
    return _table(path, _stamped(path))[0]


def header_bytes(path: Path) -> bytes:
    """The file up to the end of its tensor table."""
    end = _table(path, _stamped(path))[3]
    with path.open("rb") as file:
        return file.read(end)


def tensors(path: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from the header alone; refuses one that ends beyond the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    keys, table, _, end = _table(path, _stamped(path))
    try:
        size = path.stat().st_size
        start = _aligned(end, keys)
        headers: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in table:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            if start + offset + math.prod(shape) // block * width > size:
                raise UserError(f"{path}: truncated: tensor {name[:80]} ends beyond the file's {size} bytes")
            if name in headers:
                raise UserError(f"{path}: tensor {name[:80]} appears twice")
            headers[name] = StoredTensor(tuple(shape), GGMLQuantizationType(kind).name)
    except (OSError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return headers


def vector(path: Path, name: str) -> NDArray[np.float32]:
    """The values of the tensor ``name``, which must be one of F32 with a single dimension."""
    keys, table, _, end = _table(path, _stamped(path))
    for found, shape, kind, offset in table:
        if found == name and len(shape) == 1 and kind == 0:
            start = _aligned(end, keys) + offset
            return np.fromfile(path, dtype="<f4", count=shape[0], offset=start)
    raise UserError(f"{path}: tensor {name[:80]} must be a vector of F32")


def _aligned(end: int, keys: Mapping[str, Any]) -> int:
    alignment = int(keys.get("general.alignment", 32))
    return -(-end // alignment) * alignment


def _stamped(path: Path) -> tuple[int, int]:
    try:
        return stamp(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(maxsize=4)
def joined(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> ScratchFolder:
    """A folder with one file, named as the first part: its metadata, and the tensors of all.

    transformers reads single files alone. A part's header: magic, version (u32), counts of tensors and keys
    (u64), the keys, the tensor table (name, dimensions, type, offset), the data at ``general.alignment``.
    """
    entries: list[bytes] = []
    sections: list[tuple[Path, int]] = []  # file, start of its data
    base, alignment = 0, 32
    for number, (file, part_stamp) in enumerate(zip(files, stamps, strict=True)):
        keys, table, table_start, end = _table(file, part_stamp)
        if number == 0:
            alignment = int(keys.get("general.alignment", 32))
            with file.open("rb") as source:
                head = source.read(table_start)
        start = _aligned(end, keys)
        length = file.stat().st_size - start
        for name, shape, kind, offset in table:
            text = name.encode()
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            entries.append(
                struct.pack("<Q", len(text)) + text + dims + struct.pack("<IQ", kind, base + offset)
            )
        sections.append((file, start))
        base += -(-length // alignment) * alignment
    try:
        scratch = ScratchFolder("gguf")
        with (scratch.path / files[0].name).open("wb") as out:
            out.write(head[:8] + struct.pack("<Q", len(entries)) + head[16:] + b"".join(entries))
            for file, start in sections:
                out.write(bytes(-out.tell() % alignment))
                with file.open("rb") as source:
                    source.seek(start)
                    shutil.copyfileobj(source, out, 1 << 22)
    except OSError as error:
        raise UserError(
            f"{files[0]}: its parts cannot be put together in {tempfile.gettempdir()}: {error.strerror}"
        ) from None
    return scratch


def stated_sizes(path: Path) -> dict[str, Any]:
    """What the file states of its architecture; what GGUF calls a length and is a width, as such."""
    keys = metadata(path)
    prefix = f"{keys['general.architecture']}."
    for needed in ("block_count", "embedding_length"):
        if f"{prefix}{needed}" not in keys:  # transformers would take those of some other model
            raise UserError(f"{path}: states no {prefix[:80]}{needed}")
    stated = {full.removeprefix(prefix): value for full, value in keys.items() if full.startswith(prefix)}
    return {
        key if "context" in key else key.replace("length", "width"): value for key, value in stated.items()
    }


def some(names: Any) -> str:
    """The first three of ``names`` in order, and how many more."""
    ordered = sorted(str(name)[:120] for name in names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
