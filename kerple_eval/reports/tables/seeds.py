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

from kerple_eval.reports.grid import Entry, Grid
from kerple_eval.stats.groups import stem
from kerple_eval.stats.seeds import Spread, spread
from kerple_eval.stats.significance import dagger, seed_test
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


@dataclass
class Family:
    """Models that differ by seed alone: length -> seed -> the cell."""

    label: str
    models: list[str]
    cells: dict[int, dict[int | None, Entry]] = field(default_factory=dict)

    def values(self, length: int, value: str) -> dict[int | None, float]:
        """Seed -> number, of finished cells."""
        found = self.cells.get(length, {})
        return {seed: e.row[value] for seed, e in found.items() if e.ok and e.row[value] is not None}

    def spread(self, length: int, value: str) -> Spread | None:
        """Mean and sample standard deviation over seeds; None without a number."""
        numbers = list(self.values(length, value).values())
        return spread(numbers) if numbers else None


def families(grid: Grid) -> list[Family]:
    """Families of a grid in the order of their first models; one seed in all of them is refused."""
    found = gathered(grid)
    if all(len(family.models) == 1 for family in found):
        raise UserError(
            f"{grid.task}, {grid.protocol}: one seed of each scheme; --over-seeds needs two or more of one"
        )
    return found


def gathered(grid: Grid) -> list[Family]:
    """Families of a grid, which may be of one seed each."""
    found: dict[str, Family] = {}
    for model in grid.models:
        name = stem(model)
        family = found.setdefault(f"{name} {grid.kinds[model]}", Family(name, []))
        family.models.append(model)
        for length in grid.lengths:
            entry = grid.entries.get((model, length))
            if entry is None:
                continue
            seed = entry.row["seed"]
            if seed is None and len(family.models) > 1:
                raise UserError(f"{model} has no recorded seed, so it is no seed of {family.label}")
            held = family.cells.setdefault(length, {})
            if seed in held:
                raise UserError(f"{family.label} has seed {seed} twice ({', '.join(family.models)})")
            held[seed] = entry
    _tell_apart(list(found.values()))
    return list(found.values())


def _tell_apart(members: Sequence[Family]) -> None:
    labels = [family.label for family in members]
    for family, label in zip(members, labels, strict=True):
        if labels.count(label) > 1:
            family.label = f"{label} ({family.models[0]})"


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
    ours, theirs = family.values(length, value), reference.values(length, value)
    seeds = sorted(s for s in ours.keys() & theirs.keys() if s is not None)
    if family is reference or len(seeds) < 2:
        return False
    a, b = (np.array([v[s] for s in seeds]) for v in (ours, theirs))
    hashes = {f.cells[length][s].row["targets_hash"] for f in (family, reference) for s in seeds}
    if len(hashes) > 1 or bool(np.all(a - b == a[0] - b[0])):
        return False
    return dagger(seed_test(a.tolist(), b.tolist()))
