"""The rows of a cell file: a parquet table whose pages, header and columns carry checksums.

One row a window; columns ``document`` (name), ``start``, ``stop``, ``first_target``, ``losses`` (nats,
list<float32>), ``bytes`` (UTF-8 bytes of the scored targets, null where unknown) and, where a protocol scores
answers, ``hits`` (list<bool>, whether each target was the argmax); where a run was asked for divergences from
a reference, those of :mod:`kerple_eval.records.divergence`. The schema's metadata holds the header as JSON
under ``kerple_eval`` and the sha256 of header, columns and divergences under ``kerple_eval_sha256``. Every
page has a CRC, verified as it is read; the hashes cover what the pages' CRCs do not, and a header can be
checked alone.
What a file may hold is bounded before it is read into memory.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records import divergence
from kerple_eval.records.divergence import Divergence
from kerple_eval.records.header import DocumentRecord
from kerple_eval.support.readers import parse_json
from kerple_eval.types import UserError, Window

if TYPE_CHECKING:
    import pyarrow as pa

HEADER, HASHES = b"kerple_eval", b"kerple_eval_sha256"
MOST_WINDOWS = 1 << 22  # rows of a cell
MOST_TARGETS = 1 << 28  # losses of a cell: 1 GiB
MOST_BYTES = 1 << 32  # of a file's columns, decompressed


@dataclass(frozen=True)
class Columns:
    """The rows of a cell; ``document`` are numbers into its header's documents."""

    document: NDArray[np.int64]
    windows: Sequence[Window]
    losses: Sequence[NDArray[np.float32]]
    byte_counts: Sequence[int] | None
    hits: Sequence[NDArray[np.bool_]] | None
    divergence: Divergence | None = None

    @property
    def sha256(self) -> str:
        """Of every value but the divergences', in little-endian order, column by column."""
        edges = [(w.start, w.stop, w.first_target) for w in self.windows]
        digest = hashlib.sha256()
        for column in (
            np.asarray(self.document, dtype="<i8"),
            np.array(edges, dtype="<i8").reshape(-1),
            np.concatenate(self.losses).astype("<f4"),
            np.array([] if self.byte_counts is None else self.byte_counts, dtype="<i8"),
            np.concatenate(self.hits).astype("u1") if self.hits else np.array([], dtype="u1"),
        ):
            digest.update(len(column).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


def to_parquet(columns: Columns, names: Sequence[str], header: dict[str, Any]) -> bytes:
    """The file's bytes; ``names`` are the header's documents."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    # Of raw buffers: pa.array imports pandas, which takes a fifth of the time in which torch is imported.
    def flat(kind: pa.DataType, values: NDArray[Any]) -> pa.Array:
        packed = np.packbits(values, bitorder="little") if kind == pa.bool_() else values
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(packed))])

    def nested(kind: pa.DataType, rows: Sequence[NDArray[Any]]) -> pa.Array:
        edges = pa.py_buffer(np.cumsum([0, *map(len, rows)], dtype=np.int32))
        values = flat(kind, np.concatenate(rows))
        return pa.Array.from_buffers(pa.list_(kind), len(rows), [None, edges], children=[values])

    def numbers(values: Sequence[int]) -> pa.Array:
        return flat(pa.int64(), np.array(values, dtype=np.int64))

    texts = [names[number].encode() for number in columns.document]
    edges = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    buffers = [None, pa.py_buffer(edges), pa.py_buffer(b"".join(texts))]
    count, counts = len(columns.windows), columns.byte_counts
    more = {} if columns.hits is None else {"hits": nested(pa.bool_(), columns.hits)}
    if columns.divergence is not None:
        more |= {
            name: nested(divergence.arrow_type(name).value_type, rows)
            for name, rows in columns.divergence.columns.items()
        }
    table = pa.table(
        {
            "document": pa.Array.from_buffers(pa.string(), count, buffers),
            "start": numbers([w.start for w in columns.windows]),
            "stop": numbers([w.stop for w in columns.windows]),
            "first_target": numbers([w.first_target for w in columns.windows]),
            "losses": nested(pa.float32(), columns.losses),
            "bytes": pa.nulls(count, pa.int64()) if counts is None else numbers(counts),
            **more,
        }
    )
    text = json.dumps(header)
    hashes = {"header": _sha256(text.encode()), "columns": columns.sha256}
    if columns.divergence is not None:
        hashes["divergence"] = columns.divergence.sha256
    buffer = io.BytesIO()
    # Losses hardly repeat: their dictionary would be added to them. Arrow's schema would repeat the header.
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_page_checksum=True, use_dictionary=["document"],
        write_statistics=False, store_schema=False,
    ) as writer:  # fmt: skip
        writer.write_table(table)
        writer.add_key_value_metadata({HEADER: text, HASHES: json.dumps(hashes)})
    return buffer.getvalue()


def header_of(schema: pa.Schema) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The header, and the sha256 that ``columns`` and ``divergence`` must have; None where the file has none.

    Raises:
        ValueError: no header, or one that its hash does not fit.
    """
    metadata = schema.metadata or {}
    if HEADER not in metadata:
        raise ValueError("it has no header")
    header = _object(metadata[HEADER], "its header")
    if HASHES not in metadata:
        return header, None
    hashes = _object(metadata[HASHES], "its hashes")
    if hashes.get("header") != _sha256(metadata[HEADER]):
        raise ValueError("its header does not have the sha256 it was written with")
    return header, hashes


def _object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = parse_json(raw, what)
    except UserError as error:
        raise ValueError(str(error)) from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value


def read_columns(raw: bytes, documents: Sequence[DocumentRecord]) -> Columns:
    """The rows of a file, checked: types, sizes, windows within documents, losses as scoring keeps them.

    Raises:
        ValueError, pyarrow.ArrowException, OSError: what is wrong with them.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    # In this thread alone: one of pyarrow's that is still ending when the program ends aborts it.
    file = pq.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True, pre_buffer=False)
    _check_size(file)
    _check_types(file.schema_arrow, pa)
    table = file.read(use_threads=False)
    for name in table.column_names:
        if name != "bytes" and table.column(name).null_count:
            raise ValueError(f"column {name} has empty fields")
    index = {document.name: number for number, document in enumerate(documents)}
    names = table.column("document").to_pylist()
    document = np.array([index[name] for name in names], dtype=np.int64)
    edges = ("start", "stop", "first_target")
    start, stop, first = (_values(table.column(name).combine_chunks()) for name in edges)
    windows = [
        Window(a, b, c, after_marker=a == c)
        for a, b, c in zip(start.tolist(), stop.tolist(), first.tolist(), strict=True)
    ]
    if not windows:
        raise ValueError("it has no rows")
    targets = stop - first + 1
    if (stop >= np.array([d.tokens for d in documents], dtype=np.int64)[document]).any():
        raise ValueError("a window ends after its document")
    losses = _lists(table.column("losses"), targets)
    flat = np.concatenate(losses)
    if not (np.isfinite(flat).all() and (flat >= 0).all()):
        raise ValueError("a loss is negative or not finite")
    byte_counts = None
    if not table.column("bytes").null_count:
        byte_counts = table.column("bytes").to_pylist()
        if min(byte_counts) < 0:
            raise ValueError("a number of bytes is negative")
    hits = None
    if "hits" in table.column_names:
        if any(d.answer is None or d.depth is None for d in documents):
            raise ValueError("it scores answers, but a document has none")
        hits = [row.astype(bool) for row in _lists(table.column("hits"), targets)]
    kept = [row.astype(np.float32, copy=False) for row in losses]
    return Columns(document, windows, kept, byte_counts, hits, _divergence(table, targets))


def _divergence(table: pa.Table, targets: NDArray[np.int64]) -> Divergence | None:
    if not set(divergence.COLUMNS) <= set(table.column_names):
        return None
    found = Divergence(
        {
            name: [row.astype(kind, copy=False) for row in _lists(table.column(name), targets)]
            for name, (_, kind) in divergence.COLUMNS.items()
        }
    )
    found.check()
    return found


def _check_size(file: Any) -> None:
    """Before anything is read: what a small file may unpack to."""
    metadata = file.metadata
    if metadata.num_rows > MOST_WINDOWS:
        raise ValueError(f"it has {metadata.num_rows:,} rows, more than the {MOST_WINDOWS:,} of a cell")
    for i in range(metadata.num_row_groups):
        # Batches of no rows read the columns' metadata only, and raise where it is damaged; there
        # ``row_group(i).column(j)`` below would abort the process (pyarrow 26).
        list(file.reader.iter_batches(0, [i], use_threads=False))
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    values = [sum(g.column(i).num_values for g in groups) for i in range(metadata.num_columns)]
    if max(values, default=0) > MOST_TARGETS:
        raise ValueError(f"a column has {max(values):,} values, more than the {MOST_TARGETS:,} of a cell")
    if sum(group.total_byte_size for group in groups) > MOST_BYTES:
        raise ValueError(f"its columns have more than the {MOST_BYTES:,} bytes of a cell")


def _check_types(schema: Any, pa: Any) -> None:
    expected = {
        "document": pa.string(), "start": pa.int64(), "stop": pa.int64(), "first_target": pa.int64(),
        "losses": pa.list_(pa.float32()), "bytes": pa.int64(), "hits": pa.list_(pa.bool_()),
    } | {name: divergence.arrow_type(name) for name in divergence.COLUMNS}  # fmt: skip
    for name, kind in expected.items():
        if name not in schema.names:
            if name != "hits" and name not in divergence.COLUMNS:
                raise ValueError(f"it has no column {name}")
            continue
        found = schema.field(name).type
        values = [t.value_type if pa.types.is_list(t) else t for t in (found, kind)]
        if pa.types.is_list(found) != pa.types.is_list(kind) or values[0] != values[1]:
            raise ValueError(f"column {name} is {str(found)[:40]}, expected {kind}")


def _lists(column: Any, targets: NDArray[np.int64]) -> list[NDArray[Any]]:
    """The rows of a column of lists, one value per target."""
    array = column.combine_chunks()
    edges = _values(array.offsets)
    if array.values.null_count:
        raise ValueError("a value of a target is empty")
    if not np.array_equal(np.diff(edges), targets):
        raise ValueError("it does not hold a value for every target")
    flat = _values(array.values)
    return [flat[a:b] for a, b in pairwise(edges)]


def _values(array: Any) -> NDArray[Any]:
    """Of an arrow array without empty values; its own ``to_numpy`` imports pandas."""
    if str(array.type) != "bool":
        return np.from_dlpack(array)
    bits = np.unpackbits(np.frombuffer(array.buffers()[1], dtype=np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(bool)


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
