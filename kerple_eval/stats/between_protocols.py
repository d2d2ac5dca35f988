"""Why two protocols give one model two numbers, as effects that add up to the difference exactly.

With A and B the cells of the two protocols, of one model, text and dtype, N their numbers as reported, m the
means over all targets of each, and c the means over the targets that both score:

    N_B - N_A =   (m_A - N_A) + (N_B - m_B)    how A and B average: windows or batches in place of targets
                + (c_A - m_A) + (m_B - c_B)    targets that A alone, and B alone, scores
                + (c_B - c_A)                  the same targets with other inputs

and ``c_B - c_A`` is a sum over targets, told apart by what B shows the model: less or more of the text before
the target, other first-token markers alone, or the same (then only rounding differs). Where no target is
common, the two middle terms are one, ``m_B - m_A``. The order is fixed, and nothing is left over.

A target is a token of the text, whatever markers a protocol puts before it: documents are matched by name,
and counted from their first token after the markers. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records.cell import Cell
from kerple_eval.records.header import DocumentRecord
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run
from kerple_eval.records.specification import Marker
from kerple_eval.support.differences import differences
from kerple_eval.support.registry import unknown
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import CellKey, UserError

Kind = Literal[
    "averaging of the first", "targets of the first alone", "the same inputs", "other first tokens",
    "more context", "less context", "targets of the second alone", "averaging of the second",
]  # fmt: skip
Whole = NDArray[np.int64]
Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """What one difference is worth, in nats per target of the whole difference.

    ``contexts``: mean tokens of text before these targets in the first and in the second cell, without
    markers; None where it does not score them.
    """

    kind: Kind
    targets: int
    nats: float
    contexts: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True, slots=True)
class ProtocolDifference:
    """Two cells of one model and text; ``nlls``: their numbers, nats per target; effects in a fixed order."""

    keys: tuple[CellKey, CellKey]
    nlls: tuple[float, float]
    targets: tuple[int, int]
    common: int
    reductions: tuple[str | None, str | None]
    effects: tuple[Effect, ...]


def between(
    reader: RunReader, protocols: tuple[str, str], *, model: str | None = None, lengths: Sequence[int] = ()
) -> list[ProtocolDifference]:
    """The difference of two protocols, written as in the table, for each model and text that has both.

    Args:
        lengths: of the first and of the second cell, or one for both; every length that both have unless
            given, or else the only two there are.

    Raises:
        UserError: no such protocol or model; no finished cells of both on one model and text.
    """
    _check(reader, protocols, model)
    asked = (lengths[0], lengths[-1]) if lengths else (None, None)
    if protocols[0] == protocols[1] and asked[0] == asked[1]:
        raise UserError(f"--between {protocols[0]} twice: name two protocols, or two lengths of one")
    sides = tuple(_finished(reader, *side, model) for side in zip(protocols, asked, strict=True))
    pairs = _pairs(sides[0], sides[1], any_lengths=bool(lengths))
    return [_difference(one, two) for one, two in pairs]


def _check(reader: RunReader, protocols: tuple[str, str], model: str | None) -> None:
    known = dict.fromkeys(plan.protocol for run in reader.runs for plan in run.specification.protocols)
    for protocol in protocols:
        if protocol not in known:
            raise unknown(f"protocol of {reader.names}", protocol, known)
    labels = dict.fromkeys(one.label for run in reader.runs for one in run.specification.models)
    if model is not None and model not in labels:
        raise unknown(f"model of {reader.names}", model, labels)


@dataclass(frozen=True)
class _Found:
    run: Run
    cell: Cell


def _finished(reader: RunReader, protocol: str, length: int | None, model: str | None) -> list[_Found]:
    """The finished cells of a protocol; there must be one."""
    found, why = [], "not run"
    for run in reader.runs:
        every = run.keys()
        for key in every:
            if key.protocol != protocol or length not in (None, key.length) or model not in (None, key.model):
                continue
            cell = reader.cell(run.folder, key)
            if isinstance(cell, Cell):
                found.append(_Found(run, cell))
            elif cell is not None:
                why = f"failed: {cell.error}"
    if not found:
        of = f"{model}, " if model else ""
        at = f" at {length}" if length else ""
        raise UserError(f"{reader.names}: {of}{protocol}{at} has no losses ({why})")
    return found


def _pairs(
    first: Sequence[_Found], second: Sequence[_Found], *, any_lengths: bool
) -> list[tuple[Cell, Cell]]:
    """Cells of one model and text, the first that there are of each; of one length where lengths are free."""
    same: dict[str, list[tuple[Cell, Cell]]] = {}
    why = ""
    for a, b in product(first, second):
        one, two = _computed_from(a), _computed_from(b)
        if a.run is b.run:  # there a label tells models apart, even equal ones
            one, two = one | {"label": a.cell.key.model}, two | {"label": b.cell.key.model}
        if different := differences(one, two):
            why = why or f"{a.cell.key}, and {b.cell.key}: {different[0].describe('there', 'here')}"
            continue
        pairs = same.setdefault(json.dumps(one | {"label": a.cell.key.model}, sort_keys=True), [])
        if all((p.key.length, q.key.length) != (a.cell.key.length, b.cell.key.length) for p, q in pairs):
            pairs.append((a.cell, b.cell))
    if not same:
        raise UserError(f"the two protocols were not computed on one model and text: {why}")
    chosen = []
    for pairs in same.values():
        kept = [(a, b) for a, b in pairs if any_lengths or a.key.length == b.key.length]
        if not kept and len(pairs) > 1:
            have = [sorted({pair[side].key.length for pair in pairs}) for side in (0, 1)]
            words = [", ".join(map(str, lengths)) for lengths in have]
            raise UserError(
                f"{pairs[0][0].key.protocol} has lengths {words[0]}, {pairs[0][1].key.protocol} {words[1]}: "
                "choose one of each, as in --length 512,2048"
            )
        chosen += kept or pairs
    return chosen


def _computed_from(found: _Found) -> dict[str, object]:
    """What must be equal, so that protocol and length alone can differ."""
    key, specification = found.cell.key, found.run.specification
    (task,) = (task for task in specification.tasks if task.name == key.task)
    tokens = task.tokens_sha256 if isinstance(task.tokens_sha256, str) else None
    text = replace(
        task, bos=None, selection=None, tokens_sha256=tokens, first_token=None, drawn_sha256=None,
        lost_bytes=None,
    )  # fmt: skip
    return {
        "model": to_json(replace(specification.model(key.model), label="", dtype=None)),
        "dtype": found.cell.header.dtype,
        "text": to_json(text),
        "max_tokens": specification.max_tokens,
    }


Markers = tuple[int | None, ...]


@dataclass(frozen=True)
class _Targets:
    """The targets of a cell, one row each.

    ``target`` counts tokens of the text, ``context`` those of them that were seen; ``markers`` says which
    markers were, and ``document`` which document it is, by numbers that hold for both cells.
    """

    document: Whole
    target: Whole
    context: Whole
    markers: Whole
    losses: Real


def _targets(
    cell: Cell, numbers: Sequence[int], before: Sequence[Markers], codes: dict[Markers, int]
) -> _Targets:
    """``numbers`` and the markers ``before`` the text of each document; ``codes``: markers -> number."""
    columns: list[tuple[Whole, ...]] = []
    rule = cell.header.first_token
    at_window = (rule.id,) if rule.rule == "window" and rule.id is not None else ()
    for number, window in zip(cell.document.tolist(), cell.windows, strict=True):
        k = np.arange(window.first_target, window.stop + 1, dtype=np.int64)
        own = before[number]
        seen = np.clip(np.minimum(len(own), k) - window.start, 0, None)
        code = np.full_like(k, codes.setdefault(at_window + own[window.start :], len(codes)))
        for row in np.flatnonzero(k < len(own)):  # a marker is the target
            code[row] = codes.setdefault(at_window + own[window.start : k[row]], len(codes))
        columns.append((np.full_like(k, numbers[number]), k - len(own), k - window.start - seen, code))
    document, target, context, markers = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return _Targets(document, target, context, markers, np.concatenate(cell.losses).astype(np.float64))


def _laid_over(one: Cell, two: Cell) -> tuple[_Targets, _Targets]:
    """Both cells' targets with the same documents numbered alike.

    Raises:
        UserError: a document's text does not begin and end at the same token in both.
    """
    drawn = any(make_protocol(cell.key.protocol)[0].draws_samples for cell in (one, two))
    names = {document.name: i for i, document in enumerate(two.header.documents)}
    first, second = one.header.first_token, two.header.first_token
    number_one, before_one = [], []
    before_two = [_before(second, document) for document in two.header.documents]
    for i, document in enumerate(one.header.documents):
        j = names.get(document.name, -1)
        own = _before(first, document)
        if j >= 0 and document.sha256 == two.header.documents[j].sha256:
            own = before_two[j]
        elif j >= 0 and (drawn or first == second):
            j = -1  # another document of that name
        elif j >= 0:
            other = two.header.documents[j]
            own = _before(first, document, other.tokens - len(before_two[j]), second.id)
            before_two[j] = _before(second, other, document.tokens - len(own), first.id)
            if not _sizes(document, own, first) & _sizes(other, before_two[j], second):
                raise UserError(
                    f"document {document.name}: its tokens in {one.key.protocol} cannot be laid over those "
                    f"in {two.key.protocol}"
                )
        before_one.append(own)
        number_one.append(j if j >= 0 else len(before_two) + i)
    codes: dict[Markers, int] = {}
    numbers = range(len(before_two))
    return _targets(one, number_one, before_one, codes), _targets(two, numbers, before_two, codes)


def _before(marker: Marker, document: DocumentRecord, text: int = -1, bos: int | None = None) -> Markers:
    """The markers before a document's text, of which ``text`` tokens are known (-1: unknown)."""
    if marker.before is not None:
        return marker.before
    if marker.rule == "prefix":  # with the tokeniser's BOS after it, or not: the record does not say
        return (marker.id, bos) if document.tokens - text == 2 else (marker.id,)
    return (marker.id,) if marker.rule == "document" else ()


def _sizes(document: DocumentRecord, before: Markers, marker: Marker) -> set[int]:
    """Tokens of text: one that was cut has no marker after it."""
    size = document.tokens - len(before)
    return {size, size - len(marker.after or ())}


def _difference(one: Cell, two: Cell) -> ProtocolDifference:
    a, b = _laid_over(one, two)
    at_a, at_b = _common(a, b)
    nlls = (float(one.summary()["nll"]), float(two.summary()["nll"]))
    means = _mean(a.losses), _mean(b.losses)
    common = (_mean(a.losses[at_a]), _mean(b.losses[at_b])) if len(at_a) else means[::-1]
    alone = [np.delete(np.arange(len(x.losses)), at) for x, at in ((a, at_a), (b, at_b))]
    effects = [
        Effect("averaging of the first", len(a.losses), means[0] - nlls[0]),
        Effect(
            "targets of the first alone", len(alone[0]), common[0] - means[0],
            (_context(a, alone[0]), None),
        ),
    ]  # fmt: skip
    change, longer = b.losses[at_b] - a.losses[at_a], b.context[at_b] - a.context[at_a]
    alike = a.markers[at_a] == b.markers[at_b]
    kinds: dict[Kind, NDArray[np.bool_]] = {
        "the same inputs": (longer == 0) & alike,
        "other first tokens": (longer == 0) & ~alike,
        "more context": longer > 0,
        "less context": longer < 0,
    }
    for kind, where in kinds.items():
        if count := int(where.sum()):
            contexts = (_context(a, at_a[where]), _context(b, at_b[where]))
            effects.append(Effect(kind, count, math.fsum(change[where]) / len(change), contexts))
    # where none is common, the whole difference of the means stands with the first's alone
    other = means[1] - common[1] if len(at_b) else 0.0
    effects += [
        Effect("targets of the second alone", len(alone[1]), other, (None, _context(b, alone[1]))),
        Effect("averaging of the second", len(b.losses), nlls[1] - means[1]),
    ]
    reductions = (one.header.reduction, two.header.reduction)
    shown = [
        effect
        for effect in effects
        if not (effect.kind.startswith("targets") and not effect.targets)
        and not (effect.kind == "averaging of the first" and reductions[0] is None)
        and not (effect.kind == "averaging of the second" and reductions[1] is None)
    ]
    return ProtocolDifference(
        (one.key, two.key), nlls, (len(a.losses), len(b.losses)), len(at_a), reductions, tuple(shown)
    )


def _common(a: _Targets, b: _Targets) -> tuple[Whole, Whole]:
    """Rows of the targets that both score; one scored several times is matched in order of context."""
    low = min(a.target.min(), b.target.min())  # below 0 where a marker is a target
    span = max(a.target.max(), b.target.max()) - low + 1
    keys = [x.document * span + x.target - low for x in (a, b)]
    times = [_times(key, x.context) for key, x in zip(keys, (a, b), strict=True)]
    most = max(t.max() for t in times) + 1
    one, two = (key * most + t for key, t in zip(keys, times, strict=True))
    _, at_a, at_b = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    return at_a, at_b


def _times(key: Whole, context: Whole) -> Whole:
    """Which time, from 0, each row's target is scored."""
    order = np.lexsort((context, key))
    times = np.empty_like(key)
    times[order] = np.arange(len(key)) - np.searchsorted(key[order], key[order])
    return times


def _mean(losses: Real) -> float:
    return math.fsum(losses) / len(losses)


def _context(targets: _Targets, rows: Whole) -> float | None:
    return float(targets.context[rows].mean()) if len(rows) else None
