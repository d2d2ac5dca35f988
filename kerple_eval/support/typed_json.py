"""Frozen dataclasses to JSON and back, with every value checked against its annotation.

A field's annotation says what its key may hold: ``str``, ``int``, ``float``, ``bool``, ``None``, ``Any``, a
``Literal``, a dataclass, ``tuple[X, ...]`` (a list), ``Mapping[str, X]`` (an object), a union of these, or
``Annotated[X, Check(...)]`` where the type alone does not say enough. A field without a default is a key that
must be there; one whose default is None is left out of the JSON where it is None. A field named ``other``
keeps the keys that no other field names, so that what a newer release of the same layout version adds is
written back as it was read; where a class has no such field, unknown keys are refused.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

T = TypeVar("T")
LARGEST = 2**63 - 1  # what a 64-bit column holds


@dataclass(frozen=True)
class Check:
    """A condition on a value, and the words that complete "expected ..."."""

    holds: Callable[[Any], bool]
    expected: str


Count = Annotated[int, Check(lambda value: value >= 0, "a whole number, at least 0")]
Positive = Annotated[int, Check(lambda value: value >= 1, "a whole number, at least 1")]


def to_json(value: Any) -> Any:
    """``value`` as dictionaries, lists, texts and numbers; keys in the order of the fields, others last."""
    if is_dataclass(value) and not isinstance(value, type):
        content: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for entry in fields(value):
            part = getattr(value, entry.name)
            if entry.name == "other":
                others = to_json(part)
            elif part is not None or entry.default is not None:
                content[entry.name] = to_json(part)
        return content | others
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """The dataclass ``kind`` that ``data`` describes.

    Raises:
        UserError: a key that is missing or unknown, or a value that is not what its field says; the message
            is ``WHERE.KEY: expected ..., got ...``.
    """
    return _read(kind, data, where)  # type: ignore[no-any-return]  # as its annotation says


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin is Annotated:
        value = _read(arguments[0], data, where)
        for check in arguments[1:]:
            if not check.holds(value):
                raise _unexpected(where, check.expected, data)
        return value
    if origin in (Union, types.UnionType):
        fitting = [option for option in arguments if _fits(option, data)]
        if not fitting:
            raise _unexpected(where, " or ".join(_name(option) for option in arguments), data)
        return _read(fitting[0], data, where)
    if not _fits(kind, data):
        raise _unexpected(where, _name(kind), data)
    if origin is tuple:
        return tuple(_read(arguments[0], part, f"{where}[{i}]") for i, part in enumerate(data))
    if origin is not None and _is_mapping(origin):
        return {key: _read(arguments[1], part, f"{where}.{key}") for key, part in data.items()}
    return _dataclass(kind, data, where) if is_dataclass(kind) else data


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _dataclass(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for entry in fields(kind):
        if entry.name == "other":
            continue
        if entry.name in data:
            values[entry.name] = _read(hints[entry.name], data[entry.name], f"{where}.{entry.name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{where}: {entry.name} is missing")
    unknown = {key: value for key, value in data.items() if key not in values}
    if "other" in hints:
        values["other"] = unknown
    elif unknown:
        raise UserError(f"{where}: unknown key {quoted(next(iter(unknown)))}; known: {', '.join(hints)}")
    return kind(**values)


def _fits(kind: Any, data: Any) -> bool:
    """Whether ``data`` is of the JSON type of ``kind``, whatever it holds."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(arguments[0], data)
    if origin is Literal:
        return isinstance(data, str) and data in arguments
    if is_dataclass(kind) or _is_mapping(origin):
        return isinstance(data, dict)
    if kind in (int, float) and (isinstance(data, bool) or not _finite(data)):
        return False
    json_types: dict[Any, Any] = {float: (int, float), tuple: list}
    return kind is Any or isinstance(data, json_types.get(origin or kind, kind))


def _finite(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(arguments[1].expected)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return "a list"
    if is_dataclass(kind) or _is_mapping(origin):
        return "an object"
    return {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}.get(
        kind, "null"
    )


def _unexpected(where: str, expected: str, data: Any) -> UserError:
    if isinstance(data, int) and not _finite(data):
        expected = "a whole number of 64 bits"
    return UserError(f"{where}: expected {expected}, got {quoted(data)}")
