"""Numbers as tables show them."""

from __future__ import annotations


def number(value: float | None) -> str:
    """Four significant digits or so: 3.214, 23.91, 185.2, 14039."""
    if value is None:
        return ""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0}f}"


def between(low: float | None, high: float | None) -> str:
    """The ends of an interval of perplexity; None, an end beyond the largest float, is ``too large``."""
    return f"{number(low) or 'too large'} to {number(high) or 'too large'}"


def signed(value: float, digits: int = 4) -> str:
    """``+0.0123``, ``-1.2000``; ``0.0000`` where nothing is left of it."""
    text = f"{value:+z.{digits}f}"
    return text if text.strip("+0.") else text[1:]


def probability(p: float | None) -> str:
    """A p-value: ``<0.0001``, ``0.0123``, ``0.45``."""
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"
