"""Schemes against a reference on the same targets: difference, interval, tests, verdict.

Differences are model - reference, in nats per target of the cells' ``nll`` (a tool's protocol: that tool's
number): above zero the model is worse.
exp(difference) - 1 is the change of perplexity. One model a side: the claim is about these two models,
and text is what varies (interval over documents, sign-flip permutation). Two seeds or more that both
sides have: the claim is about the schemes, seeds and text vary (the crossed interval and its t-test;
the paper's paired t-test of perplexities over seeds beside it, with its dagger). Holm's correction runs
over all comparisons of a table, for the two kinds of p apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kerple_eval.records.reductions import perplexity
from kerple_eval.stats.documents import Scored, different_targets, effective_documents
from kerple_eval.stats.groups import Group, SchemeTable, find_group
from kerple_eval.stats.intervals import (
    Interval,
    coverage_note,
    ratio_interval,
    shortage,
)
from kerple_eval.stats.seeds import Crossed, Spread, crossed, spread
from kerple_eval.stats.significance import (
    ALPHA,
    FLIPS,
    SeedTest,
    dagger,
    effect_size,
    exact,
    holm,
    least_p,
    seed_test,
    sign_flip_p,
)

#: Nats per target: a difference whose interval lies within it is one of rounding.
ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: mean and spread over the seeds used; ``ppl`` None beyond a float."""

    nll: Spread
    ppl: Spread | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model, or several seeds of one, against the reference at one length.

    ``reason`` says why there is no difference at all, or no interval and test; the fields it concerns
    are None. ``difference`` is the pooled interval where ``pooled`` is there, else the one over documents.
    """

    model: str
    reference: str
    length: int
    seeds: tuple[int, ...] = ()  # those compared pairwise; empty where each side is one model or unpaired
    documents: int | None = None
    targets: int | None = None
    targets_hash: str | None = None
    side: Side | None = None
    other: Side | None = None
    mean_difference: float | None = None
    difference: Interval | None = None
    over_documents: Interval | None = None
    bootstrap: Interval | None = None
    pooled: Crossed | None = None
    effect: float | None = None
    worse_on: int | None = None  # documents
    p_documents: float | None = None
    p_pooled: float | None = None
    over_seeds: SeedTest | None = None
    p_corrected: float | None = None
    p_seeds_corrected: float | None = None
    family: int | None = None  # comparisons that p_corrected is corrected for
    note: str | None = None
    reason: str | None = None

    @property
    def p(self) -> float | None:
        """The p of the verdict, uncorrected: pooled over seeds and documents, or over documents."""
        return self.p_documents if self.p_pooled is None else self.p_pooled

    @property
    def dagger(self) -> bool:
        """The paper's mark: the model is significantly worse than the reference over seeds."""
        return dagger(self.over_seeds)

    @property
    def most(self) -> float:
        """How many comparisons the signs can serve: so many times the least p is below 0.05."""
        if self.p_pooled is not None or self.documents is None:
            return math.inf
        return math.ceil(ALPHA / least_p(self.documents)) - 1

    @property
    def verdict(self) -> str:
        if self.difference is None or self.p_corrected is None:
            return self.reason or ""
        if max(-self.difference.low, self.difference.high) <= ROUNDING:
            return "equal: perplexity within 0.001 %"
        low, high = (change_of_perplexity(end) for end in (self.difference.low, self.difference.high))
        if self.p_corrected >= ALPHA and (self.family or 0) > self.most:
            few = exact(self.documents or 0)
            what = (
                f"not enough documents: {self.documents}" if few else f"too many comparisons: {FLIPS} flips"
            )
            return (
                f"{what} allow {self.most or 'no'} comparison{'s' * (self.most != 1)}, not {self.family}; "
                f"perplexity {low} to {high}"
            )
        if self.p_corrected >= ALPHA:
            return f"no difference shown: perplexity {low} to {high}"
        word = "worse" if self.difference.estimate > 0 else "better"
        return f"{word}: perplexity {change_of_perplexity(self.difference.estimate)} ({low} to {high})"


def change_of_perplexity(nats: float) -> str:
    """``+1.3 %``, or ``x 2.47`` from a doubling on."""
    ratio = perplexity(nats)
    if ratio is None:
        return f"x e^{nats:.0f}"
    if ratio >= 2:
        return f"x {ratio:.3g}"
    change = 100 * (ratio - 1)
    return f"{change:+z.{2 if abs(change) < 1 else 1}f} %"


def compare(table: SchemeTable, against: str, *, level: float = 0.95, seed: int = 0) -> list[Comparison]:
    """Every group of a table against one, by length; ``seed`` is the bootstrap's and the permutation's."""
    _, reference = find_group([table], against)
    found = [
        compare_groups(group, reference, length, level=level, seed=seed)
        for length in table.lengths
        for group in table.groups
        if group is not reference and group.at(length)
    ]
    return corrected(found)


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Holm's correction over the comparisons that have a p."""
    main = [i for i, c in enumerate(found) if c.p is not None]
    adjusted = dict(zip(main, holm([found[i].p or 0.0 for i in main]), strict=True))
    seeded = {i: c.over_seeds.p for i, c in enumerate(found) if c.over_seeds is not None}
    seeds = dict(zip(seeded, holm(list(seeded.values())), strict=True))
    return [
        replace(c, p_corrected=adjusted.get(i), p_seeds_corrected=seeds.get(i), family=len(main) or None)
        for i, c in enumerate(found)
    ]


def compare_groups(
    group: Group, reference: Group, length: int, *, level: float = 0.95, seed: int = 0
) -> Comparison:
    """One comparison, uncorrected."""
    blank = Comparison(group.name, reference.name, length)
    first, second, seeds = _matched(group, reference, length)
    if not second:
        return replace(blank, reason=f"{reference.name} has no finished cell at {length}")
    for cell in [*first, *second]:
        if why := different_targets(cell, second[0]):
            return replace(blank, reason=why)
    counts = second[0].sums.counts
    n = len(counts)
    first_sums, second_sums = (np.stack([c.sums.sums for c in cells]) for cells in (first, second))
    sums = first_sums.mean(axis=0) - second_sums.mean(axis=0)
    known = replace(
        blank, seeds=seeds, documents=n, targets=second[0].targets, targets_hash=second[0].targets_hash,
        side=_side(first), other=_side(second), mean_difference=float(sums.sum() / counts.sum()),
        worse_on=int((sums > 0).sum()), over_seeds=_over_seeds(first, second) if seeds else None,
    )  # fmt: skip
    if why := shortage(counts):
        return replace(known, reason=why)
    over_documents = ratio_interval(sums, counts, level=level)
    pooled = crossed(first_sums - second_sums, counts, level=level) if len(seeds) > 1 else None
    return replace(
        known,
        difference=pooled.interval if pooled else over_documents,
        over_documents=over_documents,
        bootstrap=ratio_interval(sums, counts, level=level, method="bootstrap", seed=seed),
        pooled=pooled,
        p_pooled=_two_sided(pooled.interval) if pooled else None,
        effect=effect_size(sums, counts),
        p_documents=sign_flip_p(sums, seed=seed),
        note=_note(n, effective_documents(counts), level, max(len(first), len(second)) > 1 and not seeds),
    )


def _note(documents: int, effective: float, level: float, unpaired: bool) -> str | None:
    notes = [coverage_note(documents, effective, level)]
    if unpaired:
        notes.append("fewer than two seeds in common: of the means of these very models, over documents")
    return "; ".join(note for note in notes if note) or None


def _matched(
    group: Group, reference: Group, length: int
) -> tuple[list[Scored], list[Scored], tuple[int, ...]]:
    """Cells of both sides, seed by seed where both are of several seeds and share two or more."""
    first, second = group.at(length), reference.at(length)
    if len(first) > 1 and len(second) > 1:
        first_by_seed, second_by_seed = ({c.seed: c for c in cells} for cells in (first, second))
        shared = tuple(sorted(s for s in first_by_seed if s is not None and s in second_by_seed))
        if len(shared) > 1:
            return [first_by_seed[s] for s in shared], [second_by_seed[s] for s in shared], shared
    return first, second, ()


def _side(cells: Sequence[Scored]) -> Side:
    losses = [cell.sums.mean for cell in cells]
    powers = [perplexity(loss) for loss in losses]
    known = [p for p in powers if p is not None]
    return Side(spread(losses), spread(known) if len(known) == len(powers) else None)


def _over_seeds(first: Sequence[Scored], second: Sequence[Scored]) -> SeedTest | None:
    """The paper's test: perplexities paired by seed; None where one exceeds the largest float."""
    pairs = [[perplexity(cell.sums.mean) for cell in cells] for cells in (first, second)]
    numbers = [[value for value in side if value is not None] for side in pairs]
    if [len(side) for side in numbers] != [len(first), len(second)]:
        return None
    return seed_test(*numbers)


def _two_sided(interval: Interval) -> float:
    """p of zero difference from an interval's t."""
    from scipy.special import stdtr  # noqa: PLC0415

    if not interval.error or interval.freedom is None:
        return float(interval.estimate == 0)
    return float(2 * stdtr(interval.freedom, -math.fabs(interval.estimate) / interval.error))
