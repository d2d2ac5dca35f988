"""A cell's losses summed by document: what intervals and tests stand on.

Documents are the units that are independent of each other; targets of one document are not. n
documents, in order of name, which is the order of the target set's hash: two cells with equal hashes
have the same text, targets and order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kerple_eval.types import CellKey, UserError

if TYPE_CHECKING:
    from kerple_eval.records.cell import Cell

Sums = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class DocumentSums:
    """``sums [n]`` (nats) and ``counts [n]`` (targets) of each document; UTF-8 ``bytes [n]`` if known."""

    names: tuple[str, ...]
    sums: Sums
    counts: Counts | Sums
    bytes: Counts | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mean(self) -> float:
        """Mean loss in nats per target, the ratio of sums."""
        return float(self.sums.sum() / self.counts.sum())

    def only(self, names: Sequence[str]) -> DocumentSums:
        """The documents of ``names``."""
        wanted = set(names)
        kept = [i for i, name in enumerate(self.names) if name in wanted]
        byte_counts = None if self.bytes is None else self.bytes[kept]
        return DocumentSums(
            tuple(self.names[i] for i in kept), self.sums[kept], self.counts[kept], byte_counts
        )


def document_sums(cell: Cell) -> DocumentSums:
    """Sums and counts of a finished cell; documents that no window scores do not appear.

    Where the cell's protocol weighs windows (``Protocol.weights``) the sums are of weight x mean loss and
    the counts of weights, so that their ratio is the cell's ``nll``; bytes are then left out.
    """
    every = [document.name for document in cell.header.documents]
    used, index = np.unique(cell.document, return_inverse=True)
    totals = np.array([row.sum(dtype=np.float64) for row in cell.losses], dtype=np.float64)
    targets = np.array([w.targets for w in cell.windows], dtype=np.float64)
    weighs = cell.weights
    if weighs is not None:
        totals *= np.asarray(weighs) / targets
    sums: Sums = np.bincount(index, weights=totals).astype(np.float64)
    counts = np.bincount(index, weights=targets if weighs is None else np.asarray(weighs))
    if weighs is None:
        counts = counts.astype(np.int64)
    order = sorted(range(len(used)), key=lambda i: every[used[i]])
    byte_counts = None
    if cell.byte_counts is not None and weighs is None:
        byte_counts = np.bincount(index, weights=cell.byte_counts).astype(np.int64)[order]
    return DocumentSums(tuple(every[used[i]] for i in order), sums[order], counts[order], byte_counts)


def effective_documents(counts: Counts | Sums) -> float:
    """Kish's effective number, (sum c)^2 / sum c^2: n where documents are of one size, else fewer."""
    sizes = np.asarray(counts, dtype=np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


@dataclass(frozen=True)
class Scored:
    """A finished cell without its losses: whose it is, its targets and its sums by document."""

    key: CellKey
    scheme: str
    seed: int | None
    targets_hash: str
    sums: DocumentSums
    targets: int


def scored(cell: Cell) -> Scored:
    return Scored(
        cell.key,
        cell.header.scheme,
        cell.header.seed,
        cell.targets_hash,
        document_sums(cell),
        sum(window.targets for window in cell.windows),
    )


def different_targets(first: Scored, second: Scored) -> str | None:
    """Why two cells cannot be compared: on other targets their difference would be one of text too."""
    if first.targets_hash == second.targets_hash:
        return None
    return (
        f"{first.key.model} and {second.key.model} were not scored on the same targets at length "
        f"{first.key.length} (hash {first.targets_hash} and {second.targets_hash}); compare runs of one "
        "text, tokeniser and choice of documents"
    )


def paired_sums(first: Scored, second: Scored) -> tuple[Sums, Counts | Sums]:
    """``first - second``: differences of summed loss ``[n]`` (nats) by document, and targets ``[n]``.

    Raises:
        UserError: the cells were not computed on the same targets.
    """
    if why := different_targets(first, second):
        raise UserError(why)
    return first.sums.sums - second.sums.sums, first.sums.counts
