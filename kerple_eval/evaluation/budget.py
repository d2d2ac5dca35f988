"""Tokens of a forward pass: fixed on the CPU, measured on CUDA, kept in ``run.json`` and used on resume.

On the CPU batches are a function of the plan, so that a resumed run repeats its passes. On CUDA the first
model tells: passes double from ``START`` tokens until one brings less than ``GAIN`` more tokens a second,
takes more than ``SHARE`` of the card's memory, or does not fit. Where memory runs out later on all the same,
``scoring`` halves the budget; the cell says so and ``run.json`` keeps the smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.pass_time import PassShape, pass_seconds
from kerple_eval.models.scoring import TOKENS_PER_PASS, Budget
from kerple_eval.records.run import Run

START, MOST = 4096, 1 << 20
GAIN, SHARE = 1.05, 0.6
WINDOW = 512  # tokens of the windows that are tried, or fewer where the run has none so long


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds of a pass, and its peak as a share of the device's memory."""

    seconds: float
    share: float


def largest_useful(attempt: Callable[[int], Trial | None]) -> int:
    """Tokens at which doubling stops to pay; ``attempt`` answers None for what does not fit."""
    tokens, chosen, best = START, START, 0.0
    while tokens <= MOST:
        trial = attempt(tokens)
        if trial is None or tokens / trial.seconds < GAIN * best:
            break
        chosen, best = tokens, tokens / trial.seconds
        if trial.share > SHARE:
            break
        tokens *= 2
    return chosen


def measured(model: LanguageModel, longest: int) -> int:
    """The budget of ``model`` on its CUDA device."""
    length = min(WINDOW, longest)

    def attempt(tokens: int) -> Trial | None:
        torch.cuda.reset_peak_memory_stats(model.device)
        budget = Budget(tokens)
        shape = PassShape(max(1, tokens // length), length, length)
        try:
            pass_seconds(model, shape, budget)  # warms up: compiles, fills the allocator
            seconds = pass_seconds(model, shape, budget)
        except torch.OutOfMemoryError:
            return None
        if budget.tokens < tokens:
            return None  # it was made in halves
        total = torch.cuda.get_device_properties(model.device).total_memory
        return Trial(seconds, torch.cuda.max_memory_allocated(model.device) / total)

    return largest_useful(attempt)


class RunBudget:
    """The budget of a run's passes (``pass_``) and its trace in the record."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pass_ = Budget(TOKENS_PER_PASS[run.specification.device])
        self.chosen = False

    def choose(self, model: LanguageModel, longest: int) -> None:
        """When the first model is loaded: the budget that ``run.json`` keeps, or else a measured one.

        A model held in parts by several ranks is not measured: this rank alone cannot run it.
        """
        if self.chosen or model.device.type != "cuda" or model.together:
            return
        self.chosen = True
        kept = self.run.provenance.tokens_per_pass
        self.pass_.tokens = kept or measured(model, longest)
        self._write()

    def keep(self) -> int | None:
        """After a cell: the budget that did not fit, where memory ran out; the run then keeps the smaller."""
        kept = self.run.provenance.tokens_per_pass or TOKENS_PER_PASS[self.run.specification.device]
        if self.pass_.tokens >= kept:
            return None
        self._write()
        return kept

    def _write(self) -> None:
        if self.run.provenance.tokens_per_pass != self.pass_.tokens:
            self.run.update_provenance(tokens_per_pass=self.pass_.tokens)
