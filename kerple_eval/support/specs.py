"""The grammar of names with options on the command line: ``NAME:key=value,key=value``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from kerple_eval.support.readers import SHOWN, quoted
from kerple_eval.support.registry import unknown
from kerple_eval.types import Spec, UserError

LARGEST = 2**53  # of a whole number as an option: every one up to it is a float64 too
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")


def parse_spec(text: str) -> Spec:
    """``name:key=value,key=value`` -> :class:`Spec`."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"no name in {text[:80]!r}; expected NAME or NAME:key=value")
    if colon and not rest.strip():
        raise UserError(f"nothing after the colon in {text[:80]!r}; expected NAME:key=value")
    return Spec(name, parse_options(rest, text) if colon else ())


def parse_options(text: str, where: str, *, may_be_empty: Container[str] = ()) -> tuple[tuple[str, str], ...]:
    """``key=value,key=value`` -> pairs, see :func:`option_pairs`."""
    return tuple(option_pairs(text.split(","), where, may_be_empty=may_be_empty))


def option_pairs(
    parts: Iterable[str], where: str, *, may_be_empty: Container[str] = ()
) -> list[tuple[str, str]]:
    """``["key=value", ...]`` -> pairs; only keys in ``may_be_empty`` may have an empty value.

    Raises:
        UserError: a part that is no ``key=value``, or a key given twice; ``where`` is quoted.
    """
    pairs: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and (value or key in may_be_empty)):
            raise UserError(f"expected key=value, got {part[:80]!r} in {where[:80]!r}")
        if key in pairs:
            raise UserError(f"option {key[:80]!r} given twice in {where[:80]!r}")
        pairs[key] = value
    return list(pairs.items())


def whole_number(text: str) -> int | None:
    """``512`` or ``16k`` (16 x 1,024) as a number; None where it is neither."""
    digits, thousands = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    return int(digits) * thousands if digits.isascii() and digits.isdigit() and len(digits) < 20 else None


def typed_options(
    function: Callable[..., Any], options: Mapping[str, Any], what: str, *, positional: bool = False
) -> dict[str, Any]:
    """Convert ``options`` by the annotations of ``function``'s keyword-only parameters.

    Strings (from a command line) are converted; values of the right type (from a config file)
    pass. int, float, bool and str are understood. Unknown names and missing ones are refused. The
    result is in the order of the parameters, whatever the order they were written in. ``positional``:
    parameters that may also be given by position count too, and those without an annotation take text.
    """
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        or (positional and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }
    converted: dict[str, Any] = {}
    for key, value in options.items():
        if key not in wanted:
            raise unknown(f"option of {what}", key, wanted)
        annotation = wanted[key].annotation  # a string only where the module postpones annotations
        if annotation is inspect.Parameter.empty:
            annotation = "str"
        kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        shown = value if isinstance(value, str) and len(value) <= SHOWN else quoted(value)
        converted[key] = _convert(value, kind, f"{what}: {key}={shown}")
    for name, parameter in wanted.items():
        if parameter.default is inspect.Parameter.empty and name not in converted:
            example = "..." if parameter.annotation in ("str", str) else "256"
            raise UserError(f"{what} needs {name}=..., as in {what}:{name}={example}")
    return {name: converted[name] for name in wanted if name in converted}


def _convert(value: Any, annotation: str, where: str) -> Any:
    kinds = [kind.strip() for kind in annotation.split("|")]
    for kind in kinds:
        if kind == "int" and not isinstance(value, bool):
            number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
            if isinstance(number, int):
                if abs(number) > LARGEST:
                    raise UserError(f"{where} is too large: at most 2^53 = {LARGEST}")
                return number
        if kind == "float" and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError):
                continue
        if kind == "bool":
            if isinstance(value, bool):
                return value
            if value in ("true", "false"):
                return value == "true"
        if kind == "str" and isinstance(value, str):
            return value
    raise UserError(f"{where} is not {'an' if kinds[0] == 'int' else 'a'} {kinds[0]}")
