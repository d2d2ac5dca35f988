"""Exact matches and losses of made documents (passkey, needle, ...), by depth. Imports no torch.

A document is an exact match where every target of its answer was the argmax. The share of exact matches
is of independent draws at one depth, so its interval is Wilson's for a binomial share (SciPy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kerple_eval.records.answers import Answer


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
