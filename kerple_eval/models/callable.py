"""A function of token ids as a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.base import LanguageModel
from kerple_eval.types import UserError


class CallableModel(LanguageModel):
    """A function of ids ``[B, N]`` that gives logits ``[B, N, V]``.

    It may also give a tuple that begins with them, or an object with ``.logits``.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], device: torch.device, dtype: torch.dtype, *, together: bool
    ) -> None:
        self.function = function
        self.device = device
        self.dtype = dtype
        self.together = together

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        """The last ``rows`` of the function's logits."""
        found = self.function(inputs)
        found = getattr(found, "logits", found)
        if isinstance(found, tuple | list) and found:
            found = found[0]
        if not isinstance(found, Tensor):
            raise UserError(
                f"the model returned {type(found).__name__}; expected logits [B, N, V]: a tensor, a tuple "
                "that begins with one, or an object with .logits"
            )
        if found.dim() != 3 or found.shape[:2] != inputs.shape:
            raise UserError(
                f"the model gives logits of shape {tuple(found.shape)} for ids of shape "
                f"{tuple(inputs.shape)}; expected (batch, tokens, vocabulary)"
            )
        yield found[:, -rows:]
