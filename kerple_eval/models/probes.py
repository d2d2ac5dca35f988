"""What is measured of a model before it is scored, whatever it came from: is it causal, and do its logits
depend on how many tokens follow?

Both probes compare logits of random ids: of a window, of the same window with its last tokens changed, and of
its first tokens alone. A model that sees tokens after the one it predicts from is no language model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.lent import without_gradients
from kerple_eval.types import UserError

LENGTH = 48  # tokens of a probe, unless the model's positions end before
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest logit; half precision: 5e-2


@without_gradients()
def probe(
    model: LanguageModel, vocabulary: int, *, longest: int | None = None, avoid: Collection[int] = ()
) -> bool:
    """Whether the model is prefix-invariant: the logits of a prefix do not depend on what follows it.

    Args:
        model: ready to score.
        vocabulary: V; the ids of the probe are drawn below it.
        longest: the most tokens that the model takes, None where there is no limit.
        avoid: ids with a meaning of their own (padding, masks), which are not drawn.

    Raises:
        UserError: logits of another shape than ``[B, rows, V]``, or a model that is not causal.
    """
    length = min(LENGTH, longest or LENGTH)
    allowed = [number for number in range(vocabulary) if number not in avoid] or list(range(vocabulary))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor(allowed)[torch.randint(len(allowed), (2, length), generator=generator)]
    plain = drawn[0].to(model.device)
    if length < 4:
        logits_of(model, plain[None], vocabulary)
        return False
    half = length // 2
    changed = plain.clone()
    changed[half:] = torch.where(
        plain[half:] == drawn[1, half:].to(model.device), allowed[0], drawn[1, half:]
    )
    before = logits_of(model, torch.stack([plain, changed]), vocabulary)
    if not before.isfinite().all():
        return False  # scoring says which loss is not finite
    tolerance = _TOLERANCE.get(model.dtype, 5e-2) * (1 + float(before.abs().max()))
    if float((before[0, :half] - before[1, :half]).abs().max()) > tolerance:
        raise UserError(
            "the model sees tokens after the one it predicts from, so its losses are not those of a "
            "language model"
        )
    alone = logits_of(model, plain[None, :half], vocabulary)
    return float((before[0, :half] - alone[0]).abs().max()) <= tolerance


def logits_of(model: LanguageModel, inputs: Tensor, vocabulary: int) -> Tensor:
    """All logits ``[B, N, V]`` of ``inputs [B, N]`` in float32 or better, their shape checked."""
    rows = inputs.shape[1]
    chunks: Sequence[Tensor] = list(model.logits(inputs, rows))
    wide = [chunk.to(torch.promote_types(chunk.dtype, torch.float32)) for chunk in chunks]
    logits = torch.cat(wide, dim=1)
    wanted = (*inputs.shape, vocabulary)
    if tuple(logits.shape) != wanted:
        raise UserError(
            f"the model gives logits of shape {tuple(logits.shape)}, expected {wanted} "
            "(batch, tokens, vocabulary)"
        )
    return logits
