"""Schemes as text, ``kerple-log,window=512:key=value``: read and written. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.registry import unknown
from kerple_eval.support.specs import option_pairs, parse_spec
from kerple_eval.types import SchemeSpec, UserError

#: The name of a mix, and the option that takes its parts (:mod:`kerple_eval.schemes.layers`).
MIX, PARTS = "layers", "parts"


def parse_scheme(text: str) -> SchemeSpec:
    """``name[,modifier=value[,key=value]...][:key=value,...]`` -> :class:`SchemeSpec`.

    ``kerple-log,window=512`` lays the modifier ``window`` on ``kerple-log``, its main option being 512. A
    scheme with a ``text_option`` takes all after the colon as that, commas and equals signs included:
    ``kernel: -r1*log(1+r2*D)`` is ``kernel`` with ``formula=-r1*log(1+r2*D)``; ``kernel:formula=...`` says
    the same, so that ``str`` of the result reads back. So does ``layers: (rope)*3 (nope)``, with its parts.
    Names of options may be written with dashes, ``per-layer=true``; the result has them with underscores.
    """
    head, colon, rest = (part.strip() for part in text.partition(":"))
    name, *parts = (part.strip() for part in head.split(","))
    text_option = PARTS if name == MIX else SCHEMES.entry(name).text_option if name else ""
    bare = [f"{part}=" if part in SCHEMES else part for part in parts]
    modifiers = parse_modifiers(option_pairs(bare, text, may_be_empty=SCHEMES)) if parts else ()
    if not (text_option and colon):
        spec = parse_spec(name + (f":{rest}" if colon else ""))
        return SchemeSpec(spec.name, tuple((option_name(k), v) for k, v in spec.options), modifiers)
    if not rest:
        raise UserError(f"nothing after the colon in {text!r}; expected {name}: {text_option.upper()}")
    key, equals, value = (part.strip() for part in rest.partition("="))
    given = value if equals and key == text_option else rest
    return SchemeSpec(name, ((text_option, given),), modifiers)


def parse_modifiers(
    pairs: Iterable[tuple[str, str]],
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """``window=512`` starts the modifier ``window``; a key that names none is an option of the last one.

    An empty value leaves the modifier's main option at its default.
    """
    found: dict[str, dict[str, str]] = {}
    known = {name: entry for name, entry in SCHEMES.items() if entry.stands_on}
    last = ""
    for key, value in pairs:
        if key in known:
            last = key
            found[last] = {known[key].value_option: value}
        elif last:
            found[last][option_name(key)] = value
        else:
            raise unknown("modifier", key, known)
    return tuple((name, tuple(options.items())) for name, options in found.items())


def option_name(text: str) -> str:
    """The name of a scheme's option as Python has it: ``per-layer`` is ``per_layer``."""
    return text.replace("-", "_")


def format_scheme(scheme: str, options: Mapping[str, Any], modifiers: Mapping[str, Mapping[str, Any]]) -> str:
    """A configured scheme as text, ``kerple-log,window=512``: what :func:`parse_scheme` reads."""
    parts = []
    for name, given in modifiers.items():
        main = SCHEMES.entry(name).value_option
        rest = tuple((key, str(value)) for key, value in given.items() if key != main)
        parts.append((name, ((main, str(given.get(main, ""))), *rest)))
    return str(SchemeSpec(scheme, tuple((k, str(v)) for k, v in options.items()), tuple(parts)))
