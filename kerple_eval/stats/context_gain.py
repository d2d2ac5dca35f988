"""Why the mean loss changed from one length to a longer one: fewer cold starts, or more context.

A target has context c1 in the cell of length L1 and c2 in that of L2 > L1. Between them stands
c* = min(c2, L1), what a window of L1 could have given it at most:

    change       = mean[l(c2) - l(c1)]
    dilution     = mean[l(c*) - l(c1)]   what a model that uses no more than L1 tokens gains with length,
                                         as fewer targets stand at the start of a window
    context gain = mean[l(c2) - l(c*)]   what the tokens beyond L1 are worth

over the targets both cells scored, in nats per target; change = dilution + context gain exactly. Where
c2 <= L1, l(c*) is l(c2) itself; else it is the loss in the ``sliding-window`` cell of length L1, whose
contexts are L1 - S + 1..L1 at stride S: that is the approximation, none at S = 1. Of several strides the
smallest is taken. Where the two cells scored different targets, what that adds to the change of their
means is told apart (``other_targets``).

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records import reductions
from kerple_eval.records.cell import Cell
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run, own_label
from kerple_eval.records.specification import ModelRecord
from kerple_eval.stats.intervals import ratio_interval, shortage
from kerple_eval.support.specs import parse_spec
from kerple_eval.types import CellKey, UserError

Real = NDArray[np.float64]


class Lack(Enum):
    """Why a change has no split."""

    COMMON_TARGETS = "no target is scored at both lengths"
    PREFIX_WINDOW = (
        "its documents begin with a prefix token, and no sliding-window at {length} has it; "
        "full-context can be split"
    )
    SLIDING_WINDOW = "no sliding-window at {length}"


@dataclass(frozen=True, slots=True)
class Part:
    """A mean difference in nats per target, with its 95 % interval over documents where there is one."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class LossChange:
    """One change of mean loss; ``dilution`` and ``context_gain`` are None where ``needs`` says why."""

    run: Run
    label: str  # the model's among the runs
    key: CellKey  # of the cell of length L1
    longer: int  # L2
    documents: int
    targets: int
    same_targets: bool
    change: Part
    other_targets: float
    dilution: Part | None
    context_gain: Part | None
    stride: int | None  # of the sliding-window cell; None where none was needed
    short_of: float  # mean over its targets of L1 - context: how far the approximation is off c*
    lacks: Lack | None = None  # what there would have to be for a split

    @property
    def needs(self) -> str:
        """Why there is no split, in words; empty where there is one."""
        return "" if self.lacks is None else self.lacks.value.format(length=self.key.length)


@dataclass(frozen=True, slots=True)
class TargetLosses:
    """Losses and contexts of a cell by document and target; a context of -1 is a target not scored."""

    losses: dict[tuple[str, int], Real]
    contexts: dict[tuple[str, int], NDArray[np.int64]]


def explain(reader: RunReader, lengths: tuple[int, int] | None = None) -> list[LossChange]:
    """The change between neighbouring lengths, or the two given, of every model and protocol.

    Sliding-window cells are looked for in all of the reader's runs.
    """
    owners: dict[tuple[str, str], dict[str, str]] = {}
    found = [split for run in reader.runs for split in _of_run(run, reader, lengths, owners)]
    if not found:
        asked = f" {lengths[0]} and {lengths[1]}" if lengths else ""
        raise UserError(
            f"{reader.names}: no model has two finished cells of one protocol at two "
            f"lengths{asked}; run with --length 512,1024 or more"
        )
    return found


def _of_run(
    run: Run, reader: RunReader, lengths: tuple[int, int] | None,
    owners: dict[tuple[str, str], dict[str, str]],
) -> Iterator[LossChange]:  # fmt: skip
    groups: dict[tuple[str, str, str], list[CellKey]] = {}
    every = run.keys()
    for key in every:
        if lengths is not None and key.length not in lengths:
            continue
        if isinstance(reader.cell(run.folder, key), Cell):
            groups.setdefault((key.model, key.task, key.protocol), []).append(key)
    for (model, *_), keys in groups.items():
        label = own_label(model, run.folder, owners.setdefault((keys[0].task, keys[0].protocol), {}))
        keys.sort(key=lambda key: key.length)
        if lengths is None:
            pairs = list(pairwise(keys))
        else:
            by_length = {key.length: key for key in keys}
            pairs = [(by_length[a], by_length[b]) for a, b in [lengths] if {a, b} <= by_length.keys()]
        for shorter, longer in pairs:
            yield _split(run, label, reader, shorter, longer)


def _split(run: Run, label: str, reader: RunReader, shorter: CellKey, longer: CellKey) -> LossChange:
    one, two = _cell(reader, run, shorter), _cell(reader, run, longer)
    a, b = target_losses(one), target_losses(two)
    positions = {d: common_targets(a, b, d) for d in a.losses if d in b.losses}
    positions = {d: where for d, where in positions.items() if len(where)}
    first = {d: a.losses[d][where] for d, where in positions.items()}
    second = {d: b.losses[d][where] for d, where in positions.items()}
    targets = sum(map(len, positions.values()))
    whole = reductions.mean_loss(two.losses) - reductions.mean_loss(one.losses)
    same = one.targets_hash == two.targets_hash
    change = _part(first, second) if targets else Part(whole, None)
    rest = 0.0 if same else whole - change.value
    kept = (run, label, shorter, longer.length, len(positions), targets, same, change, rest)
    if not targets:
        return LossChange(*kept, None, None, None, 0.0, Lack.COMMON_TARGETS)
    limit = shorter.length - (1 if one.header.first_token.rule == "window" else 0)
    contexts = {d: b.contexts[d][where] for d, where in positions.items()}
    reference, stride = _reference(run, reader, one, limit, contexts)
    middle: dict[tuple[str, int], Real] = {}
    short = [0.0]
    for d, where in positions.items():
        context = b.contexts[d][where]
        middle[d] = second[d].copy()
        beyond = context > limit
        if not beyond.any():
            continue
        if reference is None or not _scored(reference, d, where[beyond]):
            return LossChange(*kept, None, None, None, 0.0, _lack(one))
        middle[d][beyond] = reference.losses[d][where[beyond]]
        short.extend(limit - reference.contexts[d][where[beyond]])
    used = len(short) > 1
    return LossChange(
        *kept, _part(first, middle), _part(middle, second), stride if used else None,
        math.fsum(short) / max(1, len(short) - 1),
    )  # fmt: skip


def _lack(shorter: Cell) -> Lack:
    return Lack.PREFIX_WINDOW if shorter.header.first_token.rule == "prefix" else Lack.SLIDING_WINDOW


def _cell(reader: RunReader, run: Run, key: CellKey) -> Cell:
    cell = reader.cell(run.folder, key)
    assert isinstance(cell, Cell)
    return cell


def target_losses(cell: Cell) -> TargetLosses:
    """By sha256 of a document's tokens, numbered where a cell has several alike."""
    names: list[tuple[str, int]] = []
    for entry in cell.header.documents:
        sha = entry.sha256
        names.append((sha, sum(sha == other for other, _ in names)))
    sizes = [document.tokens for document in cell.header.documents]
    losses = {d: np.zeros(n) for d, n in zip(names, sizes, strict=True)}
    contexts = {d: np.full(n, -1, dtype=np.int64) for d, n in zip(names, sizes, strict=True)}
    for number, window, row in zip(cell.document.tolist(), cell.windows, cell.losses, strict=True):
        where = slice(window.first_target, window.stop + 1)
        losses[names[number]][where] = row
        contexts[names[number]][where] = np.arange(window.first_target, window.stop + 1) - window.start
    return TargetLosses(losses, contexts)


def common_targets(a: TargetLosses, b: TargetLosses, document: tuple[str, int]) -> NDArray[np.int64]:
    return np.flatnonzero((a.contexts[document] >= 0) & (b.contexts[document] >= 0))


def _scored(side: TargetLosses, document: tuple[str, int], where: NDArray[np.int64]) -> bool:
    return document in side.contexts and bool((side.contexts[document][where] >= 0).all())


def _part(before: dict[tuple[str, int], Real], after: dict[tuple[str, int], Real]) -> Part:
    """Mean of ``after - before`` over all targets, with its interval over documents."""
    sums = np.array([math.fsum(after[d] - before[d]) for d in before])
    counts = np.array([len(before[d]) for d in before], dtype=np.int64)
    value = math.fsum(sums) / int(counts.sum())
    if shortage(counts):
        return Part(value, None)
    found = ratio_interval(sums, counts)
    return Part(value, (found.low, found.high))


def _reference(
    run: Run, reader: RunReader, one: Cell, limit: int, contexts: dict[tuple[str, int], NDArray[np.int64]]
) -> tuple[TargetLosses | None, int | None]:
    """The sliding-window cell of the same model, length and marker with the smallest stride."""
    if not any((c > limit).any() for c in contexts.values()):
        return None, None
    best: tuple[int, Cell] | None = None
    model = _model(run, one.key.model)
    for other in reader.runs:
        every = other.keys()
        for key in every:
            stride = _stride(key.protocol)
            if stride is None or key.length != one.key.length or (best and stride >= best[0]):
                continue
            if _model(other, key.model) != model:
                continue
            cell = reader.cell(other.folder, key)
            if isinstance(cell, Cell) and _comparable(cell, one):
                best = (stride, cell)
    return (None, None) if best is None else (target_losses(best[1]), best[0])


def _stride(protocol: str) -> int | None:
    spec = parse_spec(protocol)
    return int(dict(spec.options)["stride"]) if spec.name == "sliding-window" else None


def _model(run: Run, label: str) -> ModelRecord:
    """What decides a model's losses: its record without its label."""
    return replace(run.specification.model(label), label="")


def _comparable(cell: Cell, one: Cell) -> bool:
    """Same dtype and marker before windows, and some of the same documents."""

    def marker(c: Cell) -> int | None:
        first = c.header.first_token
        return first.id if first.rule == "window" else None

    needed, available = ({d.sha256 for d in c.header.documents} for c in (one, cell))
    return cell.header.dtype == one.header.dtype and marker(cell) == marker(one) and needed <= available
