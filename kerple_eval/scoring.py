"""Windows to losses: the one place where inputs and targets are shifted against each other.

A window's inputs are ``tokens[start:stop]``, after a first-token marker (BOS) where the task's rule
puts one before every window; the logits at its last ``targets`` positions predict
``tokens[first_target : stop + 1]``. Losses are in nats, float32 a target; sums are float64
(:mod:`kerple_eval.stats`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kerple_eval.checkpoints.base import LanguageModel
from kerple_eval.types import Window

#: Input tokens of one forward pass. The CUDA figure is a guess until one is measured.
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 32768}


class NotFiniteError(ArithmeticError):
    """A loss came out as NaN or infinity."""


def batches(windows: Sequence[tuple[int, Window]], tokens_per_pass: int, lead: int = 0) -> list[list[int]]:
    """Indices of (document, window) pairs that share a forward pass.

    Windows of one shape (inputs, targets) go together, in order, at most ``tokens_per_pass`` input
    tokens at a time: a function of the plan alone, so a resumed run repeats the same passes. ``lead``
    tokens stand before every window's own.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (_, window) in enumerate(windows):
        groups.setdefault((window.inputs, window.targets), []).append(index)
    passes = []
    for (inputs, _), members in groups.items():
        size = max(1, tokens_per_pass // (inputs + lead))
        passes += [members[i : i + size] for i in range(0, len(members), size)]
    return passes


def score(
    model: LanguageModel,
    documents: Sequence[NDArray[np.int64]],
    windows: Sequence[tuple[int, Window]],
    *,
    bos: int | None = None,
    share: tuple[int, int] = (0, 1),
    hits: bool = False,
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    """Losses of ``windows`` (pairs of document index and window), one forward pass at a time.

    ``bos`` is the id put before the inputs of every window; such windows are planned at L - 1. Of the
    forward passes, in order, ``share`` (r, W) takes every W-th from the r-th on.
    Yields the indices of the windows scored and, for each, its losses ``[targets]``; with ``hits``
    ``[2, targets]``, the second row 1 where the target was the argmax and 0 elsewhere.

    Raises:
        NotFiniteError: a loss is NaN or infinite; names the document position.
    """
    lead = np.array([] if bos is None else [bos], dtype=np.int64)
    passes = batches(windows, TOKENS_PER_PASS[model.device.type], len(lead))
    for members in passes[share[0] :: share[1]]:
        rows = windows[members[0]][1].targets
        inputs, targets = [], []
        for index in members:
            document, window = windows[index]
            tokens = documents[document]
            inputs.append(np.concatenate([lead, tokens[window.start : window.stop]]))
            targets.append(tokens[window.first_target : window.stop + 1])
        found = _losses(model, np.stack(inputs), np.stack(targets), rows, hits)
        losses = found[:, 0] if hits else found
        if not np.isfinite(losses).all():
            at, target = (int(i) for i in np.argwhere(~np.isfinite(losses))[0])
            document, window = windows[members[at]]
            raise NotFiniteError(
                f"loss of target {window.first_target + target} of document {document} "
                f"is {losses[at, target]}"
            )
        yield members, list(found)


@torch.inference_mode()
def _losses(
    model: LanguageModel, inputs: NDArray[np.int64], targets: NDArray[np.int64], rows: int, hits: bool
) -> NDArray[np.float32]:
    """Losses ``[B, rows]``, or with ``hits`` losses and hits ``[B, 2, rows]``."""
    wanted = torch.from_numpy(targets).to(model.device)
    done, parts = 0, []
    for logits in model.logits(torch.from_numpy(inputs).to(model.device), rows):
        chunk = wanted[:, done : done + logits.shape[1]]
        done += logits.shape[1]
        losses = _cross_entropy(logits, chunk)
        parts.append(torch.stack([losses, _hits(logits, chunk).to(losses)], dim=1) if hits else losses)
    assert done == rows
    return torch.cat(parts, dim=-1).to("cpu", torch.float32).numpy()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log softmax(logits)[target]`` in float32 or better: ``[B, r, V]``, ``[B, r]`` -> ``[B, r]``."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the target has the largest logit, as the lowest id where several do (numpy's argmax, on
    any device): ``[B, r, V]``, ``[B, r]`` -> bool ``[B, r]``.
    """
    largest = logits == logits.amax(dim=-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    first = torch.where(largest, ids, logits.shape[-1]).amin(dim=-1)
    return first == targets
