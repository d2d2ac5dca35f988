"""Schemes that differ by layer, ``layers: (rope,window=512)*3 (nope)``: read and shown. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kerple_eval.schemes.spelling import MIX, PARTS, parse_scheme
from kerple_eval.types import SchemeSpec, UserError

_COUNT = re.compile(r"\s*\*\s*([0-9]{1,9})")
EXAMPLE = f"{MIX}: (rope,window=512)*3 (nope)"


def parse_layers(options: dict[str, Any], layers: int) -> list[SchemeSpec]:
    """The scheme of each of a model's ``layers``, from the options of the scheme ``layers``.

    Its one option, ``parts``, is schemes in parentheses, each for one layer or ``*N`` for N of them: a cycle
    that is repeated over the layers.

    Raises:
        UserError: no such text, or the layers are not a whole number of cycles.
    """
    text = options.get(PARTS)
    if not isinstance(text, str) or len(options) > 1:
        raise UserError(f"{MIX} takes schemes in parentheses and nothing else, as in {EXAMPLE}")
    parts = _parts(text)
    cycle = sum(count for _, count in parts)
    if layers % cycle:
        raise UserError(
            f"{MIX}: {text}: its parts are for {cycle} layers, and the model's {layers} "
            f"are no whole number of such cycles"
        )
    specs = [spec for text, count in parts for spec in [parse_scheme(text)] * count]
    for spec in specs:
        if spec.name == MIX:
            raise UserError(f"{MIX}: {text}: a part is a scheme, not a mix in turn")
    return specs * (layers // cycle)


def _parts(text: str) -> list[tuple[str, int]]:
    """(scheme, number of layers) of each part; a scheme may have parentheses of its own, in pairs."""
    found: list[tuple[str, int]] = []
    rest = text.strip()
    while rest:
        end = _closing(rest)
        if not end:
            raise UserError(
                f"{MIX}: {text}: expected a scheme in parentheses at {rest[:40]!r}, as in {EXAMPLE}"
            )
        counted = _COUNT.match(rest, end + 1)
        count = int(counted[1]) if counted else 1
        if not count:
            raise UserError(f"{MIX}: {text}: a part for 0 layers; leave it out")
        found.append((rest[1:end].strip(), count))
        if not found[-1][0]:
            raise UserError(f"{MIX}: {text}: a part without a scheme; nope is the one without positions")
        rest = rest[counted.end() if counted else end + 1 :].lstrip()
    if not found:
        raise UserError(f"{MIX}: no parts; expected schemes in parentheses, as in {EXAMPLE}")
    return found


def _closing(text: str) -> int:
    """Where the parenthesis that ``text`` begins with is closed; 0 where there is none or it stays open."""
    depth = 0
    for at, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth <= 0:
            return at
    return 0


def format_layers(layers: Sequence[str]) -> str:
    """What tables and ``inspect`` show as the scheme of a model whose layers have the schemes ``layers``.

    One scheme is its own name. Several are joined by `` + ``, each with its number of layers of all layers,
    the most frequent first, then in the order of the layers: ``rope,window=512 15/18 + rope 3/18``.
    """
    counts = Counter(layers)
    if len(counts) == 1:
        return layers[0]
    return " + ".join(f"{name} {count}/{len(layers)}" for name, count in counts.most_common())
