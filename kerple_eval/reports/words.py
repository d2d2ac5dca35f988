"""What a curve does, in words: text alternatives of figures, computed from the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Sequence

#: A change below this share of the first value is no change to speak of.
FLAT = 0.02


def trend(x: Sequence[float], y: Sequence[float], at: str = "at") -> str:
    """``falls from 24.00 at 512 to 22.50 at 2048 (-6.3 %)``; a minimum or maximum between is named."""
    first, last = f"{short(y[0])} {at} {short(x[0])}", f"{short(y[-1])} {at} {short(x[-1])}"
    if len(y) == 1:
        return f"is {first}"
    low, high = min(y), max(y)
    if max(high - y[0], y[0] - low) <= FLAT * abs(y[0]):
        return f"is nearly flat, from {first} to {last}"
    word = "rises" if y[-1] > y[0] else "falls"
    if abs(y[-1] - y[0]) <= FLAT * abs(y[0]):
        word = "returns"
    description = f"{word} from {first} to {last} ({change(y[0], y[-1])})"
    turns = [
        f"{name} {short(value)} {at} {short(x[list(y).index(value)])}"
        for name, value in (("lowest", low), ("highest", high))
        if abs(value - y[0]) > FLAT * abs(y[0]) and abs(value - y[-1]) > FLAT * abs(y[-1])
    ]
    return description + (f", {' and '.join(turns)}" if turns else "")


def change(old: float, new: float) -> str:
    """``-6.3 %``, or ``x 23`` from a doubling on."""
    ratio = new / old if old > 0 else 1.0
    return f"x {ratio:.3g}" if ratio >= 2 else f"{100 * (ratio - 1):+.1f} %"


def short(value: float) -> str:
    """Four significant digits; whole numbers as they are."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


def listing(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
