"""The results in words: how each model's perplexity at longer lengths compares with its own best.

The best is the lowest value at a length up to the trained one; where no such length was scored, the value
at the shortest. Seeds of one scheme are spoken of by their mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from kerple_eval.reports.grid import VALUES, Grid
from kerple_eval.reports.tables.seeds import Family, families
from kerple_eval.reports.words import listing, short

#: From this ratio on a model is said to have lost what it had.
TWICE = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One model or scheme: ``ratios`` by length, beyond the length (or lengths) of its best."""

    label: str
    base: str  # what the ratios are to, in words
    ratios: dict[int, float]

    @property
    def doubled_from(self) -> int | None:
        """The first length from which on every ratio is at least 2."""
        found = None
        for length in sorted(self.ratios, reverse=True):
            if self.ratios[length] < TWICE:
                break
            found = length
        return found


def findings(grid: Grid) -> list[Finding]:
    """Of every model or scheme of a grid that has finished cells at two lengths or more."""
    value = grid.values()[0]
    found = (_finding(grid, family, value) for family in families(grid)[0])
    return [finding for finding in found if finding is not None]


def _finding(grid: Grid, family: Family, value: str) -> Finding | None:
    spreads = {length: family.spread(length, value) for length in grid.lengths}
    means = {length: spread.mean for length, spread in spreads.items() if spread is not None}
    if not means:
        return None
    trained, shortest = grid.trained(family.models[0]), min(means)
    within = [length for length in means if trained is not None and length <= trained]
    best = min((means[length] for length in within), default=means[shortest])
    beyond = [length for length in means if length > max(within, default=shortest)]
    if not beyond or best <= 0:
        return None
    base = f"its best up to {trained:,}" if within else f"its own at {shortest:,}"
    return Finding(family.label, base, {length: means[length] / best for length in beyond})


def in_words(grid: Grid) -> str | None:
    """One paragraph, computed from the numbers of the table; None where there is nothing to compare."""
    found = findings(grid)
    if not found:
        return None
    unit = grid.values()[0]
    value, verb = VALUES[unit], "is" if unit == "ppl" else "are"
    sentences = []
    for base in dict.fromkeys(finding.base for finding in found):
        alike = [finding for finding in found if finding.base == base]
        kept = [finding for finding in alike if finding.doubled_from is None]
        for longest in dict.fromkeys(max(finding.ratios) for finding in kept):
            first, *others = [f for f in kept if max(f.ratios) == longest]
            parts = [f"{first.label}'s {value} {verb} {ratio(first.ratios[longest])} times {base}"]
            parts += [f"{f.label}'s {ratio(f.ratios[longest])}" for f in others]
            sentences.append(f"at {longest:,}, {listing(parts)}")
        lost: dict[int, list[str]] = {}
        for finding in alike:
            if finding.doubled_from is not None:
                lost.setdefault(finding.doubled_from, []).append(f"{finding.label}'s")
        parts = [f"from {length:,} on, {listing(labels)}" for length, labels in sorted(lost.items())]
        if parts:
            sentences.append("; ".join([f"{parts[0]} {value} {verb} at least twice {base}", *parts[1:]]))
    if grid.differs_between_lengths():
        sentences.append("the targets differ between lengths, so these ratios are of text too")
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def ratio(value: float) -> str:
    """Two decimals; from 10 on four significant digits."""
    return f"{value:.2f}" if value < 10 else short(value)
