"""``--precision``: which documents each look of a run scores, chosen before the first look.

A look is a number of documents of a text; its documents are the first by the rank that ``--documents``
goes by, so that each look adds to the one before. See :mod:`kerple_eval.stats.looks` for the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kerple_eval.data.documents import choose
from kerple_eval.data.texts import TokenizedText
from kerple_eval.records.specification import PrecisionRecord
from kerple_eval.stats.looks import LEVEL, parse_percent, schedule
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


@dataclass(frozen=True)
class StoppingPlan:
    """``share``: 0.005 for 0.5 %; ``against``: the reference of paired differences, or None for each
    perplexity; ``looks``: text -> number of documents -> their names."""

    share: float
    against: str | None
    looks: dict[str, dict[int, frozenset[str]]]

    @property
    def record(self) -> PrecisionRecord:
        """For the run's specification."""
        looks = {text: tuple(by_number) for text, by_number in self.looks.items()}
        return PrecisionRecord(self.share, self.against, LEVEL, looks)


def plan_looks(
    precision: str | None,
    against: str | None,
    readings: Mapping[str, Mapping[str, TokenizedText]],
    selections: Mapping[str, int],
    labels: Sequence[str],
) -> StoppingPlan | None:
    """The looks of a run; ``readings``: text -> model -> documents; ``selections``: text -> seed.

    Raises:
        UserError: no such reference, or models that do not read a text alike; too few documents.
    """
    if precision is None:
        if against is not None:
            raise UserError(
                "--against is the reference of --precision's differences; for a finished run use "
                "kerple-eval compare"
            )
        return None
    share = parse_percent(precision, "--precision")
    if against is not None:
        if against not in labels:
            raise unknown("model", against, labels)
        if len(labels) < 2:
            raise UserError(f"--against {against}: the run has no other model to compare with it")
    looks = {}
    for text, by_model in readings.items():
        if against is not None:
            _refuse_other_targets(text, by_model, against)
        documents = next(iter(by_model.values())).documents
        names = [document.name for document in documents]
        try:
            numbers = schedule(len(names))
        except UserError as error:
            raise UserError(f"{text}: {error}") from None
        looks[text] = {n: frozenset(choose(names, n, selections[text])) for n in numbers}
    return StoppingPlan(share, against, looks)


def _refuse_other_targets(text: str, by_model: Mapping[str, TokenizedText], against: str) -> None:
    for label, reading in by_model.items():
        if reading is not by_model[against]:
            raise UserError(
                f"{text}: {label} and {against} read it differently (tokeniser or first token), so their "
                "losses are not of the same targets; leave --against out"
            )
