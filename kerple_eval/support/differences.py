"""What differs between two records, as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from kerple_eval.support.readers import quoted


@dataclass(frozen=True)
class Difference:
    """One leaf of two records that differs; ``where`` is its dotted key. An absent key counts as None."""

    where: str
    old: Any
    new: Any

    def describe(self, old_place: str = "there", new_place: str = "now") -> str:
        """``KEY was OLD there and is NEW now``, with the two places named."""
        line = f"{self.where} was {_brief(self.old)} {old_place} and is {_brief(self.new)} {new_place}"
        return line.strip()


def differences(old: Any, new: Any, where: str = "") -> list[Difference]:
    """Every leaf of two JSON values that differs, in the order of ``old``."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{where}.{key}" if where else str(key), old.get(key), new.get(key)) for key in old | new]
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(x, dict) for x in old + new):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip_longest(old, new))]
    else:
        return [] if old == new else [Difference(where, old, new)]
    return [difference for place, a, b in pairs for difference in differences(a, b, place)]


def _brief(value: Any) -> str:
    """A model, task or protocol by its name alone; anything else whole."""
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return next((quoted(value[k]) for k in ("label", "protocol", "name") if k in value), quoted(value))
    return quoted(value)
