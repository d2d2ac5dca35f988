"""Every catalogue of the project and how a name in it is resolved. Imports no torch.

The lines are in ``catalogue_lines.py`` and ``scheme_lines.py``. Names come as ``name`` or
``name:key=value,...``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from kerple_eval.catalogue_lines import FORMATS, GENERATORS, PROTOCOLS, REPORTS, Entry
from kerple_eval.scheme_lines import SCHEMES, SchemeEntry
from kerple_eval.types import SchemeSpec, Spec, UserError

__all__ = [
    "FORMATS",
    "GENERATORS",
    "PROTOCOLS",
    "REPORTS",
    "SCHEMES",
    "Entry",
    "SchemeEntry",
]  # the lines themselves


@lru_cache(maxsize=1)
def schemes() -> dict[str, SchemeEntry]:
    """Built-in schemes and those of other packages (entry-point group ``kerple_eval.schemes``).

    An entry point's name is the scheme's, its value a :class:`SchemeEntry`.
    """
    found = {entry.name: entry for entry in SCHEMES}
    for point in entry_points(group="kerple_eval.schemes"):
        entry = point.load()
        if not isinstance(entry, SchemeEntry):
            raise UserError(
                f"entry point {point.name!r} ({point.value}) of group kerple_eval.schemes "
                f"must be a kerple_eval.catalogue.SchemeEntry, got {type(entry).__name__}"
            )
        found.setdefault(entry.name, entry)
    return found


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """``unknown scheme 'alibbi': did you mean 'alibi'? Available: ...``"""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean '{close[0]}'?" if close else ""
    return UserError(f"unknown {what} {name!r}:{hint} available: {', '.join(names) or 'none'}")


def parse_spec(text: str) -> Spec:
    """``name:key=value,key=value`` -> :class:`Spec`."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"no name in {text!r}; expected NAME or NAME:key=value")
    if colon and not rest.strip():
        raise UserError(f"nothing after the colon in {text!r}; expected NAME:key=value")
    return Spec(name, parse_options(rest, text) if colon else ())


def parse_scheme(text: str) -> SchemeSpec:
    """``name[,modifier=value[,key=value]...][:key=value,...]`` -> :class:`SchemeSpec`.

    ``kerple-log,window=512`` lays the modifier ``window`` on ``kerple-log``, its main option being 512. A
    scheme with a ``text_option`` takes all after the colon as that, commas and equals signs included:
    ``kernel: -r1*log(1+r2*D)`` is ``kernel`` with ``formula=-r1*log(1+r2*D)``; ``kernel:formula=...`` says
    the same, so that ``str`` of the result reads back.
    """
    head, colon, rest = (part.strip() for part in text.partition(":"))
    name, *laid = (part.strip() for part in head.split(","))
    entry = scheme_entry(name) if name else None
    bare = [f"{part}=" if part in schemes() else part for part in laid]
    modifiers = parse_modifiers(_pairs(bare, text)) if laid else ()
    if entry is None or not (entry.text_option and colon):
        spec = parse_spec(name + (f":{rest}" if colon else ""))
        return SchemeSpec(spec.name, spec.options, modifiers)
    if not rest:
        raise UserError(f"nothing after the colon in {text!r}; expected {name}: {entry.text_option.upper()}")
    key, equals, value = (part.strip() for part in rest.partition("="))
    formula = value if equals and key == entry.text_option else rest
    return SchemeSpec(name, ((entry.text_option, formula),), modifiers)


def parse_modifiers(
    pairs: Iterable[tuple[str, str]],
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """``window=512`` starts the modifier ``window``; a key that names none is an option of the last one.

    An empty value leaves the modifier's main option at its default.
    """
    found: dict[str, dict[str, str]] = {}
    known = {name: entry for name, entry in schemes().items() if entry.stands_on}
    last = ""
    for key, value in pairs:
        if key in known:
            last = key
            found[last] = {known[key].value_option: value}
        elif last:
            found[last][key] = value
        else:
            raise unknown("modifier", key, known)
    return tuple((name, tuple(options.items())) for name, options in found.items())


def spell(scheme: str, options: Mapping[str, Any], modifiers: Mapping[str, Mapping[str, Any]]) -> str:
    """A configured scheme as one writes it: ``kerple-log,window=512``."""
    laid = []
    for name, given in modifiers.items():
        main = scheme_entry(name).value_option
        rest = tuple((key, str(value)) for key, value in given.items() if key != main)
        laid.append((name, ((main, str(given.get(main, ""))), *rest)))
    return str(SchemeSpec(scheme, tuple((k, str(v)) for k, v in options.items()), tuple(laid)))


def parse_options(text: str, where: str) -> tuple[tuple[str, str], ...]:
    """``key=value,key=value`` -> pairs; a repeated or empty key is refused."""
    return tuple(_pairs(text.split(","), where))


def _pairs(parts: Iterable[str], where: str) -> list[tuple[str, str]]:
    pairs: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and (value or key in schemes())):
            raise UserError(f"expected key=value, got {part!r} in {where!r}")
        if key in pairs:
            raise UserError(f"option {key!r} given twice in {where!r}")
        pairs[key] = value
    return list(pairs.items())


def load(target: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def typed_options(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Convert ``options`` by the annotations of ``function``'s keyword-only parameters.

    Strings (from a command line) are converted; values of the right type (from a config file)
    pass. int, float, bool and str are understood. Unknown names and missing ones are refused. The
    result is in the order of the parameters, whatever the order they were written in.
    """
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    converted: dict[str, Any] = {}
    for key, value in options.items():
        if key not in wanted:
            raise unknown(f"option of {what}", key, wanted)
        annotation = wanted[key].annotation  # a string only where the module postpones annotations
        kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        converted[key] = _convert(value, kind, f"{what}: {key}={value}")
    for name, parameter in wanted.items():
        if parameter.default is inspect.Parameter.empty and name not in converted:
            example = "..." if parameter.annotation in ("str", str) else "256"
            raise UserError(f"{what} needs {name}=..., as in {what}:{name}={example}")
    return {name: converted[name] for name in wanted if name in converted}


def _convert(value: Any, annotation: str, where: str) -> Any:
    kinds = [kind.strip() for kind in annotation.split("|")]
    for kind in kinds:
        if kind == "int" and not isinstance(value, bool):
            if isinstance(value, int):
                return value
            if isinstance(value, str) and value.lstrip("+-").isdecimal():
                return int(value)
        if kind == "float" and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        if kind == "bool":
            if isinstance(value, bool):
                return value
            if value in ("true", "false"):
                return value == "true"
        if kind == "str" and isinstance(value, str):
            return value
    raise UserError(f"{where} is not {'an' if kinds[0] == 'int' else 'a'} {kinds[0]}")


def scheme_entry(name: str) -> SchemeEntry:
    known = schemes()
    if name not in known:
        raise unknown("scheme", name, known)
    return known[name]


def entry(what: str, name: str, entries: Iterable[Entry]) -> Entry:
    known = by_name(entries)
    if name not in known:
        raise unknown(what, name, known)
    return known[name]
