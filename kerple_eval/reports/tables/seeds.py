"""Rows of one scheme at several training seeds as one: mean and standard deviation, as the paper has them.

Models belong together as in :mod:`kerple_eval.stats.groups`: where the specification tells them apart by
seed and weights alone, and their labels by no more than a number at the end. The standard deviation is
the sample's (n - 1). A dagger marks a scheme that the reference beats: paired two-sided t-test over the
seeds that both have, p < 0.05 (KERPLE, Table 3), on the same targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kerple_eval.reports.grid import Grid, GridEntry
from kerple_eval.stats.groups import group_seeds
from kerple_eval.stats.seeds import Spread, spread
from kerple_eval.stats.significance import dagger, seed_test
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


@dataclass
class Family:
    """Models that differ by seed alone: length -> seed -> the cell."""

    label: str
    models: list[str]
    cells: dict[int, dict[int | None, GridEntry]] = field(default_factory=dict)

    def values(self, length: int, value: str) -> dict[int | None, float]:
        """Seed -> number, of finished cells."""
        found = self.cells.get(length, {})
        return {seed: e.row[value] for seed, e in found.items() if e.ok and e.row[value] is not None}

    def spread(self, length: int, value: str) -> Spread | None:
        """Mean and sample standard deviation over seeds; None without a number."""
        numbers = list(self.values(length, value).values())
        return spread(numbers) if numbers else None


def families(grid: Grid) -> tuple[list[Family], list[str]]:
    """Families of a grid, which may be of one seed each, and what keeps others apart in words."""
    seeds = {model: entry.row["seed"] for (model, _), entry in grid.entries.items()}
    grouped = group_seeds([(model, grid.identities[model], seeds[model]) for model in grid.models])
    found = []
    for label, models in grouped.groups.items():
        cells: dict[int, dict[int | None, GridEntry]] = {}
        for model in models:
            for length in grid.lengths:
                if (entry := grid.entries.get((model, length))) is not None:
                    cells.setdefault(length, {})[seeds[model]] = entry
        found.append(Family(label, models, cells))
    return found, grouped.apart


def families_of_seeds(grid: Grid) -> tuple[list[Family], list[str]]:
    """As :func:`families`; refused where no scheme has two seeds."""
    found, apart = families(grid)
    if all(len(family.models) == 1 for family in found):
        reasons = "".join(f"; {reason}" for reason in apart)
        raise UserError(
            f"{grid.task}, {grid.protocol}: one seed of each scheme; --over-seeds needs two or more of one"
            + reasons
        )
    return found, apart


def fewer_seeds(grid: Grid, members: Sequence[Family], value: str) -> str | None:
    """Which means are over some of a family's seeds alone; None where none is."""
    found = [
        f"{family.label} at {length}: {own.seeds} of {len(family.models)} seeds"
        for family in members
        for length in grid.lengths
        if (own := family.spread(length, value)) is not None and own.seeds < len(family.models)
    ]
    return f"means over fewer seeds: {'; '.join(found)}" if found else None


def choose_reference(members: Sequence[Family], name: str | None) -> Family | None:
    """The family that daggers are against: the one named, else kerple-log where it is there."""
    known: Mapping[str, Family] = {family.label: family for family in members}
    if name is None:
        return known.get("kerple-log")
    if name not in known:
        raise unknown("reference", name, known)
    return known[name]


def significantly_worse(family: Family, reference: Family, length: int, value: str) -> bool:
    """Whether ``reference`` beats ``family`` at a length by the paper's test."""
    own_values, reference_values = family.values(length, value), reference.values(length, value)
    seeds = sorted(s for s in own_values.keys() & reference_values.keys() if s is not None)
    if family is reference or len(seeds) < 2:
        return False
    a, b = (np.array([v[s] for s in seeds]) for v in (own_values, reference_values))
    hashes = {f.cells[length][s].row["targets_hash"] for f in (family, reference) for s in seeds}
    if len(hashes) > 1 or bool(np.all(a - b == a[0] - b[0])):
        return False
    return dagger(seed_test(a.tolist(), b.tolist()))
