"""The kinds of kernel, one class a rule of ``algebra``; each refuses to be built outside its rule.

D ``[n]``, parameters ``[H, 1]``; a kernel of no parameter answers ``[n]``, any other ``[H, n]``.
``algebra`` has the functions that build them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kerple_eval.kernels.basic import positive_power
from kerple_eval.kernels.expression import CPD, PD
from kerple_eval.kernels.parameters import ONE, ClosureError, Exponent, Parameter, Role, Scale, exponent_value


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
        reach = f"{kernel.upper:g}" if math.isfinite(kernel.upper) else "any positive number"
        raise ClosureError(f"{rule} needs k <= 0, and k = {kernel} can reach {reach} at D = 0")


@dataclass(frozen=True)
class Power(CPD):
    """``-(rate D)^exponent``; a parameter as exponent is kept within [0.01, 2]."""

    exponent: Exponent
    rate: Scale = ONE

    def __post_init__(self) -> None:
        if not isinstance(self.exponent, Parameter) and not 0 < self.exponent <= 2:
            raise ClosureError(f"-D**p is CPD for 0 < p <= 2 only, got p = {self.exponent:.12g}")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        base = distance if self.rate == ONE else self.rate.value(parameters) * distance
        if self.exponent == 1:
            return -base
        return -positive_power(base, exponent_value(self.exponent, parameters))

    @property
    def upper(self) -> float:
        return 0.0

    def uses(self) -> Iterator[tuple[str, Role]]:
        if isinstance(self.exponent, Parameter):
            yield self.exponent.name, Role.EXPONENT
        yield from ((name, Role.SCALE) for name in self.rate.names)


@dataclass(frozen=True)
class Constant(CPD):
    """The same number at every distance; softmax does not see it, ``log(1 - k)`` does."""

    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ClosureError(f"a constant must be finite, got {self.value}")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.full_like(distance, self.value)

    @property
    def upper(self) -> float:
        return self.value

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from ()


class PDConstant(Constant, PD):
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value < 0:
            raise ClosureError(f"a constant is PD from 0 on, got {self.value:g}")


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
    def upper(self) -> float:
        if not self.scale.names:
            return self.scale.coefficient * self.kernel.upper
        return 0.0 if self.kernel.upper <= 0 else math.inf

    def uses(self) -> Iterator[tuple[str, Role]]:
        role = Role.LOG_SCALE if isinstance(self.kernel, Log) else Role.SCALE
        yield from ((name, role) for name in self.scale.up)
        yield from ((name, Role.SCALE) for name in self.scale.down)
        yield from self.kernel.uses()


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
    def upper(self) -> float:
        return sum(term.upper for term in self.terms)

    def uses(self) -> Iterator[tuple[str, Role]]:
        for term in self.terms:
            yield from term.uses()


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
        if not isinstance(self.alpha, Parameter) and not 0 < self.alpha < 1:
            raise ClosureError(f"-(-k)**alpha is CPD for 0 < alpha < 1, got alpha = {self.alpha:.12g}")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return -positive_power(-self.kernel(distance, parameters), exponent_value(self.alpha, parameters))

    @property
    def upper(self) -> float:
        depth = -self.kernel.upper  # a bound of -k from below, at every alpha
        exponents = (0.01, 0.99) if isinstance(self.alpha, Parameter) else (self.alpha,)
        return -min(math.pow(depth, exponent) for exponent in exponents)

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()
        if isinstance(self.alpha, Parameter):
            yield self.alpha.name, Role.ALPHA


@dataclass(frozen=True)
class Log(CPD):
    """``-log(1 - kernel)``, kernel <= 0."""

    kernel: CPD

    def __post_init__(self) -> None:
        _not_positive(self.kernel, "-log(1 - k)")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return -torch.log1p(-self.kernel(distance, parameters))

    @property
    def upper(self) -> float:
        return -math.log1p(-self.kernel.upper)

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()


@dataclass(frozen=True)
class Exp(PD):
    """``exp(kernel)``."""

    kernel: CPD

    def __post_init__(self) -> None:
        all_cpd((self.kernel,), "exp(k) is PD where k is CPD (Schoenberg)")

    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(self.kernel(distance, parameters))

    @property
    def upper(self) -> float:
        try:
            return math.exp(self.kernel.upper)
        except OverflowError:
            return math.inf

    def uses(self) -> Iterator[tuple[str, Role]]:
        yield from self.kernel.uses()


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
    def upper(self) -> float:
        return math.prod(factor.upper for factor in self.factors)

    def uses(self) -> Iterator[tuple[str, Role]]:
        for factor in self.factors:
            yield from factor.uses()
