"""The native decoder as a :class:`LanguageModel`: what every format that maps onto it loads."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from kerple_eval.models.base import LanguageModel, head_rows
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.pruning import PrunedShare
from kerple_eval.models.probes import logits_of, probe
from kerple_eval.types import UserError


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


def check_scheme(decoder: Decoder) -> None:
    """Measure of a scheme from elsewhere what the package's own schemes are tested for.

    Raises:
        UserError: it sees later tokens, or its logits depend on how many follow although it says otherwise.
    """
    scheme, name = decoder.scheme, decoder.config.scheme_name
    if all(type(part).__module__.partition(".")[0] in ("kerple_eval", "torch") for part in scheme.modules()):
        return
    vocabulary = decoder.config.vocab_size
    model = DecoderModel(deepcopy(decoder), torch.device("cpu"), torch.float32)
    logits = partial(logits_of, model, vocabulary)
    measured = probe(
        logits, vocabulary, model.device, model.dtype, longest=scheme.max_positions, name=f"scheme {name}: it"
    )
    if scheme.prefix_invariant and measured is False:
        raise UserError(
            f"scheme {name}: its logits change with the number of tokens that follow; say so by "
            "prefix_invariant = False in its class"
        )
