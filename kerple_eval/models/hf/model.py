"""A transformers model ready to score: its own forward, with the head on scored rows only, by chunk.

The trunk runs once a window. The head's path (final norm as far as it is there, soft caps, scales,
the vocabulary matrix) is the model's own: its ``forward`` is called once a chunk with
``logits_to_keep`` naming the chunk's positions, and the trunk's output of the first call stands in for
the later ones. So [rows, V] need never exist at once, and nothing about a head is known here.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.hf.rope import forget_lengths
from kerple_eval.types import UserError

HEAD_CHUNK_ELEMENTS = 1 << 23  # logits formed at once: 32 MB in float32
_PROBE = 8  # tokens of the check that a model is causal


class HfModel(LanguageModel):
    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, where: str) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.dtype = dtype
        self.config = model.config
        self.attention = str(getattr(model.config, "_attn_implementation", "own"))
        self.vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        parameter = inspect.signature(model.forward).parameters.get("logits_to_keep")
        self.keeps_rows = parameter is not None
        self.chunked = parameter is not None and "Tensor" in str(parameter.annotation)
        self.chunked = self.chunked and _trunk(model) is not None
        self._check_causal(where)

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        forget_lengths(self.model)
        if self.config.model_type == "mpt":  # its ALiBi table is cut from one of max_seq_len
            self.config.max_seq_len = max(self.config.max_seq_len, inputs.shape[1])
        step = max(1, HEAD_CHUNK_ELEMENTS // (inputs.shape[0] * self.vocabulary))
        if not self.chunked or rows <= step:
            yield self._forward(inputs, rows)
            return
        first = inputs.shape[1] - rows
        with _trunk_runs_once(self.model):
            for start in range(first, inputs.shape[1], step):
                stop = min(start + step, inputs.shape[1])
                keep = torch.arange(start, stop, device=self.device)
                yield self.model(input_ids=inputs, use_cache=False, logits_to_keep=keep).logits

    def _forward(self, inputs: Tensor, rows: int) -> Tensor:
        """``[B, N]`` -> ``[B, rows, V]`` by one plain call."""
        keep = {"logits_to_keep": rows} if self.keeps_rows else {}
        logits: Tensor = self.model(input_ids=inputs, use_cache=False, **keep).logits
        return logits[:, -rows:]

    @torch.inference_mode()
    def _check_causal(self, where: str) -> None:
        """Logits before a changed last token stay what they were; those of an encoder would not."""
        plain = torch.arange(_PROBE, device=self.device) % self.vocabulary
        changed = plain.clone()
        changed[-1] = (changed[-1] + 1) % self.vocabulary
        before = self._forward(torch.stack([plain, changed]), _PROBE)[:, :-1].float()
        if not before.isfinite().all():
            return  # scoring will say which loss is not finite
        tolerance = 1e-3 if self.dtype == torch.float32 else 5e-2
        if (before[0] - before[1]).abs().max() > tolerance * (1 + before.abs().max()):
            raise UserError(
                f"{where}: the model sees tokens after the one it predicts from, so its losses are not those "
                "of a language model"
            )


def _trunk(model: Any) -> nn.Module | None:
    """The module below the head, or None where the model names none."""
    trunk = getattr(model, getattr(model, "base_model_prefix", "") or "model", None)
    return trunk if isinstance(trunk, nn.Module) else None


@contextlib.contextmanager
def _trunk_runs_once(model: Any) -> Iterator[None]:
    """Inside, the second and later calls of the trunk return what the first one did."""
    trunk = _trunk(model)
    assert trunk is not None
    forward = trunk.forward
    kept: list[Any] = []

    def replay(*words: Any, **named: Any) -> Any:
        if not kept:
            kept.append(forward(*words, **named))
        return kept[0]

    trunk.forward = replay  # shadows the class's method until it is deleted
    try:
        yield
    finally:
        del trunk.forward
