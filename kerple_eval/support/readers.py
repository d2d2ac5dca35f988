"""Bounded readers of JSON, JSON lines and YAML, one for each format: a value, or one UserError.

Whatever a file holds, reading it ends soon, in bounded memory, and runs no code. Bounds: bytes of a file
or line, levels of nesting (``DEEPEST``), digits of a whole number (``DIGITS``). A key given twice is
refused, where the usual libraries keep the last. ``quoted`` shows a value in a message within as few
characters as the message has room for.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from kerple_eval.types import UserError

LARGEST_JSON = 1 << 26  # bytes of a JSON file, or of a line of JSON lines
LARGEST_YAML = 1 << 18  # bytes
DEEPEST = 100  # levels of lists and objects
DIGITS = 40  # of a whole number: far more than any size, id or seed has
SHOWN = 80  # characters of a value in a message

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MANY_DIGITS = re.compile(rf"\d{{{DIGITS + 1}}}")


# --- Messages ------------------------------------------------------------------------------------


def quoted(value: object, most: int = SHOWN) -> str:
    """``repr(value)`` where that has at most ``most`` characters, else its beginning and "...".

    A long value is never written out whole first, so that no value is too large, deep or shared to quote.
    """
    text = ""
    for piece in _pieces(value, most):
        text += piece
        if len(text) > most:
            return text[: most - 3] + "..."
    return text


def _pieces(value: object, most: int) -> Iterator[str]:
    """The parts of ``repr(value)`` in order, each short; a reader stops when it has enough."""
    if isinstance(value, str | bytes | bytearray):
        yield repr(value[: most + 1])
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * most:
        yield f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    elif isinstance(value, Mapping):
        yield "{"
        for number, key in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(key, most)
            yield ": "
            yield from _pieces(value[key], most)
        yield "}"
    elif isinstance(value, list | tuple | set | frozenset):
        yield "[" if isinstance(value, list) else "(" if isinstance(value, tuple) else "{"
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item, most)
        if isinstance(value, tuple):
            yield ",)" if len(value) == 1 else ")"
        else:
            yield "]" if isinstance(value, list) else "}"
    else:
        yield repr(value)


# --- Bytes ---------------------------------------------------------------------------------------


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes."""
    try:
        with open_regular(path) as file:
            raw = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(cannot_read(path, error)) from None
    if len(raw) > most:
        raise UserError(f"{path}: larger than {most:,} bytes, the most that is read of such a file")
    return raw


def open_regular(path: Path) -> BinaryIO:
    """The file, open for reading bytes; a pipe, a terminal and the like are refused: they may never end.

    Raises:
        UserError: it is no regular file.
        OSError, ValueError: it cannot be opened.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: not a regular file; write what it gives into one")
    return path.open("rb")


def cannot_read(path: object, error: OSError | ValueError) -> str:
    """The message for a file that the system does not open or read."""
    name = str(path)  # or text that was taken for a name
    name = name if len(name) <= 300 else f"{name[:300]}..."
    return f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"


def _decoded(raw: bytes, where: object) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


# --- JSON ----------------------------------------------------------------------------------------


def read_json(path: Path, *, non_finite: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds; see :func:`parse_json`."""
    return _object(parse_json(read_bytes(path, LARGEST_JSON), path, non_finite=non_finite), path)


def json_lines(lines: Iterable[bytes], where: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of every line of ``lines`` that is not blank."""
    for number, line in enumerate(lines, start=1):
        if len(line) > LARGEST_JSON:
            raise UserError(f"{where}:{number}: longer than {LARGEST_JSON:,} bytes; split the line")
        if line.strip():
            here = f"{where}:{number}"
            yield number, _object(parse_json(line, here), here)


def parse_json(raw: bytes | str, where: object, *, non_finite: bool = False) -> Any:
    """A JSON value; ``where`` begins the messages.

    ``non_finite``: ``NaN``, ``Infinity`` and ``-Infinity`` are numbers (Python's dialect, which some
    tools write), and so is one beyond the range of float64; otherwise they are refused.

    Raises:
        UserError: not JSON or not UTF-8; a key given twice; half a surrogate pair, which UTF-8 cannot
            encode; nested deeper than ``DEEPEST`` levels; a whole number of more than ``DIGITS`` digits.
    """
    text = _decoded(raw, where) if isinstance(raw, bytes) else raw
    hooks: dict[str, Any] = {"object_pairs_hook": _unique_keys}
    if not non_finite:
        hooks |= {"parse_constant": _refuse_constant, "parse_float": _finite}
    if _MANY_DIGITS.search(text):
        hooks["parse_int"] = _whole_number
    try:
        value = json.loads(text, **hooks)
        if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
            raise RecursionError
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise UserError(f"{where}: not JSON: nested deeper than {DEEPEST} levels") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: half a surrogate pair (\\ud800 to \\udfff) in a string, which UTF-8 cannot encode; "
            "remove it"
        ) from None
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    return value


def _object(value: Any, where: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        for key, _ in pairs:
            if made.pop(key, made) is made:
                raise ValueError(f"key {quoted(key)} is given twice")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{quoted(text)} is beyond the range of numbers")
    return number


def _whole_number(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text)} digits; at most {DIGITS} are read")
    return int(text)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


# --- YAML ----------------------------------------------------------------------------------------

_NULL = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(path: Path) -> Any:
    """The value that a YAML file holds; see :func:`parse_yaml`."""
    return parse_yaml(_decoded(read_bytes(path, LARGEST_YAML), path), path)


def parse_yaml(text: str, where: object) -> Any:
    """A value of plain YAML: lists, mappings, text, numbers, true, false and null; None for nothing.

    Keys are the text they are written as. What YAML 1.1 reads as something unexpected is text here:
    dates, numbers in base 60 (``1:30``), octal ones (``010``), ``1_000``, ``yes``, ``no``, ``on``, ``off``.

    Raises:
        UserError: not YAML; an alias (``*name``) or a tag (``!!name``); a key given twice; nested deeper
            than ``DEEPEST`` levels; a whole number of more than ``DIGITS`` digits.
    """
    if len(text) > LARGEST_YAML:
        raise UserError(f"{where}: larger than {LARGEST_YAML:,} characters, the most that is read as YAML")
    try:
        events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        value = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _RefusedError("a second document begins", event)
                value = _yaml_value(next(events), events, 0)
        return value
    except _RefusedError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context
        raise UserError(f"{where}: not YAML: {problem}{_line(error.problem_mark)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


class _RefusedError(Exception):
    """YAML that is not plain, with the line of the event that says so."""

    def __init__(self, problem: str, event: yaml.Event) -> None:
        super().__init__(problem + _line(event.start_mark))


def _line(mark: Any) -> str:
    return "" if mark is None else f" (line {mark.line + 1})"


def _yaml_value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    """The value that begins with ``event``; takes its other events from ``events``."""
    if isinstance(event, yaml.AliasEvent):
        raise _RefusedError(f"alias *{event.anchor:.40}; write the value out", event)
    if depth > DEEPEST:
        raise _RefusedError(f"nested deeper than {DEEPEST} levels", event)
    if (tag := getattr(event, "tag", None)) is not None:
        raise _RefusedError(f"tag {tag:.40}; plain values have none", event)
    if isinstance(event, yaml.ScalarEvent):
        return _yaml_scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_yaml_value(item, events, depth + 1))
        return items
    made: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise _RefusedError("a key that is no plain text", key)
        if key.value in made:
            raise _RefusedError(f"key {quoted(key.value)} is given twice", key)
        made[key.value] = _yaml_value(next(events), events, depth + 1)
    return made


def _yaml_scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # in quotes
        return text
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text) or _HEXADECIMAL.fullmatch(text):
        if len(text) > DIGITS:
            raise _RefusedError(f"a number of {len(text)} digits; at most {DIGITS} are read", event)
        return int(text, 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".", "") if text.lower().endswith(("inf", "nan")) else text)
    return text
