"""Windows to losses: the only code that shifts inputs and targets against each other.

A window's inputs are ``tokens[start:stop]``, after a first-token marker (BOS) where the task's rule
puts one before every window; the logits at its last ``targets`` positions predict
``tokens[first_target : stop + 1]``. Losses are in nats, float32 per target; sums are float64
(:mod:`kerple_eval.stats`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.divergence import ROWS, Parts, RowReader, argmax, compare_rows
from kerple_eval.models.lent import without_gradients
from kerple_eval.types import Window

#: Input tokens of one forward pass. The CUDA figure is a guess until one is measured.
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 32768}


class NotFiniteError(ArithmeticError):
    """A loss is NaN or infinite."""


def batches(
    windows: Sequence[tuple[int, Window]], tokens_per_pass: int, prefix: int = 0, ranks: int = 1
) -> list[list[int]]:
    """Indices of (document, window) pairs that share a forward pass.

    Windows of one shape (inputs, targets) go together, in order, at most ``tokens_per_pass`` input
    tokens at a time: a function of the plan alone, so a resumed run repeats the same passes. ``prefix``
    tokens stand before every window's own. ``ranks`` share the passes: none takes more than its part of a
    shape's windows.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (_, window) in enumerate(windows):
        groups.setdefault((window.inputs, window.targets), []).append(index)
    passes = []
    for (inputs, _), members in groups.items():
        size = min(max(1, tokens_per_pass // (inputs + prefix)), -(-len(members) // ranks))
        passes += [members[i : i + size] for i in range(0, len(members), size)]
    return passes


def pass_ranks(device: torch.device, ranks: int) -> int:
    """By how many ranks the size of a pass is limited (:func:`batches`).

    A card's pass is large enough to hold all windows of a cell, which would leave the other ranks idle. On
    the CPU passes are small and do not depend on the ranks, so that the losses are the same to the bit.
    """
    return ranks if device.type == "cuda" else 1


class Budget:
    """Input tokens of a forward pass. On CUDA it is halved where memory runs out, for good."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def halve(self, tokens: int) -> None:
        """A pass of ``tokens`` did not fit."""
        self.tokens = min(self.tokens, tokens // 2)


Batch = tuple[list[int], list[NDArray[np.float32]]]


def score(
    model: LanguageModel,
    documents: Sequence[NDArray[np.int64]],
    windows: Sequence[tuple[int, Window]],
    *,
    bos: int | None = None,
    share: tuple[int, int] = (0, 1),
    hits: bool = False,
    budget: Budget | None = None,
    reference: LanguageModel | None = None,
    parts: Sequence[Parts] | None = None,
) -> Iterator[Batch]:
    """Losses of ``windows`` (pairs of document index and window), one forward pass at a time.

    ``bos`` is the id put before the inputs of every window; such windows are planned at L - 1. Of the
    forward passes, in order, ``share`` (r, W) takes every W-th from the r-th on. ``budget``: the tokens of
    a pass, the device's own unless given; a pass that does not fit in CUDA memory is split.
    ``reference``: a model on the same device that predicts the same targets, from the same windows or, for
    each window, from its ``parts``. Both models' chunks of logits are formed side by side, a chunk of each.
    Yields the indices of the windows scored and, for each, its losses ``[targets]``; with ``hits`` or a
    reference ``[rows, targets]``: losses, then 1 where the target was the argmax and 0 elsewhere, then
    what :data:`kerple_eval.models.divergence.ROWS` names.

    Raises:
        NotFiniteError: a loss or a divergence is NaN or infinite; names the document position.
    """
    prefix = np.array([] if bos is None else [bos], dtype=np.int64)
    budget = budget or Budget(TOKENS_PER_PASS[model.device.type])
    passes = batches(windows, budget.tokens, len(prefix), pass_ranks(model.device, share[1]))
    runner = _Passes(model, documents, windows, prefix, hits=hits, reference=reference, parts=parts)
    waiting: list[_Pending] = []  # on CUDA a pass is computed while the losses of the one before are copied
    for members in passes[share[0] :: share[1]]:
        for part, found in runner.run(members, budget):
            waiting.append(_Pending(part, found))
            if len(waiting) > (model.device.type == "cuda"):
                yield runner.read(waiting.pop(0))
    for pending in waiting:
        yield runner.read(pending)


class _Pending:
    """Losses of the windows ``members``; on CUDA on their way to the CPU, and no later pass is waited for."""

    def __init__(self, members: list[int], losses: Tensor) -> None:
        self.members = members
        self._losses = losses
        self._copied: torch.cuda.Event | None = None
        if losses.device.type == "cuda":
            self._losses = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            self._losses.copy_(losses, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(losses.device))

    def losses(self) -> NDArray[np.float32]:
        if self._copied is not None:
            self._copied.synchronize()
        found: NDArray[np.float32] = self._losses.numpy()
        return found


class _Passes:
    """Forward passes over windows of ``documents``, each with the ids ``prefix`` before it."""

    def __init__(
        self,
        model: LanguageModel,
        documents: Sequence[NDArray[np.int64]],
        windows: Sequence[tuple[int, Window]],
        prefix: NDArray[np.int64],
        *,
        hits: bool,
        reference: LanguageModel | None,
        parts: Sequence[Parts] | None,
    ) -> None:
        self.model = model
        self.documents = documents
        self.windows = windows
        self.prefix = prefix
        self.hits = hits
        self.reference = reference
        self.parts = parts
        self.kept = 1 + hits + (0 if reference is None else len(ROWS))

    def run(self, members: list[int], budget: Budget) -> Iterator[tuple[list[int], Tensor]]:
        """Score windows of one shape in one pass, or in several where memory does not hold one.

        Yields the indices of a pass's windows and their losses, still on the device.
        """
        inputs = self.windows[members[0]][1].inputs + len(self.prefix)
        todo = [members]
        while todo:
            part = todo.pop(0)
            most = max(1, budget.tokens // inputs)
            if len(part) > most:
                todo = [part[i : i + most] for i in range(0, len(part), most)] + todo
                continue
            found = None
            try:
                found = self._losses(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            if found is not None:
                yield part, found
                continue
            # Outside the handler, whose traceback would hold the tensors that did not fit.
            budget.halve(len(part) * inputs)
            todo.insert(0, part)
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    @without_gradients()
    def _losses(self, members: list[int]) -> Tensor:
        """Losses ``[B, targets]``, or with what else is kept ``[B, rows, targets]``, on the device."""
        targets = []
        for index in members:
            document, window = self.windows[index]
            targets.append(self.documents[document][window.first_target : window.stop + 1])
        rows = len(targets[0])
        wanted = _to_device(np.stack(targets), self.model.device)
        # One tensor for all chunks: small ones kept between the large ones would hold the heap's pages.
        found = torch.empty(len(members), self.kept, rows, dtype=torch.float32, device=self.model.device)
        references = self._reference_rows(members)
        done = 0
        for logits in self.model.logits(self._inputs([self.windows[index] for index in members]), rows):
            part = slice(done, done + logits.shape[1])
            chunk, done = wanted[:, part], part.stop
            found[:, 0, part] = _loss_on(logits.device.type)(logits, chunk)
            if self.hits:
                found[:, 1, part] = (argmax(logits) == chunk).to(found)
            for some, reference in references:
                mine = (logits, chunk) if len(some) == len(members) else (logits[some], chunk[some])
                found[some, -len(ROWS) :, part] = compare_rows(*mine, reference)
        assert done == rows
        return found if self.kept > 1 else found[:, 0]

    def _inputs(self, windows: Sequence[tuple[int, Window]]) -> Tensor:
        """Input ids ``[B, inputs]`` of windows of one shape, on the device."""
        inputs = [
            np.concatenate([self.prefix, self.documents[document][window.start : window.stop]])
            for document, window in windows
        ]
        return _to_device(np.stack(inputs), self.model.device)

    def _reference_rows(self, members: list[int]) -> list[tuple[list[int], RowReader]]:
        """The reference's logits of the windows of a pass: places in the pass that share its passes, too."""
        if self.reference is None:
            return []
        alike: dict[tuple[tuple[int, int, int], ...], list[int]] = {}
        for place, index in enumerate(members):
            first = self.windows[index][1].first_target
            shape = tuple((w.inputs, w.first_target - first, w.targets) for w, _ in self._parts(index))
            alike.setdefault(shape, []).append(place)
        return [
            (places, RowReader(self._reference_logits([members[place] for place in places])))
            for places in alike.values()
        ]

    def _parts(self, index: int) -> Parts:
        window = self.windows[index][1]
        return [(window, window.targets)] if self.parts is None else self.parts[index]

    def _reference_logits(self, members: list[int]) -> Iterator[Tensor]:
        """The reference's logits ``[B, r, V]`` of the targets of windows whose parts have the same shapes."""
        assert self.reference is not None
        every = [(self.windows[index][0], self._parts(index)) for index in members]
        for number, (window, wanted) in enumerate(every[0][1]):
            left = wanted
            inputs = self._inputs([(document, parts[number][0]) for document, parts in every])
            for logits in self.reference.logits(inputs, window.targets):
                if left:
                    yield logits[:, :left]
                left -= min(left, logits.shape[1])

    def read(self, pending: _Pending) -> Batch:
        """Losses ``[targets]`` of each window (or ``[rows, targets]``), on the CPU.

        Raises:
            NotFiniteError: one of them is NaN or infinite.
        """
        members, found = pending.members, pending.losses()
        named = {"loss": found[:, 0] if self.kept > 1 else found}
        if self.reference is not None:
            named["divergence"] = found[:, -len(ROWS)]
        for name, values in named.items():
            if not np.isfinite(values).all():
                at, target = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
                document, window = self.windows[members[at]]
                raise NotFiniteError(
                    f"{name} of target {window.first_target + target} of document {document} "
                    f"is {values[at, target]}"
                )
        return members, list(found)


def _to_device(ids: NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(ids)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log softmax(logits)[target]`` in float32 or better: ``[B, r, V]``, ``[B, r]`` -> ``[B, r]``."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


@cache
def _loss_on(device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """:func:`_cross_entropy`; on CUDA as one compiled kernel, which forms no float32 copy of the logits.

    Where it cannot be compiled (triton needs a C compiler), torch's own operations compute the same, slower.
    """
    if device != "cuda":
        return _cross_entropy
    compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(_cross_entropy, dynamic=True, fullgraph=True)
    try:
        compiled(torch.zeros(2, 3, 8, device=device), torch.zeros(2, 3, dtype=torch.int64, device=device))
    except Exception as problem:  # torch, triton and the compiler share no class of errors
        words = " ".join(str(problem).split())[:80]
        warnings.warn(f"losses are computed uncompiled, which is slower: {words}", stacklevel=2)
        return _cross_entropy
    return compiled
