"""What a cell says of itself beside its key and its losses, as values.

Keys that this release does not know are kept in ``other`` and written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kerple_eval.records.specification import Marker, ModelRecord
from kerple_eval.support.typed_json import Count, Positive


@dataclass(frozen=True)
class DocumentRecord:
    """A document of a cell: its name, tokens and their sha256 (ids as little-endian int64).

    Of a made document the last ``answer`` tokens are the answer, whose source stands at ``depth`` (0..1).
    """

    name: str
    tokens: Count
    sha256: str
    answer: Positive | None = None
    depth: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LookRecord:
    """Where ``--precision`` adds documents: how many the cell holds, of how many, and what more waits for."""

    documents: Count
    of: Count
    until: Mapping[str, Any]


@dataclass(frozen=True)
class FeedingRecord:
    """Windows longer than ``piece`` tokens were fed in pieces of so many, with the model's own cache.

    Before that, pieces of the first ``compared`` tokens of a window had given the logits of one pass. Where
    ``one_pass`` says why, such windows were scored in one pass all the same.
    """

    piece: Positive
    compared: Count
    one_pass: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CellHeader:
    """What a cell was computed from and on, whether it finished or failed.

    ``seed`` and ``train_length`` (tokens) are the checkpoint's, None where unknown. ``tokens_per_pass``: the
    batch size in tokens, ``threads``: of torch. ``reduction``: in words, where the cell's number is not the
    mean over targets. ``specification_sha256``: of what ``run.json`` states of it, None where the cell was
    written before 0.2 (:mod:`kerple_eval.records.cell_origin`). ``step``: of the training that was watched.
    """

    scheme: str
    seed: int | None
    train_length: Positive | None
    weights_sha256: str | None = None
    dtype: str
    device: str
    tokens_per_pass: Positive | None = None
    threads: Positive | None = None
    first_token: Marker
    reduction: str | None = None
    specification_sha256: str | None = None
    step: Count | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FailedHeader(CellHeader):
    """Of a failed cell too: the error's traceback; ``killed``: processes that computed it were killed."""

    killed: bool | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class PrunedRecord:
    """Of attention by the backend ``pruned``: the share of causal scores that were not computed, and the
    largest certified change of an output, relative to the largest element of its row.

    Under several ranks, of rank 0's part.
    """

    left_out: float
    bound: float


@dataclass(frozen=True)
class DivergenceRecord:
    """Whose predictions the cell's divergences are from: another model, or this one at a shorter ``length``.

    ``feeding``: how the reference was fed windows longer than a piece, where there were any.
    ``error``: why the divergences asked for are not in the cell, whose losses were finished before;
    ``killed``: processes that computed them were killed.
    """

    reference: ModelRecord
    length: Positive | None = None
    feeding: FeedingRecord | None = None
    error: str | None = None
    killed: bool | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FinishedHeader(CellHeader):
    """Of a finished cell too: its documents and how its losses were computed.

    ``losses_from`` says which losses are from other cells, ``feeding`` how windows longer than a piece were
    fed where there were any, ``out_of_memory_at`` the batch size in tokens that did not fit, ``seconds`` how
    long the cell took. ``verified`` is False where losses were read from a file without checksums (written
    before 0.2).
    """

    documents: tuple[DocumentRecord, ...]
    losses_from: str | None = None
    attention: str | None = None
    feeding: FeedingRecord | None = None
    pruned: PrunedRecord | None = None
    out_of_memory_at: Positive | None = None
    seconds: float | None = None
    precision: LookRecord | None = None
    divergence: DivergenceRecord | None = None
    verified: bool | None = None
