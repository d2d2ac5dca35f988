"""What is done to one file of a whole input, drawn by a generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rng = np.random.Generator

#: Values that stand where something else belongs.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**70, -(2**63), 1e308, -0.0, "", " ", "x" * 5000, "NaN", "1e999", "0x10",
    "..", "../../etc/passwd", "/etc/passwd", "\x00", "\x1b[31m", "a\nb", "\ud800", "=1+1", "<b>", [], {},
    [[]], [None], {"a": {}}, [1, "a"], "2024-01-01", "!!python/object:os.system", {"__float__": "Infinity"},
)  # fmt: skip


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def changed_bytes(raw: bytes, rng: Rng) -> bytes:
    """Cut, flipped, overwritten, removed, doubled, moved or foreign bytes."""
    data = bytearray(raw or b"\0")
    at, count = int(rng.integers(len(data))), int(2 ** rng.integers(0, 8))
    match int(rng.integers(8)):
        case 0:
            del data[at:]
        case 1:
            for place in rng.integers(len(data), size=count):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            data[at : at + count] = rng.bytes(min(count, len(data) - at))
        case 3:
            del data[at : at + count]
        case 4:
            data[at:at] = data[at : at + count] * int(rng.integers(1, 20))
        case 5:
            data[int(rng.integers(min(len(data), 512)))] = int(rng.integers(256))  # in the header
        case 6:
            data[at:at] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"\r\n"][rng.integers(5)]
        case _:
            return rng.bytes(count)
    return bytes(data)


def changed_value(data: Any, rng: Rng) -> Any:
    """One node of a value becomes something else, goes, or comes twice."""
    if isinstance(data, dict) and data and rng.random() < 0.9:
        key = list(data)[int(rng.integers(len(data)))]
        draw = rng.random()
        if draw < 0.1:
            return {k: v for k, v in data.items() if k != key}
        return data | ({f"{key}x": data[key]} if draw < 0.15 else {key: changed_value(data[key], rng)})
    if isinstance(data, list) and data and rng.random() < 0.9:
        at = int(rng.integers(len(data)))
        if rng.random() < 0.2:
            return [*data, data[at]]
        return [*data[:at], changed_value(data[at], rng), *data[at + 1 :]]
    values = ODD
    if isinstance(data, int | float) and not isinstance(data, bool) and rng.random() < 0.5:
        values = (data + 1, data - 1, -data, data * 2, data * 2**20, data / 3, str(data))
    return values[int(rng.integers(len(values)))]


def changed_json(raw: bytes, rng: Rng) -> bytes:
    draw = rng.random()
    if draw < 0.05:
        return b"[" * int(rng.integers(100, 100_000))
    data = json.loads(raw)
    if draw < 0.1 and isinstance(data, dict) and data:
        text = json.dumps(data)
        key = json.dumps(list(data)[int(rng.integers(len(data)))])
        return (text[:-1] + f", {key}: {json.dumps(ODD[int(rng.integers(10))])}}}").encode()
    if draw < 0.15 and isinstance(data, dict) and data:
        return json.dumps(data | {next(iter(data)): deep(int(rng.integers(50, 900)))}).encode()
    return json.dumps(changed_value(data, rng)).encode("utf-8", "surrogatepass")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


def changed_yaml(raw: bytes, rng: Rng) -> bytes:
    """A value, an alias, a tag or a bomb in place of a line's value."""
    lines = raw.decode("utf-8", "replace").split("\n")
    at = int(rng.integers(len(lines)))
    key, colon, _ = lines[at].partition(":")
    if rng.random() < 0.1:
        return (BOMB + raw.decode("utf-8", "replace")).encode()
    odd = [
        "&x [*x]", "*nowhere", "!!int abc", "!!python/name:os.system", "2024-01-01", "190:20:30", "1_000",
        "~",        "{{", "[" * 3000, "|", "'", "\t", "\ud800", "0o17", ".inf", "9" * 400, "? a", "<<: *x",
        "../..", "/etc/*",
    ]  # fmt: skip
    lines[at] = f"{key}{colon} {odd[int(rng.integers(len(odd)))]}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def changed_parquet(raw: bytes, rng: Rng) -> bytes:
    """Other types, values, rows or metadata in a file that is whole Parquet."""
    table = pq.read_table(pa.BufferReader(raw))
    at = int(rng.integers(table.num_columns))
    name = table.column_names[at]
    match int(rng.integers(7)):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.set_column(at, name, pa.array([None] * len(table)))
        case 2:
            table = table.set_column(at, name, pa.array(["x"] * len(table)))
        case 3:
            table = pa.concat_tables([table, table.slice(0, 1)])
        case 4:
            table = table.slice(0, int(rng.integers(len(table))))
        case 5:
            table = table.take(pa.array(rng.permutation(len(table))))
        case _:
            metadata = dict(table.schema.metadata or {})
            key = next(iter(metadata), b"kerple_eval")
            try:
                metadata[key] = changed_json(metadata.get(key, b"{}"), rng)
            except ValueError:
                metadata[key] = b"{"
            table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


STRUCTURED: dict[str, Callable[[bytes, Rng], bytes]] = {
    ".json": changed_json,
    ".yaml": changed_yaml,
    ".yml": changed_yaml,
    ".parquet": changed_parquet,
}


def damage(folder: Path, files: list[Path], rng: Rng) -> str:
    """Damages one of ``files``; returns its name and what kind of damage it was."""
    path = files[int(rng.integers(len(files)))]
    raw = path.read_bytes()
    change = STRUCTURED.get(path.suffix)
    draw = rng.random()
    kind = "bytes"
    if draw < 0.03:
        path.unlink()
        path.symlink_to(path.name)
        kind = "a link to itself"
    elif draw < 0.06:
        path.unlink()
        path.mkdir()
        kind = "a folder in its place"
    elif change is not None and draw < 0.66:
        try:
            path.write_bytes(change(raw, rng))
            kind = "structure"
        except (ValueError, pa.ArrowException, RecursionError):
            path.write_bytes(changed_bytes(raw, rng))
    else:
        path.write_bytes(changed_bytes(raw, rng))
    return f"{path.relative_to(folder)}: {kind}"
