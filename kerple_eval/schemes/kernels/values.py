"""What the parts of a written formula are, and what arithmetic makes of them by the closure rules.

A part is a number, a scale of parameters with a sign, or a kernel with a sign: ``D`` is minus the
kernel ``-D``, ``log(1 + D)`` minus the kernel ``-log(1 + D)``. What is none of these is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from kerple_eval.schemes.kernels import algebra
from kerple_eval.schemes.kernels.algebra import CPD, PD
from kerple_eval.schemes.kernels.exact import exact, power
from kerple_eval.schemes.kernels.parameters import ClosureError, Exponent, Parameter, Scale


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class SignedScale:
    """``scale``, or minus it; holds parameters."""

    negative: bool
    scale: Scale


@dataclass(frozen=True, slots=True)
class SignedKernel:
    """``kernel``, or minus it."""

    negative: bool
    kernel: CPD


ParsedValue = Number | SignedScale | SignedKernel


def number(compute: Callable[[], Fraction | float | complex]) -> Number:
    try:
        value = compute()
        if isinstance(value, complex) or not math.isfinite(value):
            raise ValueError
    except ZeroDivisionError:
        raise ClosureError("division by zero") from None
    except (OverflowError, ValueError):
        raise ClosureError("not a finite number") from None
    return Number(exact(value))


def literal(text: str) -> Number:
    """A number as it is written, without rounding."""
    return number(lambda: Fraction(text) if float(text) else Fraction(0))  # 1e-999999999 has too many digits


def negate(value: ParsedValue) -> ParsedValue:
    match value:
        case Number(x):
            return Number(-x)
        case SignedScale(negative, scale):
            return SignedScale(not negative, scale)
        case SignedKernel(negative, kernel):
            return SignedKernel(not negative, kernel)


def plus(left: ParsedValue, right: ParsedValue) -> ParsedValue:
    match left, right:
        case Number(x), Number(y):
            return number(lambda: x + y)
        case (SignedScale(), _) | (_, SignedScale()):
            raise ClosureError("a parameter alone is a constant: constants are numbers")
        case SignedKernel(negative, kernel), Number(x):
            return SignedKernel(negative, algebra.add(kernel, algebra.constant(-x if negative else x)))
        case Number(), SignedKernel():
            return plus(right, left)
        case SignedKernel(negative, first), SignedKernel(other, second) if negative == other:
            return SignedKernel(negative, algebra.add(first, second))
    raise ClosureError("a difference of kernels leaves the closure: only sums are CPD")


def times(left: ParsedValue, right: ParsedValue) -> ParsedValue:
    match left, right:
        case Number(x), Number(y):
            return number(lambda: x * y)
        case SignedKernel(negative, first), SignedKernel(other, second):
            return SignedKernel(negative != other, algebra.product(first, second))
        case _, SignedKernel(negative, kernel):
            other, scale = _factor(left)
            return SignedKernel(negative != other, algebra.scaled(scale, kernel))
        case SignedKernel(), _:
            return times(right, left)
    (negative, first_scale), (other, second_scale) = _factor(left), _factor(right)
    return SignedScale(negative != other, first_scale * second_scale)


def over(left: ParsedValue, right: ParsedValue) -> ParsedValue:
    match left, right:
        case Number(x), Number(y):
            return number(lambda: x / y)
        case _, SignedKernel():
            raise ClosureError("dividing by a kernel leaves the closure; 1/(1 + X) is exp(-log(1 + X))")
        case _, Number(y):
            return times(left, number(lambda: 1 / y))
    negative, scale = _factor(right)
    return times(left, SignedScale(negative, scale.inverse()))


def _factor(value: ParsedValue) -> tuple[bool, Scale]:
    """Sign and size of a number or a scale."""
    if isinstance(value, Number):
        if value.value == 0:
            raise ClosureError("a scale must be positive, got 0")
        return value.value < 0, Scale(float(abs(value.value)))
    assert isinstance(value, SignedScale)
    return value.negative, value.scale


def raised(base: ParsedValue, exponent: ParsedValue) -> ParsedValue:
    if isinstance(base, Number) and isinstance(exponent, Number):
        x, y = base.value, exponent.value
        return number(lambda: power(x, y))
    if isinstance(base, Number) and isinstance(exponent, SignedKernel):
        raise ClosureError(_exponential(base.value, exponent))
    if not isinstance(base, SignedKernel):
        raise ClosureError("a power is taken of D or of a kernel; a scale is a product of parameters")
    if base.negative:
        return SignedKernel(True, algebra.root(base.kernel, _exponent(exponent)))
    if isinstance(base.kernel, PD):
        raise ClosureError("a power of a PD kernel is written as a product, or exp(k)**a as exp(a*k)")
    raise ClosureError("a power is taken of what is positive, such as D or log(1 + D)")


def _exponential(base: Fraction, exponent: SignedKernel) -> str:
    """Why a number to the power of D is refused, and how it is written where it is a kernel."""
    rule = "a number to the power of a kernel is written with exp"
    if base <= 0 or base == 1 or (base > 1) == exponent.negative:
        return f"{rule}, and exp is taken of a CPD kernel (Schoenberg), such as exp(-D)"
    rate = float(f"{abs(math.log(base)):.3g}")
    return f"{rule}: exp({algebra.scaled(rate, exponent.kernel)})"


def _exponent(value: ParsedValue) -> Exponent:
    match value:
        case Number(x):
            return x
        case SignedScale(False, Scale(1.0, (name,), ())):
            return Parameter(name)
    raise ClosureError("an exponent is a number or one parameter")


def log(inside: ParsedValue) -> ParsedValue:
    match inside:
        case Number(x):
            return number(lambda: math.log(x))
        case SignedKernel(True, kernel):
            return SignedKernel(True, algebra.log_of(kernel))
    raise ClosureError("log is taken of 1 - k, k <= 0 CPD, such as log(1 + D)")


def exp(inside: ParsedValue) -> ParsedValue:
    match inside:
        case Number(x):
            return number(lambda: math.exp(x))
        case SignedKernel(False, kernel):
            return SignedKernel(False, algebra.exp(kernel))
    raise ClosureError("exp is taken of a CPD kernel (Schoenberg), such as exp(-D)")
