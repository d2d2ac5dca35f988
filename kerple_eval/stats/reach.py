"""How far a model holds, and how much context it uses: tests on paired losses. Imports no torch.

Lengths L1 < L2 < ... of one (model, task, protocol), scored on the same targets. Documents are the sampling
unit; m_j is the mean loss at L_j (nats per target) over documents like these, alpha the chance of a claim
too far (0.05).

*Holds to* the longest L_j up to which the loss stays within a margin of the best shorter length,

    m_j - min over i < j of m_i  <  ln(1 + margin).

Not holding is the hypothesis to be refuted (non-inferiority): it is refuted where m_j - m_i is shown to be
below the margin for every i < j, each by a one-sided test at alpha (an intersection-union test, Berger 1982:
the best shorter length need not be known, and no correction is due). Lengths are tested in order up to the
first failure, which keeps the chance of holding too far at alpha over all of them (a fixed sequence, Maurer
et al. 1995); by simulation (``ERRORS``) it is up to 0.07 of 100 even documents, and up to 0.1 of fewer or
uneven ones. At the failure either the loss is shown to have risen by more than the margin (Bonferroni over
i), or the documents do not suffice to say.

*Uses* the longest L_j whose gain over L_(j-1) is shown to be above zero, one-sided, by Holm's correction
over all lengths. The gain is over *aligned* targets: those with more than half of L_(j-1) as context at
L_(j-1), and more than that at L_j. Targets at the start of a window gain by any second length, also those of
a model that uses ten tokens; they would show nothing.

Of tasks with answers, RULER's threshold (Hsieh et al. 2024, arXiv 2404.06654): exact match above 85.6 %,
tested by the exact binomial test in the same fixed order; documents of each length are draws of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.answers import answers
from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import contexts
from kerple_eval.records.run import Run, own_label
from kerple_eval.stats.answers import Share, share
from kerple_eval.stats.documents import Counts, Sums, effective_documents
from kerple_eval.stats.intervals import Interval, ratio_interval, shortage
from kerple_eval.stats.significance import ALPHA, below_p, holm, upper_bound
from kerple_eval.support.registry import unknown
from kerple_eval.types import CellKey, UserError

MARGIN = 0.01  # of perplexity
RULER = 0.856  # exact match; Llama-2-7B's score at 4k

#: Documents -> how often in 100 a claim at 0.05 goes too far (lowest and highest of the worlds simulated, at
#: the edge of what may be claimed): results/statistics/reach.csv.
ERRORS = {5: (2, 8), 20: (4, 10), 100: (4, 9)}

Outcome = Literal["holds", "lost", "not enough documents"]


@dataclass(frozen=True, slots=True)
class Step:
    """One length tested against the best shorter one, or RULER's threshold.

    ``against``: the shorter length that decides; ``change``: nats per target from there, with its one-sided
    bounds; of answers ``exact`` matches of ``documents``.
    """

    length: int
    outcome: Outcome
    against: int | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    exact: int | None = None
    documents: int | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """What ``length`` gives over ``shorter`` on aligned targets: nats per target; p one-sided, and Holm's."""

    length: int
    shorter: int
    nats: Interval
    targets: int
    documents: int
    p: float
    p_holm: float = 1.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Of one (model, task, protocol) over its ``lengths``, which end before ``missing``, a length asked for
    that has no finished cell. ``short_of`` says why documents carry no test at all."""

    model: str
    task: str
    protocol: str
    lengths: tuple[int, ...]
    documents: int = 0
    targets: int = 0
    targets_hash: str | None = None
    effective: float = 0.0  # documents of one size that they are as good as
    steps: tuple[Step, ...] = ()
    gains: tuple[Gain, ...] = ()
    ruler: int | None = None  # of answers: the longest length above the threshold, untested
    missing: int | None = None
    short_of: str | None = None

    @property
    def of_answers(self) -> bool:
        return self.protocol == "answer"

    @property
    def holds_to(self) -> int | None:
        """The shortest length holds by itself, but for answers; None where nothing can be said."""
        held = [step.length for step in self.steps if step.outcome == "holds"]
        if self.short_of is not None or (self.of_answers and not held):
            return None
        return held[-1] if held else self.lengths[0]

    @property
    def holds_at_least(self) -> bool:
        """Whether the longest length asked for holds, so that it may be more."""
        return self.missing is None and self.holds_to == self.lengths[-1]

    @property
    def used(self) -> Gain | None:
        """The longest gain that is shown."""
        return next((gain for gain in reversed(self.gains) if gain.p_holm <= ALPHA), None)

    @property
    def uses_at_least(self) -> bool:
        return self.missing is None and self.used is not None and self.used.length == self.lengths[-1]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A (model, task, protocol) of which there is no answer, and why."""

    model: str
    task: str
    protocol: str
    why: str

    def __str__(self) -> str:
        return f"{self.model}, {self.task}, {self.protocol}: {self.why}"


@dataclass(frozen=True, slots=True)
class Reaches:
    """``left_out`` says of what there is no answer, and why."""

    found: list[Reach]
    left_out: list[LeftOut]


def read_reach(
    reader: RunReader, *, task: str | None = None, protocol: str | None = None, models: Sequence[str] = (),
    margin: float = MARGIN,
) -> Reaches:  # fmt: skip
    """Every (model, task, protocol) of the runs with two finished lengths of the same targets.

    Of ``models``, by label, where any are given.

    Raises:
        UserError: there is none, or no such model.
    """
    labels: dict[str, None] = {}
    found: list[Reach] = []
    left_out: list[LeftOut] = []
    owners: dict[tuple[str, str], dict[str, str]] = {}
    for run in reader.runs:
        groups: dict[tuple[str, str, str], list[CellKey]] = {}
        asked = run.keys()
        for key in asked:
            if task in (None, key.task) and protocol in (None, key.protocol):
                groups.setdefault((key.model, key.task, key.protocol), []).append(key)
        for (model, *_), keys in groups.items():
            label, where = model, (keys[0].task, keys[0].protocol)
            if any(reader.cell(run.folder, key) is not None for key in keys):
                label = own_label(model, run.folder, owners.setdefault(where, {}))
            labels[label] = None
            if models and label not in models:
                continue
            one = _reach(reader, run, label, sorted(keys, key=lambda k: k.length), margin)
            if isinstance(one, Reach):
                found.append(one)
            else:
                left_out.append(LeftOut(label, *where, one))
    for name in models:
        if name not in labels:
            raise unknown("model", name, labels)
    if not found:
        wanted = " of " + ", ".join(w for w in (task, protocol) if w) if task or protocol else ""
        raise UserError(f"{reader.names}: {left_out[0] if left_out else 'no finished cell' + wanted}")
    return Reaches(found, left_out)


def _reach(reader: RunReader, run: Run, label: str, keys: Sequence[CellKey], margin: float) -> Reach | str:
    """A string says why its lengths cannot be compared."""
    lengths: list[int] = []
    losses: list[tuple[int, Sums]] = []
    shares: list[tuple[int, Share]] = []
    gains: list[Gain] = []
    first = before = None
    missing = None
    for key in keys:
        cell = reader.cell(run.folder, key)
        if not isinstance(cell, Cell):
            missing = key.length
            break
        if cell.weights is not None:
            return (
                f"its number is another tool's ({cell.header.reduction}), and the tests are of the mean over "
                "targets"
            )
        lengths.append(key.length)
        if cell.hits is not None:
            shares.append((key.length, share(answers(cell))))
            continue
        now = _targets(cell)
        first = first or now
        if now.targets_hash != first.targets_hash:
            return (
                f"{lengths[0]} and {key.length} were scored on different targets; the protocols "
                "full-context, sliding-window and aligned score the same ones at every length"
            )
        losses.append((key.length, now.sums))
        gains += _gain(lengths[-2], before, key.length, now) if before else []
        before = now
    if len(lengths) < 2:
        found = f"no finished cell at {missing}, the shortest length"
        if lengths:
            found = f"one finished length, {lengths[0]}"
        return f"{found}, and two lengths are needed; run with --length 512,1024 or more"
    known = Reach(label, keys[0].task, keys[0].protocol, tuple(lengths), missing=missing)
    if first is None:
        passing = [length for length, found in shares if found.exact_match > RULER]
        return replace(
            known, documents=shares[0][1].documents, targets=shares[0][1].targets,
            steps=answers_hold(shares), ruler=max(passing, default=None),
        )  # fmt: skip
    known = replace(
        known, documents=len(first.counts), targets=int(first.counts.sum()),
        targets_hash=first.targets_hash, effective=effective_documents(first.counts),
    )  # fmt: skip
    if why := shortage(first.counts):
        return replace(known, short_of=why)
    adjusted = holm([gain.p for gain in gains])
    return replace(
        known,
        steps=losses_hold(losses, first.counts, margin),
        gains=tuple(replace(gain, p_holm=p) for gain, p in zip(gains, adjusted, strict=True)),
    )


def losses_hold(
    losses: Sequence[tuple[int, Sums]], counts: Counts | Sums, margin: float = MARGIN
) -> tuple[Step, ...]:
    """The lengths after the first, up to the first that is not shown to hold.

    ``losses``: (length, summed losses by document ``[n]``), shortest first; ``counts [n]``: targets.
    """
    most = math.log1p(margin)
    steps: list[Step] = []
    for j, (length, own) in enumerate(losses[1:], 1):
        changes = [(shorter, own - sums) for shorter, sums in losses[:j]]
        highs = [upper_bound(change, counts) for _, change in changes]
        lows = [-upper_bound(-change, counts, ALPHA / j) for _, change in changes]
        held, lost = max(highs) < most, max(lows) > most
        i = int(np.argmax(lows if lost else highs))
        outcome: Outcome = "holds" if held else "lost" if lost else "not enough documents"
        change = float(changes[i][1].sum() / counts.sum())
        steps.append(Step(length, outcome, changes[i][0], change, lows[i], highs[i]))
        if not held:
            break
    return tuple(steps)


def answers_hold(shares: Sequence[tuple[int, Share]]) -> tuple[Step, ...]:
    """The lengths up to the first whose exact match is not shown to be above RULER's threshold."""
    from scipy.stats import binomtest  # noqa: PLC0415

    steps: list[Step] = []
    for length, found in shares:
        p_above, p_below = (
            binomtest(found.exact, found.documents, RULER, alternative=side).pvalue
            for side in ("greater", "less")
        )
        held, lost = p_above <= ALPHA, p_below <= ALPHA
        outcome: Outcome = "holds" if held else "lost" if lost else "not enough documents"
        steps.append(Step(length, outcome, exact=found.exact, documents=found.documents))
        if not held:
            break
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Targets:
    """A cell's targets in order of document and place, ``[T]``; ``sums [n]`` and ``counts [n]`` of them."""

    targets_hash: str
    document: NDArray[np.int64]
    losses: NDArray[np.float64]
    contexts: NDArray[np.int64]
    sums: Sums
    counts: Counts


def _targets(cell: Cell) -> _Targets:
    names = np.array([document.name for document in cell.header.documents])
    used = np.unique(cell.document)
    rank = np.zeros(len(names), dtype=np.int64)
    rank[used[np.argsort(names[used])]] = np.arange(len(used))  # in the order of the targets' hash
    document = np.repeat(rank[cell.document], [window.targets for window in cell.windows])
    place = np.concatenate([np.arange(w.first_target, w.stop + 1) for w in cell.windows])
    order = np.lexsort((place, document))
    losses = np.concatenate(cell.losses).astype(np.float64)[order]
    document = document[order]
    return _Targets(
        cell.targets_hash, document, losses, contexts(cell.windows)[order],
        np.bincount(document, weights=losses).astype(np.float64), np.bincount(document),
    )  # fmt: skip


def _gain(shorter: int, one: _Targets, longer: int, two: _Targets) -> list[Gain]:
    """None where no target is aligned, or too few documents have some."""
    aligned = (2 * one.contexts > shorter) & (two.contexts > one.contexts)
    document = one.document[aligned]
    counts = np.bincount(document)
    sums: Sums = np.bincount(document, weights=(one.losses - two.losses)[aligned]).astype(np.float64)
    sums, counts = sums[counts > 0], counts[counts > 0]
    if not len(counts) or shortage(counts):
        return []
    interval = ratio_interval(sums, counts)
    p = below_p(-sums, counts, 0.0)
    return [Gain(longer, shorter, interval, int(counts.sum()), len(counts), p)]
