"""Numbers of a formula without rounding, so that no sign is decided by a rounding error.

A float stands for the decimal it is written as: 0.1 is one tenth, and 0.1 + 0.2 - 0.3 is 0. What comes from
a logarithm, an exponential or a root is a float, and stands for its decimal too.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

LARGEST_BITS = 4096  # of a whole power that is computed without rounding


def exact(value: float | Fraction) -> Fraction:
    """The number a finite float is written as."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


def rounded(value: float | Fraction) -> float:
    """The nearest float, infinite beyond their range."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def bound(value: float) -> Fraction | float:
    """A computed float as a bound: exact where it is finite."""
    return exact(value) if math.isfinite(value) else value


def power(base: Fraction, exponent: Fraction) -> Fraction | float | complex:
    """``base ** exponent``: exact for a whole exponent of moderate size, a float otherwise."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator == 1 and bits * abs(exponent) <= LARGEST_BITS:
        return base ** int(exponent)
    result: float | complex = float(base) ** float(exponent)
    return result


def shown(value: float | Fraction) -> str:
    """A number for a message, with as many digits (up to 40) as tell it from every other."""
    if not isinstance(value, Fraction) and not math.isfinite(value):
        return str(value)
    number = exact(value)
    short = f"{float(number):.12g}"
    if Fraction(short) == number:
        return short
    with decimal.localcontext(prec=40):
        return str((decimal.Decimal(number.numerator) / number.denominator).normalize())
