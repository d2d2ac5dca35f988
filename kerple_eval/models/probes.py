"""What is measured of a model before it is scored, whatever it came from: is it causal, and do its logits
depend on how many tokens follow?

Log-probabilities of random ids are compared: of a window, of the same window with its last tokens changed,
and of its first tokens alone. A model that sees tokens after the one it predicts from is no language model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.lent import without_gradients
from kerple_eval.types import UserError

LENGTH = 48  # tokens of a probe, unless the model's positions end before
#: Of the largest logit: what rounding may change between rows of one pass, and between two passes.
_ROW = {torch.float64: 1e-8, torch.float32: 1e-4}  # half precision: 5e-2
_PASS = {torch.float64: 1e-6, torch.float32: 1e-3}
_LEAST = -50.0  # log-probabilities below it are masked entries: no loss of a token that occurs


@without_gradients()
def probe(
    logits: Callable[[Tensor], Tensor], vocabulary: int, device: torch.device, dtype: torch.dtype, *,
    longest: int | None = None, avoid: Collection[int] = (), name: str = "the model",
) -> bool | None:  # fmt: skip
    """Whether the model is prefix-invariant: the logits of a prefix do not depend on what follows it.

    None where it cannot be told: windows of fewer than 4 tokens, one id, or no finite logits.

    Args:
        logits: ids ``[B, N]`` on ``device`` -> logits ``[B, N, V]``, as ``logits_of`` gives them.
        vocabulary: V; the ids of the probe are drawn below it.
        dtype: the model's; it decides what is rounding.
        longest: the most tokens that the model takes, None where there is no limit.
        avoid: ids with a meaning of their own (padding, masks), which are not drawn.

    Raises:
        UserError: the model, called ``name``, is not causal.
    """
    length = min(LENGTH, longest or LENGTH)
    allowed = torch.tensor([number for number in range(vocabulary) if number not in avoid])
    if length < 4 or len(allowed) < 2:
        logits(torch.zeros(1, length, dtype=torch.int64, device=device))  # its shape is looked at
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(allowed), (2, length), generator=generator)
    plain = allowed[drawn[0]].to(device)
    other = allowed[(drawn[1] + (drawn[0] == drawn[1])) % len(allowed)].to(device)
    half = length // 2
    late = torch.cat([plain[:-1], other[-1:]])
    early = torch.cat([plain[:half], other[half:]])
    found = logits(torch.stack([plain, late, early]))
    for changed, rows in ((1, length - 1), (2, half)):
        if _disagree(found[0, :rows], found[changed, :rows], _ROW.get(dtype, 5e-2)):
            raise UserError(
                f"{name} sees tokens after the one it predicts from, so its losses are not those of a "
                "language model"
            )
    alone = logits(plain[None, :half])
    disagree = _disagree(found[0, :half], alone[0], _PASS.get(dtype, 5e-2))
    return None if disagree is None else not disagree


def _disagree(one: Tensor, other: Tensor, share: float) -> bool | None:
    """Whether log-probabilities ``[N, V]`` differ by over ``share`` of the largest logit; None: none left.

    Over the entries that are not masked in either, so that a masked one, -inf or a large negative number,
    neither hides a difference nor makes it look small.
    """
    logs = [logits.double().log_softmax(dim=-1) for logits in (one, other)]
    seen = (logs[0] > _LEAST) & (logs[1] > _LEAST)
    if not seen.any():
        return None
    largest = max(float(logits[seen].abs().max()) for logits in (one, other))
    return float((logs[0] - logs[1])[seen].abs().max()) > share * largest


def logits_of(model: LanguageModel, vocabulary: int, inputs: Tensor) -> Tensor:
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
