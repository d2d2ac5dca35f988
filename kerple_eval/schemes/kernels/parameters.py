"""Parameters of a kernel: their names, where they may occur, and the interval and initial draw of each place.

Source of the intervals and starts: chijames/KERPLE, ``megatron/mpu/layers.py`` (``kerple_log``,
``kerple_power``). A parameter is one number per head. Its interval and draw follow from where it occurs:

| role | kept within | starts | example |
|---|---|---|---|
| scale of a logarithm | [0.01, inf) | U(0, 2) | r1 of ``-r1*log(1 + r2*D)`` |
| any other scale, also a divisor | [0.01, inf) | U(0, 1) | r2 there; r1 of ``-r1*D**r2`` |
| exponent of the distance | [0.01, 2] | U(0, 2) | r2 of ``-r1*D**r2`` |
| exponent alpha of ``-(-k)**alpha`` | [0.01, 0.99] | U(0, 1) | r1 of ``-log(1 + D)**r1`` |

In several roles at once: the intersection of the intervals, and of the ranges it starts in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import torch
from torch import Tensor

from kerple_eval.schemes.kernels.exact import rounded
from kerple_eval.types import UserError

NAME = re.compile(r"r[1-9][0-9]?")


class ClosureError(UserError, ValueError):
    """An expression that the closure rules do not build; says which rule it breaks."""


class Role(Enum):
    """Where a parameter occurs: (lowest, highest, start of its uniform draw, end of it)."""

    LOG_SCALE = (0.01, None, 0.0, 2.0)
    SCALE = (0.01, None, 0.0, 1.0)
    EXPONENT = (0.01, 2.0, 0.0, 2.0)
    ALPHA = (0.01, 0.99, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Range:
    """A parameter's closed interval (None: open) and the range of its uniform initial draw."""

    lowest: float
    highest: float | None
    start: float
    stop: float


def _number(name: str) -> int:
    return int(name[1:])


def ranges(uses: Iterable[tuple[str, Role]]) -> dict[str, Range]:
    """Each parameter's range, r1 before r2 before r10; several roles intersect."""
    roles: dict[str, set[Role]] = {}
    for name, role in uses:
        roles.setdefault(name, set()).add(role)
    found = {}
    for name in sorted(roles, key=_number):
        values = [role.value for role in roles[name]]
        tops = [highest for _, highest, _, _ in values if highest is not None]
        found[name] = Range(
            lowest=max(lowest for lowest, _, _, _ in values),
            highest=min(tops) if tops else None,
            start=max(start for _, _, start, _ in values),
            stop=min(stop for _, _, _, stop in values),
        )
    return found


@dataclass(frozen=True, slots=True)
class Parameter:
    """A learned number a head, ``r1`` .. ``r99``."""

    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ClosureError(f"a parameter is named r1, r2, ... r99, not {self.name!r}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Scale:
    """A positive factor: ``coefficient * up[0] * up[1] ... / down[0] / down[1] ...``, names in order."""

    coefficient: float = 1.0
    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.coefficient > 0 and math.isfinite(self.coefficient)):
            raise ClosureError(f"a scale must be positive and finite, got {self.coefficient:g}")
        for field in ("up", "down"):
            names = tuple(sorted(getattr(self, field), key=_number))
            object.__setattr__(self, field, names)

    @classmethod
    def of(cls, value: Scale | Parameter | float | Fraction) -> Scale:
        if isinstance(value, Scale):
            return value
        return cls(1.0, (value.name,)) if isinstance(value, Parameter) else cls(rounded(value))

    def __mul__(self, other: Scale) -> Scale:
        if not isinstance(other, Scale):
            return NotImplemented  # a kernel: its turn
        return Scale(self.coefficient * other.coefficient, self.up + other.up, self.down + other.down)

    def inverse(self) -> Scale:
        return Scale(1 / self.coefficient, self.down, self.up)

    @property
    def names(self) -> tuple[str, ...]:
        return self.up + self.down

    def value(self, parameters: Mapping[str, Tensor]) -> Tensor | float:
        out: Tensor | float = self.coefficient
        for name in self.up:
            out = parameters[name] if isinstance(out, float) and out == 1.0 else out * parameters[name]
        for name in self.down:
            out = out / parameters[name]
        return out


ONE = Scale()
Exponent = float | Fraction | Parameter


def exponent_value(exponent: Exponent, parameters: Mapping[str, Tensor]) -> Tensor | float:
    return parameters[exponent.name] if isinstance(exponent, Parameter) else float(exponent)


def draw(given: Mapping[str, Range], generator: torch.Generator) -> dict[str, float]:
    """One random value a parameter, from its initial draw put into its interval (as in training)."""
    values = {}
    for name, r in given.items():
        x = r.start + (r.stop - r.start) * float(torch.rand((), generator=generator, dtype=torch.float64))
        values[name] = min(max(x, r.lowest), math.inf if r.highest is None else r.highest)
    return values
