"""Kernels of the distance between two tokens, built by rules that keep them CPD or PD.

A symmetric k is *positive definite* (PD) when ``sum_ij c_i c_j k(x_i, x_j) >= 0`` for every finite
point set and every real c; *conditionally* PD (CPD) when that holds for every c with ``sum_i c_i = 0``.
Every PD kernel is CPD. KERPLE's biases are CPD kernels of ``D = |i - j| >= 0`` (tokens).

    -D^p           CPD for 0 < p <= 2                    Power       Fact 4, Corollary 1
    c              CPD; PD where c >= 0                  Constant
    a k            CPD (PD where k is), a > 0            Scaled      Fact 2
    k1 + k2        CPD (PD where both are)               Sum         Fact 2
    -(-k)^alpha    CPD for CPD k <= 0, 0 < alpha < 1     Root        Fact 3
    -log(1 - k)    CPD for CPD k <= 0                    Log         Fact 3; -log(c + X), c > 0, by it
    exp(k)         PD for CPD k                          Exp         Schoenberg
    k1 k2          PD for PD k1, k2                      Product     Schur

Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE" (NeurIPS 2022, arXiv 2205.09921), Section 3, after Berg,
Christensen, Ressel, "Harmonic Analysis on Semigroups" (1984), Chapter 3. ``(a D)^p`` is the base
kernel on scaled points.

The types carry the guarantee: a :class:`PD` is a :class:`CPD`, and whatever would leave the rules raises a
:class:`~kerple_eval.schemes.kernels.parameters.ClosureError` when it is built. ``k <= 0`` is decided at D =
0, where a CPD kernel of distance is largest: ``2 k(D) <= 2 k(0)`` is the definition at two points with c =
(1, -1).

    r1, r2 = Parameter("r1"), Parameter("r2")
    k = r1 * log(r2 * power(1.5))         # -r1*log(1 + r2*D**1.5)
    k(distance, {"r1": ..., "r2": ...})   # logits
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import overload

import torch
from torch import Tensor

from kerple_eval.schemes.kernels.basic import positive_power
from kerple_eval.schemes.kernels.exact import bound, exact, rounded, shown
from kerple_eval.schemes.kernels.notation import LATEX, TEXT, Notation
from kerple_eval.schemes.kernels.parameters import (
    ONE,
    ClosureError,
    Exponent,
    Parameter,
    Range,
    Role,
    Scale,
    exponent_value,
    ranges,
)

Factor = Scale | Parameter | float | Fraction
Bound = Fraction | float  # a float only where it is infinite


class CPD(ABC):
    """A conditionally positive definite kernel of distance."""

    @abstractmethod
    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """D ``[n]`` and parameters ``[H, 1]`` -> ``[H, n]`` (``[n]`` without parameters), D's dtype."""

    @property
    @abstractmethod
    def upper(self) -> Bound:
        """A bound of the kernel from above, whatever its parameters: that of its value at D = 0."""

    @abstractmethod
    def uses(self) -> Iterator[tuple[str, Role]]:
        """Every occurrence of a parameter: its name and its role."""

    @property
    def parameters(self) -> dict[str, Range]:
        """Names in order, with interval and initial draw."""
        return ranges(self.uses())

    def bind(self, values: Mapping[str, float]) -> Callable[[Tensor], Tensor]:
        """The function of distance at these parameters, for ``is_cpd`` and plots."""
        return lambda distance: self(distance, {k: distance.new_tensor(v) for k, v in values.items()})

    def __add__(self, other: CPD | float) -> CPD:
        return add(self, other if isinstance(other, CPD) else constant(other))

    __radd__ = __add__

    def __sub__(self, other: CPD | float) -> CPD:
        if isinstance(other, CPD):
            raise ClosureError("a difference of kernels leaves the closure: only sums are CPD")
        return self + -other

    def __rsub__(self, other: float) -> CPD:
        return other + -self

    def __neg__(self) -> CPD:
        raise ClosureError("a negative scale leaves the closure: -k is not CPD")

    def __mul__(self, other: CPD | Factor) -> CPD:
        return product(self, other) if isinstance(other, CPD) else scaled(other, self)

    __rmul__ = __mul__

    def __truediv__(self, other: Factor) -> CPD:
        if isinstance(other, CPD):
            raise ClosureError("a quotient of kernels leaves the closure; 1/(1 - k) is exp(-log(1 - k))")
        return self * Scale.of(other).inverse()

    @abstractmethod
    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        """Whether the kernel is minus an expression, and the expression: no sum but in a group."""

    def written(self, notation: Notation, negated: bool = False) -> str:
        """The kernel, or its negative."""
        return notation.signed([term.magnitude(notation) for term in terms_of(self)], negated)

    def __str__(self) -> str:
        """The formula, as :func:`kerple_eval.schemes.kernels.parsing.parse_kernel` reads it."""
        return self.written(TEXT)

    def latex(self) -> str:
        return self.written(LATEX)


class PD(CPD):
    """A positive definite kernel of distance."""

    @overload
    def __add__(self, other: PD) -> PD: ...
    @overload
    def __add__(self, other: CPD | float) -> CPD: ...
    def __add__(self, other: CPD | float) -> CPD:
        return super().__add__(other)


def terms_of(kernel: CPD) -> Sequence[CPD]:
    """The terms of a sum, or the kernel alone."""
    return kernel.terms if isinstance(kernel, Sum) else (kernel,)


def all_cpd(kernels: tuple[CPD, ...], rule: str) -> None:
    for kernel in kernels:
        if not isinstance(kernel, CPD):
            raise ClosureError(f"{rule}; {kernel} is not")


def all_pd(kernels: tuple[CPD, ...], rule: str) -> None:
    for kernel in kernels:
        if not isinstance(kernel, PD):
            raise ClosureError(f"{rule}; {kernel} is not")


def _not_positive(kernel: CPD, rule: str) -> None:
    all_cpd((kernel,), f"{rule} is CPD where k is")
    if not kernel.upper <= 0:  # also where the bound is unknown
        reach = shown(kernel.upper) if isinstance(kernel.upper, Fraction) else "any positive number"
        raise ClosureError(f"{rule} needs k <= 0, and k = {kernel} can reach {reach} at D = 0")


@dataclass(frozen=True)
class Power(CPD):
    """``-(rate D)^exponent``; a parameter as exponent is kept within [0.01, 2]."""

    exponent: Exponent
    rate: Scale = ONE

    def __post_init__(self) -> None:
        if isinstance(self.exponent, Parameter):
            return
        if not 0 < self.exponent <= 2:
            raise ClosureError(f"-D**p is CPD for 0 < p <= 2 only, got p = {shown(self.exponent)}")
        object.__setattr__(self, "exponent", float(self.exponent))

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        base = distance if self.rate == ONE else self.rate.value(parameters) * distance
        if self.exponent == 1:
            return -base
        return -positive_power(base, exponent_value(self.exponent, parameters))

    @property
    def upper(self) -> Bound:
        return Fraction(0)

    def uses(self) -> Iterator[tuple[str, Role]]:
        if isinstance(self.exponent, Parameter):
            yield self.exponent.name, Role.EXPONENT
        yield from ((name, Role.SCALE) for name in self.rate.names)

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        base = notation.scaled(self.rate, notation.name("D"))
        if self.exponent == 1:
            return True, base
        return True, notation.power(
            base if self.rate == ONE else notation.group(base), notation.exponent(self.exponent)
        )


@dataclass(frozen=True)
class Constant(CPD):
    """The same number at every distance; softmax does not see it, ``log(1 - k)`` does.

    ``exact`` is what sums and comparisons use; ``value`` is it rounded, what is computed with and written.
    """

    value: float
    exact: Fraction = field(default=Fraction(0), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ClosureError(f"a constant must be finite, got {self.value}")
        if float(self.exact) != self.value:
            object.__setattr__(self, "exact", exact(self.value))

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.full_like(distance, self.value)

    @property
    def upper(self) -> Bound:
        return self.exact

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from ()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        return self.exact < 0, notation.number(abs(self.value))


class PDConstant(Constant, PD):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact < 0:
            raise ClosureError(f"a constant is PD from 0 on, got {shown(self.exact)}")


@dataclass(frozen=True)
class Scaled(CPD):
    """``scale * kernel``, scale > 0."""

    scale: Scale
    kernel: CPD

    def __post_init__(self) -> None:
        all_cpd((self.kernel,), "a scaled kernel is CPD where the kernel is")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.scale.value(parameters) * self.kernel(distance, parameters)

    @property
    def upper(self) -> Bound:
        if not self.scale.names:
            return exact(self.scale.coefficient) * self.kernel.upper
        return Fraction(0) if self.kernel.upper <= 0 else math.inf

    def uses(self) -> Iterator[tuple[str, Role]]:
        role = Role.LOG_SCALE if isinstance(self.kernel, Log) else Role.SCALE
        yield from ((name, role) for name in self.scale.up)
        yield from ((name, Role.SCALE) for name in self.scale.down)
        yield from self.kernel.uses()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        negative, inside = self.kernel.magnitude(notation)
        return negative, notation.scaled(self.scale, inside)


class PDScaled(Scaled, PD):
    def __post_init__(self) -> None:
        super().__post_init__()
        all_pd((self.kernel,), "a scaled kernel is PD where the kernel is")


@dataclass(frozen=True)
class Sum(CPD):
    """``terms[0] + terms[1] + ...``, a number last."""

    terms: tuple[CPD, ...]

    def __post_init__(self) -> None:
        if len(self.terms) < 2:
            raise ClosureError("a sum has at least two terms")
        all_cpd(self.terms, "a sum is CPD where every term is")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        out = self.terms[0](distance, parameters)
        for term in self.terms[1:]:
            out = out + term(distance, parameters)
        return out

    @property
    def upper(self) -> Bound:
        return sum((term.upper for term in self.terms), Fraction(0))

    def uses(self) -> Iterator[tuple[str, Role]]:
        for term in self.terms:
            yield from term.uses()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        negative, _ = self.terms[0].magnitude(notation)
        return negative, notation.group(self.written(notation, negated=negative))


class PDSum(Sum, PD):
    def __post_init__(self) -> None:
        super().__post_init__()
        all_pd(self.terms, "a sum is PD where every term is")


@dataclass(frozen=True)
class Root(CPD):
    """``-(-kernel)^alpha``, kernel <= 0, 0 < alpha < 1; a parameter is kept within [0.01, 0.99]."""

    kernel: CPD
    alpha: Exponent

    def __post_init__(self) -> None:
        _not_positive(self.kernel, "-(-k)**alpha")
        if isinstance(self.alpha, Parameter):
            return
        if not 0 < self.alpha < 1:
            raise ClosureError(f"-(-k)**alpha is CPD for 0 < alpha < 1, got alpha = {shown(self.alpha)}")
        object.__setattr__(self, "alpha", float(self.alpha))

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return -positive_power(-self.kernel(distance, parameters), exponent_value(self.alpha, parameters))

    @property
    def upper(self) -> Bound:
        depth = rounded(-self.kernel.upper)  # a bound of -k from below, at every alpha
        exponents = (0.01, 0.99) if isinstance(self.alpha, Parameter) else (float(self.alpha),)
        return -bound(min(math.pow(depth, exponent) for exponent in exponents))

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()
        if isinstance(self.alpha, Parameter):
            yield self.alpha.name, Role.ALPHA

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        base = notation.group(self.kernel.written(notation, negated=True))
        return True, notation.power(base, notation.exponent(self.alpha))


@dataclass(frozen=True)
class Log(CPD):
    """``-log(1 - kernel)``, kernel <= 0."""

    kernel: CPD

    def __post_init__(self) -> None:
        _not_positive(self.kernel, "-log(1 - k)")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return -torch.log1p(-self.kernel(distance, parameters))

    @property
    def upper(self) -> Bound:
        return -bound(math.log1p(rounded(-self.kernel.upper)))

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        *others, last = terms_of(self.kernel)
        joined = isinstance(last, Constant)  # the number at its end joins the 1 of 1 - k
        one = float(1 - last.exact) if isinstance(last, Constant) else 1.0
        parts = [term.magnitude(notation) for term in (others if joined else (*others, last))]
        return True, notation.call("log", notation.minus(notation.number(one), parts))


@dataclass(frozen=True)
class Exp(PD):
    """``exp(kernel)``."""

    kernel: CPD

    def __post_init__(self) -> None:
        all_cpd((self.kernel,), "exp(k) is PD where k is CPD (Schoenberg)")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(self.kernel(distance, parameters))

    @property
    def upper(self) -> Bound:
        try:
            return bound(math.exp(rounded(self.kernel.upper)))
        except OverflowError:
            return math.inf

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        return False, notation.call("exp", self.kernel.written(notation))


@dataclass(frozen=True)
class Product(PD):
    """``factors[0] * factors[1] * ...``, all PD."""

    factors: tuple[CPD, ...]

    def __post_init__(self) -> None:
        if len(self.factors) < 2:
            raise ClosureError("a product has at least two factors")
        all_pd(self.factors, "a product is taken of PD kernels, such as exp(k)")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        out = self.factors[0](distance, parameters)
        for factor in self.factors[1:]:
            out = out * factor(distance, parameters)
        return out

    @property
    def upper(self) -> Bound:
        return math.prod((factor.upper for factor in self.factors), start=Fraction(1))

    def uses(self) -> Iterator[tuple[str, Role]]:
        for factor in self.factors:
            yield from factor.uses()

    def magnitude(self, notation: Notation) -> tuple[bool, str]:
        return False, notation.times.join(factor.magnitude(notation)[1] for factor in self.factors)


def power(exponent: Exponent = 1.0, rate: Factor = 1.0) -> CPD:
    """``-(rate D)^exponent``; at exponent 1 the rate is a scale."""
    if exponent == 1:
        return scaled(rate, Power(1.0))
    return Power(exponent, Scale.of(rate))


def constant(value: float | Fraction) -> CPD:
    """The kernel that is ``value`` at every distance."""
    number = rounded(value)
    cls = PDConstant if value >= 0 else Constant
    return cls(number, exact(value)) if math.isfinite(number) else cls(number)


@overload
def scaled(scale: Factor, kernel: PD) -> PD: ...
@overload
def scaled(scale: Factor, kernel: CPD) -> CPD: ...
def scaled(scale: Factor, kernel: CPD) -> CPD:
    """``scale * kernel``; a scale of a scale is one, and 1 is none."""
    factor = Scale.of(scale)
    if isinstance(kernel, Scaled):
        factor, kernel = factor * kernel.scale, kernel.kernel
    if factor == ONE:
        return kernel
    if isinstance(kernel, Constant):
        if factor.names:
            raise ClosureError("a parameter alone is a constant: constants are numbers")
        return constant(exact(factor.coefficient) * kernel.exact)
    return PDScaled(factor, kernel) if isinstance(kernel, PD) else Scaled(factor, kernel)


def add(*kernels: CPD) -> CPD:
    """The sum; sums within are opened and numbers put together at the end."""
    terms: list[CPD] = []
    number = Fraction(0)
    for kernel in kernels:
        for term in terms_of(kernel):
            if isinstance(term, Constant):
                number += term.exact
            else:
                terms.append(term)
    if number or not terms:
        terms.append(constant(number))
    if len(terms) == 1:
        return terms[0]
    cls = PDSum if all(isinstance(term, PD) for term in terms) else Sum
    return cls(tuple(terms))


def log_of(value: CPD) -> CPD:
    """``-log(v)`` for v = minus the kernel ``value``, where v is at least some c > 0 at every distance.

    From c = 1 on it is ``-log(1 - k)`` of k = 1 - v; below, ``-log(v) = -log(c) - log(1 + (v - c) / c)``.
    """
    c = -value.upper
    if isinstance(c, Fraction) and 0 < c < 1:
        rest = scaled(1 / c, add(value, constant(c)))
        return add(log(rest), constant(-math.log(c)))
    return log(add(value, constant(1)))


def product(*kernels: CPD) -> PD:
    """The product of PD kernels; products within are opened and scales put in front."""
    all_pd(kernels, "a product is taken of PD kernels, such as exp(k)")
    factors: list[CPD] = []
    scale = ONE
    for kernel in kernels:
        if isinstance(kernel, Scaled):
            scale, kernel = scale * kernel.scale, kernel.kernel  # noqa: PLW2901 - what is left of it
        if isinstance(kernel, Constant):
            scale = scale * Scale(kernel.value)
        else:
            factors += kernel.factors if isinstance(kernel, Product) else (kernel,)
    if not factors:
        return PDConstant(scale.coefficient)
    whole = factors[0] if len(factors) == 1 else Product(tuple(factors))
    assert isinstance(whole, PD)
    return scaled(scale, whole)


def root(kernel: CPD, alpha: Exponent) -> CPD:
    """``-(-kernel)^alpha``; of ``-a D`` it is the base kernel ``-(a D)^alpha``, alpha up to 2."""
    rate, base = (kernel.scale, kernel.kernel) if isinstance(kernel, Scaled) else (ONE, kernel)
    if base == Power(1.0):
        return power(alpha, rate)
    made = Root(kernel, alpha)
    if isinstance(kernel, Constant):
        if isinstance(alpha, Parameter):
            raise ClosureError("a parameter alone is a constant: constants are numbers")
        return constant(-((-kernel.value) ** float(alpha)))
    return made


def log(kernel: CPD) -> CPD:
    """``-log(1 - kernel)``."""
    made = Log(kernel)
    return constant(-math.log1p(-kernel.value)) if isinstance(kernel, Constant) else made


def exp(kernel: CPD) -> PD:
    """``exp(kernel)``."""
    made = Exp(kernel)
    if not isinstance(kernel, Constant):
        return made
    return PDConstant(float(made.upper))
