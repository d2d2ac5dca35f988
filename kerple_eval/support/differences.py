"""What differs between two recorded specifications."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """``key was old there and is new now`` for every leaf of two recorded specifications that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(f"{where}.{key}" if where else str(key), old.get(key), new.get(key)) for key in old | new]
    elif isinstance(old, list) and isinstance(new, list) and any(isinstance(x, dict) for x in old + new):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip_longest(old, new))]
    else:
        return [] if old == new else [f"{where} was {_brief(old)} there and is {_brief(new)} now"]
    return [line for place, a, b in pairs for line in differences(a, b, place)]


def _brief(value: Any) -> str:
    """A model, task or protocol by its name alone; anything else whole."""
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return next((repr(value[k]) for k in ("label", "protocol", "name") if k in value), repr(value))
    return repr(value)
