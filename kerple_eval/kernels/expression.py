"""What every kernel of the algebra is and can do; its kinds are in ``nodes``, its rules in ``algebra``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import overload

from torch import Tensor

from kerple_eval.kernels.parameters import ClosureError, Parameter, Range, Role, Scale, ranges

Factor = Scale | Parameter | float


class CPD(ABC):
    """A conditionally positive definite kernel of distance."""

    @abstractmethod
    def __call__(self, distance: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """D ``[n]`` and parameters ``[H, 1]`` -> ``[H, n]`` (``[n]`` without parameters), D's dtype."""

    @property
    @abstractmethod
    def upper(self) -> float:
        """A bound of the kernel from above, whatever its parameters: that of its value at D = 0."""

    @abstractmethod
    def uses(self) -> Iterator[tuple[str, Role]]:
        """Every place a parameter stands in."""

    @property
    def parameters(self) -> dict[str, Range]:
        """Names in order, with interval and initial draw."""
        return ranges(self.uses())

    def bind(self, values: Mapping[str, float]) -> Callable[[Tensor], Tensor]:
        """The function of distance at these parameters, for ``is_cpd`` and plots."""
        return lambda distance: self(distance, {k: distance.new_tensor(v) for k, v in values.items()})

    def __add__(self, other: CPD | float) -> CPD:
        from kerple_eval.kernels.algebra import add, constant  # noqa: PLC0415 - builds on this module

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
        from kerple_eval.kernels.algebra import product, scaled  # noqa: PLC0415 - builds on this module

        return product(self, other) if isinstance(other, CPD) else scaled(other, self)

    __rmul__ = __mul__

    def __truediv__(self, other: Factor) -> CPD:
        if isinstance(other, CPD):
            raise ClosureError("a quotient of kernels leaves the closure; 1/(1 - k) is exp(-log(1 - k))")
        return self * Scale.of(other).inverse()

    def __str__(self) -> str:
        """The formula, as :func:`kerple_eval.kernels.parsing.parse_kernel` reads it."""
        from kerple_eval.kernels.printing import text  # noqa: PLC0415 - builds on this module

        return text(self)

    def latex(self) -> str:
        from kerple_eval.kernels.printing import latex  # noqa: PLC0415 - builds on this module

        return latex(self)


class PD(CPD):
    """A positive definite kernel of distance."""

    @overload
    def __add__(self, other: PD) -> PD: ...
    @overload
    def __add__(self, other: CPD | float) -> CPD: ...
    def __add__(self, other: CPD | float) -> CPD:
        return super().__add__(other)
