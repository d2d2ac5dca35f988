"""When to stop adding documents: a fixed number of looks, each at a corrected level.

A run with ``--precision`` looks at its losses after 10, 20, 40, ... documents and at last after all of
the budget: K looks, settled before the first. Each look takes the interval over documents (or of the
paired difference to a reference) at level 1 - 0.05/K, and the run stops at the first where every one is
as narrow as asked. The chance that any of a cell's K intervals misses is at most the sum of their
chances (Bonferroni), so the interval at the stop covers 95 % however the stop was decided; looking
without the correction and stopping when the estimate of the spread happens to be small would not.
Simulated in results/statistics. A precision of 0.005 (0.5 %) asks that perplexity, or its ratio to the
reference's, be known within a factor of 1.005 either way: half width <= ln 1.005 nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from kerple_eval.stats.documents import DocumentSums
from kerple_eval.stats.intervals import Interval, ratio_interval, shortage
from kerple_eval.types import UserError

#: Documents at the first look: fewer say too little of their own spread.
FIRST_LOOK = 10
LEVEL = 0.95

_PERCENT = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)\s*(?P<percent>%?)")


def parse_percent(text: object, option: str) -> float:
    """``0.5%`` -> 0.005; a share without the sign is refused, since 0.5 could mean either."""
    match = _PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    value = float(match["number"]) if match else 0.0
    if match is None or not match["percent"] or not 0 < value < 100:
        raise UserError(f"{option} {text}: expected a share of perplexity in percent, as in 0.5%")
    return value / 100


def schedule(budget: int, first: int = FIRST_LOOK) -> tuple[int, ...]:
    """Documents at each look: ``first``, doubling, and the budget.

    A last step that would add less than half of what is there is left out in favour of the budget.

    Raises:
        UserError: the budget is below the first look.
    """
    if budget < first:
        raise UserError(
            f"--precision needs {first} documents for a first look, and there are {budget}; "
            "add text or leave --precision out"
        )
    looks = [first]
    while 2 * looks[-1] <= budget / 1.5:
        looks.append(2 * looks[-1])
    return (*looks, budget) if looks[-1] < budget else tuple(looks)


def look_level(looks: int, level: float = LEVEL) -> float:
    """The level of each of ``looks`` intervals for all to hold together with ``level``."""
    return 1 - (1 - level) / looks


def half_width(precision: float) -> float:
    """Of an interval of the mean loss, in nats, that pins perplexity down to the factor 1 + precision."""
    return math.log1p(precision)


Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Look(Generic[Name]):
    """One look: the intervals by the cells' names, the widest, and whether all are narrow enough."""

    documents: int
    intervals: dict[Name, Interval]
    wanted: float  # half width, nats
    lacking: tuple[Name, ...] = ()  # cells with fewer documents than a first look, or too uneven ones

    @property
    def widest(self) -> Name:
        return max(self.intervals, key=lambda name: self.intervals[name].half_width)

    @property
    def sure(self) -> bool:
        """Whether to stop; never with nothing to look at."""
        return (
            bool(self.intervals)
            and not self.lacking
            and self.intervals[self.widest].half_width <= self.wanted
        )


def look(
    cells: Mapping[Name, DocumentSums],
    names: Sequence[str],
    *,
    precision: float,
    looks: int,
    references: Mapping[Name, DocumentSums] | None = None,
) -> Look[Name]:
    """Intervals over the documents ``names`` of each cell, or of its difference to its reference."""
    level = look_level(looks)
    found, lacking = {}, []
    for name, whole in cells.items():
        own = whole.only(names)
        if len(own) < FIRST_LOOK or shortage(own.counts):
            lacking.append(name)
            continue
        sums = own.sums
        if references is not None:
            other = references[name].only(names)
            if other.names != own.names or not np.array_equal(other.counts, own.counts):
                raise UserError(
                    f"{name}: its targets differ from its reference's, so there is no paired difference"
                )
            sums = sums - other.sums
        found[name] = ratio_interval(sums, own.counts, level=level)
    return Look(len(names), found, half_width(precision), tuple(lacking))
