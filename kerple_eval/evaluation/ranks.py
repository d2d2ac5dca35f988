"""Several processes on one run: ``torchrun --nproc-per-node N -m kerple_eval run ...``.

Rank 0 does what a run alone does (plans, writes cells, talks) but for scoring: it tells the others which
model to load and which windows to score, every rank takes whole batches r, r + W, r + 2 W, ... of the
same list, and rank 0 puts the losses together. Batches do not depend on how many share them, so neither do
losses (on CPU to the bit, with the same threads a rank); no window is padded or scored twice.

Control and losses travel through gloo, also between GPUs: a few bytes a target. On CUDA each rank takes
the card of its local rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from kerple_eval.models.base import Checkpoint, LanguageModel
from kerple_eval.models.devices import DTYPES, resolve_device
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scoring import Batch, Budget, NotFiniteError, score
from kerple_eval.types import UserError, Window

PATIENCE = timedelta(days=2)  # a rank may wait that long for the others' share of a cell
_KINDS: dict[str, type[Exception]] = {
    e.__name__: e
    for e in (
        UserError,
        NotFiniteError,
        ArithmeticError,
        MemoryError,
        torch.OutOfMemoryError,
        RuntimeError,
    )
}


class RankLostError(Exception):
    """Another rank is gone: the run stops, and the same command goes on."""


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored, as ``scoring.score`` takes it."""

    documents: Sequence[NDArray[np.int64]]
    windows: Sequence[tuple[int, Window]]
    bos: int | None
    hits: bool

    def scored(
        self, model: LanguageModel, budget: Budget, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        return score(
            model, self.documents, self.windows,
            bos=self.bos, hits=self.hits, share=share, budget=budget,
        )  # fmt: skip


class SingleProcess:
    """One process: loads and scores itself."""

    size = 1

    def load(
        self, checkpoint: Checkpoint, text: str, device: torch.device, dtype: torch.dtype
    ) -> LanguageModel:
        return checkpoint.load(device, dtype)

    def score(self, model: LanguageModel, asked: ScoreRequest, budget: Budget) -> Iterator[Batch]:
        return asked.scored(model, budget)

    def release(self) -> None:
        """Nobody to dismiss."""


@dataclass
class RankGroup(SingleProcess):
    """The ranks of a torchrun, seen from one of them."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> RankGroup:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def load(
        self, checkpoint: Checkpoint, text: str, device: torch.device, dtype: torch.dtype
    ) -> LanguageModel:
        self._tell(("load", text))
        model, error = _tried(partial(checkpoint.load, device, dtype))
        self._gather(error)
        assert isinstance(model, LanguageModel)
        return model

    def score(self, model: LanguageModel, asked: ScoreRequest, budget: Budget) -> Iterator[Batch]:
        self._tell(("score", (asked, budget.tokens)))
        error = None
        try:
            yield from asked.scored(model, budget, (self.rank, self.size))
        except tuple(_KINDS.values()) as problem:
            error = _named(problem)
        for part, tokens in self._gather(error)[1:]:
            budget.tokens = min(budget.tokens, tokens)
            yield from part

    def release(self) -> None:
        """Rank 0 has nothing more to do; the others may go."""
        self._tell(("stop", None))
        dist.destroy_process_group()

    def run_worker_loop(self, device: str, dtype: str, attention: str) -> None:
        """What every rank but 0 does until it is dismissed; what is asked for is checked by rank 0."""
        model: LanguageModel | None = None
        while True:
            order, what = self._tell(None)
            error, result = None, None
            if order == "stop":
                dist.destroy_process_group()
                return
            if order == "load":
                model = None  # the last one's memory goes first
                model, error = _tried(partial(_loaded, what, device, dtype, attention))
            else:
                assert model is not None
                result, error = _tried(partial(self._share, model, *what))
            self._gather(error, result)

    def _share(self, model: LanguageModel, asked: ScoreRequest, tokens: int) -> tuple[list[Batch], int]:
        """This rank's passes, and the tokens of one that fitted."""
        budget = Budget(tokens)
        return list(asked.scored(model, budget, (self.rank, self.size))), budget.tokens

    def _tell(self, order: tuple[str, Any] | None) -> Any:
        box = [order]
        try:
            dist.broadcast_object_list(box, src=0)
        except RuntimeError as error:
            raise RankLostError(str(error)) from None
        return box[0]

    def _gather(self, error: tuple[str, str] | None, result: Any = None) -> list[Any]:
        """Everyone's results at rank 0; the first error of any rank is raised there."""
        boxes: list[Any] | None = [None] * self.size if self.rank == 0 else None
        try:
            dist.gather_object((error, result), boxes)
        except RuntimeError as problem:
            raise RankLostError(str(problem)) from None
        if boxes is None:
            return []
        for found, _ in boxes:
            if found is not None:
                raise _KINDS.get(found[0], RuntimeError)(found[1])
        return [part for _, part in boxes]


def _loaded(text: str, device: str, dtype: str, attention: str) -> LanguageModel:
    checkpoint, place = open_model(parse_model(text)), resolve_device(device)
    checkpoint.set_attention(attention, place, DTYPES[dtype])
    return checkpoint.load(place, DTYPES[dtype])


def _tried(work: Callable[[], Any]) -> tuple[Any, tuple[str, str] | None]:
    try:
        return work(), None
    except tuple(_KINDS.values()) as problem:
        return None, _named(problem)


def _named(problem: BaseException) -> tuple[str, str]:
    return type(problem).__name__, str(problem)


def launched() -> int | None:
    """This process's rank where torchrun started several; a cluster's own RANK alone means nothing."""
    several = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    return int(os.environ["RANK"]) if several else None


def join_ranks() -> SingleProcess | RankGroup:
    """The join_ranks of this process."""
    return SingleProcess() if launched() is None else RankGroup.join()
