"""Exact matches and losses of made documents (passkey, needle, ...), by depth. Imports no torch.

A document is an exact match where every target of its answer was the argmax. The share of exact matches
is of independent draws at one depth, so its interval is Wilson's for a binomial share (SciPy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerple_eval.cells import Cell


@dataclass(frozen=True, slots=True)
class Answer:
    """One document: its targets, how many were the argmax, whether all were, mean nats per target."""

    depth: float
    document: str
    targets: int
    hits: int
    exact: bool
    loss: float


@dataclass(frozen=True, slots=True)
class Share:
    """Documents of one length (and depth): how many match, and their mean loss in nats per target."""

    documents: int
    exact: int
    targets: int
    hits: int
    loss: float

    @property
    def exact_match(self) -> float:
        return self.exact / self.documents

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the share of exact matches."""
        from scipy.stats import binomtest  # noqa: PLC0415

        found = binomtest(self.exact, self.documents).proportion_ci(level, method="wilson")
        return float(found.low), float(found.high)


def answers(cell: Cell) -> list[Answer]:
    """The documents of a finished cell that scored answers, one window each, in plan order."""
    assert cell.hits is not None
    found = []
    for number, row, hits in zip(cell.document.tolist(), cell.losses, cell.hits, strict=True):
        entry = cell.header["documents"][number]
        mean = math.fsum(row.tolist()) / len(row)
        right = int(hits.sum())
        found.append(
            Answer(float(entry["depth"]), str(entry["name"]), len(row), right, right == len(row), mean)
        )
    return found


def share(group: Sequence[Answer]) -> Share:
    """Of some documents, at least one: the loss is the mean over their targets."""
    targets = sum(a.targets for a in group)
    return Share(
        len(group),
        sum(a.exact for a in group),
        targets,
        sum(a.hits for a in group),
        math.fsum(a.loss * a.targets for a in group) / targets,
    )


def by_depth(group: Sequence[Answer]) -> dict[float, Share]:
    """Depth -> share, from the beginning of the document on."""
    depths: dict[float, list[Answer]] = {}
    for answer in group:
        depths.setdefault(answer.depth, []).append(answer)
    return {depth: share(depths[depth]) for depth in sorted(depths)}
