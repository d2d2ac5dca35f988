"""Several processes on one run: ``torchrun --nproc-per-node N -m kerple_eval run ...``.

Rank 0 does what a run in a single process does (it plans, writes cells and reports progress), except for
the forward passes. It tells the other ranks which model to load and which windows to score; rank r of W
scores the batches r, r + W, r + 2 W, ... of the same list, and rank 0 puts the losses together. On the CPU
batches do not depend on the number of ranks, so neither do the losses (to the bit, with the same number of
threads a rank); on cards no batch has more than a rank's part of the windows. No window is padded or scored
twice, and a document travels once. Of a model that is held in parts (``together``) every rank scores every
batch, and rank 0's losses count.

Requests and losses travel through gloo, also between GPUs: a few bytes a target. A script that has
initialised ``torch.distributed`` keeps its own process group as it is; the ranks of a run then talk in a
gloo group of their own beside it. A rank waits for a slow one for as long as that takes, and for one that has
ended or is stopped no longer than :mod:`pulse` says.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from kerple_eval.evaluation import pulse
from kerple_eval.evaluation.pulse import Pulse, RankLostError
from kerple_eval.models.base import Checkpoint, LanguageModel
from kerple_eval.models.devices import device_lost, resolve_device, scoring_dtype
from kerple_eval.models.divergence import Parts
from kerple_eval.models.feeding import Feeding
from kerple_eval.models.scoring import Batch, Budget, score
from kerple_eval.types import UserError, Window

Role = Literal["model", "reference"]  # of the models that are loaded at once
NOT_SENT: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # in place of a document that need not travel


@dataclass(frozen=True)
class ScoreRequest:
    """The windows to score, in the form that :func:`kerple_eval.models.scoring.score` reads.

    ``hashes``: of the documents, sha256; ``windows``: pairs of a document's index and a window; ``bos``: the
    first-token marker before each window, or None; ``hits``: whether to return beside each loss whether the
    target was the argmax. ``of``: which of the loaded models is scored. ``reference``: the model that it is
    compared with, on this rank; ``compared``: whether there is one; ``parts``: of each window those of the
    reference, where it has others.
    """

    documents: Sequence[NDArray[np.int64]]
    hashes: Sequence[str]
    windows: Sequence[tuple[int, Window]]
    bos: int | None
    hits: bool
    of: Role = "model"
    reference: LanguageModel | None = None
    compared: bool = False
    parts: Sequence[Parts] | None = None

    def run(self, model: LanguageModel, budget: Budget, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Losses batch by batch; ``share`` (r, W): the batches r, r + W, r + 2 W, ... only."""
        return score(
            model, self.documents, self.windows, bos=self.bos, hits=self.hits, share=share, budget=budget,
            reference=self.reference, parts=self.parts,
        )  # fmt: skip


class SingleProcess:
    """One process: it loads and scores by itself."""

    rank = 0
    size = 1

    def load(
        self, checkpoint: Checkpoint, argument: str, device: torch.device, dtype: torch.dtype,
        role: Role = "model",
    ) -> LanguageModel:  # fmt: skip
        """The model of a checkpoint that MODEL ``argument`` names, in place of the last one of its role."""
        return checkpoint.load(device, dtype)

    def score(self, model: LanguageModel, request: ScoreRequest, budget: Budget) -> Iterator[Batch]:
        return request.run(model, budget)

    def release(self, result: Any = None, error: BaseException | None = None) -> None:
        """End the run on every rank: the others return ``result``, or raise ``error``."""


class RankGroup(SingleProcess):
    """Several ranks, seen from one of them: rank 0 loads and scores, the others run the worker loop.

    ``group``: the gloo group that they talk in; None is the default group. ``owns_default``: whether this
    object initialised the default group, which ``release`` then destroys; ``pulse``: by which the ranks meet
    before they call each other.
    """

    def __init__(
        self, rank: int, size: int, group: dist.ProcessGroup | None = None, *, owns_default: bool = False,
        pulse: Pulse | None = None,
    ) -> None:  # fmt: skip
        self.rank = rank
        self.size = size
        self.group = group
        self.owns_default = owns_default
        self.pulse = pulse
        self.device_before: int | None = None  # the CUDA device that was current
        self.documents: dict[str, NDArray[np.int64]] = {}  # by hash: those that every rank has
        self.loaded: dict[Role, LanguageModel] = {}  # on other ranks than 0

    @classmethod
    def beside(cls) -> RankGroup:
        """The ranks of a script that has initialised ``torch.distributed``; every one must call this."""
        group = dist.new_group(backend="gloo", timeout=pulse.PATIENCE)
        rank, size = dist.get_rank(), dist.get_world_size()
        return cls(rank, size, group, pulse=Pulse(rank, size))

    @classmethod
    def start(cls, *, parts: bool) -> RankGroup:
        """The ranks that torchrun started; on CUDA each rank uses the card of its local rank.

        ``parts``: models are held in parts, whose activations travel between the cards by NCCL.
        """
        nccl = parts and torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=pulse.PATIENCE)
        rank, size = dist.get_rank(), dist.get_world_size()
        ranks = cls(rank, size, owns_default=True, pulse=Pulse(rank, size))
        if torch.cuda.is_available():
            ranks.device_before = torch.cuda.current_device()
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return ranks

    def load(
        self, checkpoint: Checkpoint, argument: str, device: torch.device, dtype: torch.dtype,
        role: Role = "model",
    ) -> LanguageModel:  # fmt: skip
        self._broadcast(("load", (role, (argument, checkpoint.feeding))))
        model, error = self._attempt(partial(checkpoint.load, device, dtype))
        self._gather(error)
        assert isinstance(model, LanguageModel)
        return model

    def score(self, model: LanguageModel, request: ScoreRequest, budget: Budget) -> Iterator[Batch]:
        self._broadcast(("score", (self._without_known(request), budget.tokens)))
        error = None
        try:
            yield from request.run(model, budget, self._share(model, request))
        except (Exception, SystemExit) as problem:  # a model's own code may leave the program
            error = self._portable(problem)
        for batches, tokens in self._gather(error)[1:]:
            budget.tokens = min(budget.tokens, tokens)
            yield from [] if self._share(model, request) == (0, 1) else batches

    def _share(self, model: LanguageModel, request: ScoreRequest) -> tuple[int, int]:
        """(r, W): of W shares of the passes this rank scores the r-th; all with a model held in parts."""
        together = model.together or (request.reference is not None and request.reference.together)
        return (0, 1) if together else (self.rank, self.size)

    def _without_known(self, request: ScoreRequest) -> ScoreRequest:
        """The request for the other ranks: its documents that have windows and are new to them."""
        scored = {document for document, _ in request.windows}
        documents = list(request.documents)
        for index, (sha256, ids) in enumerate(zip(request.hashes, request.documents, strict=True)):
            if index not in scored or sha256 in self.documents:
                documents[index] = NOT_SENT
            else:
                self.documents[sha256] = ids
        return replace(request, documents=documents, reference=None, compared=request.reference is not None)

    def _with_known(self, request: ScoreRequest) -> ScoreRequest:
        """What another rank makes of :meth:`_without_known`."""
        documents = list(request.documents)
        for index, (sha256, ids) in enumerate(zip(request.hashes, request.documents, strict=True)):
            if len(ids):
                self.documents[sha256] = ids
            documents[index] = self.documents.get(sha256, NOT_SENT)
        return replace(request, documents=documents)

    def release(self, result: Any = None, error: BaseException | None = None) -> None:
        try:
            if error is None or isinstance(error, UserError):
                self._broadcast(("stop", (result, error)))
        except RankLostError:
            if error is None:
                raise
        finally:  # after any other error the others may be in the middle of a cell: the group ends for them
            self._leave()

    def run_worker_loop(
        self, device: str, dtype: str, attention: str, open_argument: Callable[[str], Checkpoint]
    ) -> Any:
        """What every rank but 0 does: load and score what rank 0 asks for, until it releases the others.

        Returns:
            What rank 0 releases the others with.

        Raises:
            UserError: rank 0 refused the request; every rank raises the same.
            RankLostError: another rank has ended.
        """
        try:
            while True:
                action, argument = self._broadcast(None)
                error, result = None, None
                if action == "stop":
                    returned, refusal = argument
                    if refusal is not None:
                        raise refusal
                    return returned
                if action == "load":
                    role, named = argument
                    self.loaded.pop(role, None)  # its memory goes before the next is loaded
                    model, error = self._attempt(
                        partial(_load, open_argument, named, device, dtype, attention)
                    )
                    if error is None:
                        self.loaded[role] = model
                    del model
                else:
                    model = self.loaded[argument[0].of]
                    result, error = self._attempt(partial(self._score_share, model, *argument))
                    del model
                self._gather(error, result)
        finally:
            self._leave()

    def _score_share(
        self, model: LanguageModel, request: ScoreRequest, tokens: int
    ) -> tuple[list[Batch], int]:
        """This rank's batches, and the number of tokens of a pass that fitted in memory."""
        budget = Budget(tokens)
        request = self._with_known(request)
        if request.compared:  # with the model itself where no other one is loaded
            request = replace(request, reference=self.loaded.get("reference", model))
        return list(request.run(model, budget, self._share(model, request))), budget.tokens

    def _broadcast(self, message: tuple[str, Any] | None) -> Any:
        """Rank 0's message, on every rank."""
        assert self.pulse is not None
        self.pulse.meet()
        box = [message]
        try:
            dist.broadcast_object_list(box, src=0, group=self.group)
        except RuntimeError as problem:
            raise RankLostError from problem
        return box[0]

    def _gather(self, error: BaseException | None, result: Any = None) -> list[Any]:
        """Every rank's result, at rank 0; the first error of any rank is raised there."""
        assert self.pulse is not None
        self.pulse.meet()
        boxes: list[Any] | None = [None] * self.size if self.rank == 0 else None
        try:
            dist.gather_object((error, result), boxes, dst=0, group=self.group)
        except RuntimeError as problem:
            raise RankLostError from problem
        for other, _ in boxes or ():
            if other is not None:
                raise other
        return [result for _, result in boxes or ()]

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """A result or an error, for rank 0 to raise."""
        try:
            return work(), None
        except (Exception, SystemExit) as problem:
            return None, self._portable(device_lost(problem) or problem)

    def _portable(self, error: BaseException) -> BaseException:
        """The error in a form that another rank can raise, with this rank's traceback as a note."""
        note = f"on rank {self.rank}:\n" + "".join(traceback.format_exception(error))
        try:
            error = pickle.loads(pickle.dumps(error))
        except Exception:  # a class that cannot be pickled, or not be made again
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(note)
        return error

    def _leave(self) -> None:
        """Leave ``torch.distributed`` and the current CUDA device as they were."""
        if self.pulse is not None:
            self.pulse.leave()
        if self.owns_default:
            dist.destroy_process_group()
        elif self.group is not None:
            dist.destroy_process_group(self.group)
        if self.device_before is not None:
            torch.cuda.set_device(self.device_before)


def _load(
    open_argument: Callable[[str], Checkpoint],
    named: tuple[str, Feeding | None],
    device_name: str,
    dtype: str,
    attention: str,
) -> LanguageModel:
    argument, feeding = named
    checkpoint, device = open_argument(argument), resolve_device(device_name)
    precision = scoring_dtype(dtype, checkpoint, device)
    checkpoint.set_attention(attention, device, precision)
    checkpoint.feeding = feeding
    return checkpoint.load(device, precision)


def launched_rank() -> int | None:
    """This process's rank where torchrun started several; a cluster's own RANK alone means nothing."""
    several = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    return int(os.environ["RANK"]) if several else None


def join_ranks(*, parts: bool = False) -> SingleProcess:
    """The ranks that share this process's run: a script's own group, torchrun's, or this process alone.

    ``parts``: whether models are held in parts, one a rank.
    """
    if dist.is_available() and dist.is_initialized():
        return RankGroup.beside() if dist.get_world_size() > 1 else SingleProcess()
    return SingleProcess() if launched_rank() is None else RankGroup.start(parts=parts)
