"""The native decoder as a :class:`LanguageModel`: what every format that maps onto it loads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kerple_eval.models.base import LanguageModel, head_rows
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.pruning import PrunedShare


class DecoderModel(LanguageModel):
    """``decoder`` on ``device`` with weights in ``dtype``; ``attention`` as in ``Checkpoint.set_attention``.

    The decoder itself is moved, cast and put into eval mode: pass a copy to keep the original.
    """

    def __init__(
        self, decoder: Decoder, device: torch.device, dtype: torch.dtype, attention: str = "auto"
    ) -> None:
        name = decoder.config.scheme_name
        decoder.eval()  # before the choice of a backend: a scheme may do something else in training
        decoder.backend = self.attention = resolve_backend(attention, decoder.scheme, name, device, dtype)
        self.decoder = decoder.cast(dtype).to(device)
        self.device = device
        self.dtype = dtype

    def take_pruned(self) -> PrunedShare | None:
        taken, self.decoder.pruned = self.decoder.pruned, PrunedShare()
        return taken if self.attention == "pruned" else None

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        features = self.decoder(inputs, rows)
        step = head_rows(self.device, inputs.shape[0], self.decoder.config.vocab_size)
        for chunk in features.split(step, dim=1):
            yield self.decoder.head(chunk)
