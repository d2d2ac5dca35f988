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

from kerple_eval.models.base import LanguageModel, head_rows
from kerple_eval.models.hf import pieces
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.rope import forget_lengths
from kerple_eval.models.lent import replaced_forwards
from kerple_eval.models.probes import probe
from kerple_eval.support.scratch import ScratchFolder
from kerple_eval.types import UserError


class HfModel(LanguageModel):
    """``placed``: the model stays on the devices where it is, ``device`` being that of ids and logits."""

    scratch: ScratchFolder | None = None  # the files that its weights are read from, where that is during use

    def __init__(
        self,
        model: Any,
        device: torch.device,
        dtype: torch.dtype,
        where: str,
        *,
        placed: bool = False,
        together: bool = False,
    ) -> None:
        self.where = where
        self.together = together
        with foreign(where, "its own code fails"):
            self.model = (model if placed else model.to(device)).eval()
        self.device = device
        self.dtype = dtype
        self.config = model.config
        self.attention = str(getattr(model.config, "_attn_implementation", "own"))
        self.vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        parameter = inspect.signature(model.forward).parameters.get("logits_to_keep")
        self.keeps_rows = parameter is not None
        self.chunked = parameter is not None and "Tensor" in str(parameter.annotation)
        self.chunked = self.chunked and _trunk(model) is not None

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        """By chunk; in pieces with the model's own cache where ``feeding`` says so and the model can."""
        forget_lengths(self.model)
        self._serve(inputs.shape[1])
        feeding = self.feeding
        if feeding is not None and pieces.serves(feeding, self._pass, self.model, inputs, self.dtype):
            yield from pieces.in_pieces(self._pass, self.model, inputs, rows, feeding.piece)
            return
        for logits, _ in self._pass(inputs, rows):
            yield logits

    def _pass(self, inputs: Tensor, rows: int, **cache: Any) -> Iterator[tuple[Tensor, Any]]:
        """One pass over ``inputs [B, N]``: logits of the last ``rows`` positions, ``[B, r, V]`` a chunk, each
        with what the model returned; one chunk without rows where ``rows`` is 0.
        """
        length = inputs.shape[1]
        step = head_rows(self.device, inputs.shape[0], self.vocabulary)
        if not self.chunked or 0 < rows <= step:
            output = self._call(inputs, max(rows, 1) if self.keeps_rows else None, **cache)
            yield output.logits[:, output.logits.shape[1] - rows :], output
            return
        trunk: list[Any] = []
        for start in range(length - rows, length, step) if rows else (length,):
            keep = torch.arange(start, min(start + step, length), device=self.device)
            with _trunk_runs_once(self.model, trunk):
                output = self._call(inputs, keep, **cache)
            yield output.logits, output

    def _serve(self, length: int) -> None:
        if self.config.model_type == "mpt":  # its ALiBi table is cut from one of max_seq_len
            self.config.max_seq_len = max(self.config.max_seq_len, length)

    def _forward(self, inputs: Tensor, rows: int) -> Tensor:
        """``[B, N]`` -> ``[B, rows, V]`` by one plain call."""
        self._serve(inputs.shape[1])
        logits: Tensor = self._call(inputs, rows if self.keeps_rows else None).logits
        return logits[:, -rows:]

    def _call(
        self, inputs: Tensor, keep: int | Tensor | None, *, use_cache: bool = False, **cache: Any
    ) -> Any:
        """What the model returns, with logits of the last ``keep`` positions, or of those that it names; of
        all where None.
        """
        named = {} if keep is None else {"logits_to_keep": keep}
        with foreign(self.where, "its own code fails"):
            output = self.model(input_ids=inputs, use_cache=use_cache, **named, **cache)
        if not hasattr(output, "logits"):
            raise UserError(
                f"{self.where}: gives no logits but {type(output).__name__}: load it with its head, by "
                "AutoModelForCausalLM"
            )
        logits = output.logits
        if (
            not isinstance(logits, Tensor)
            or logits.dim() != 3
            or logits.shape[0] != inputs.shape[0]
            or logits.shape[2] < self.vocabulary
        ):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{self.where}: its own code gives logits {found}, expected a tensor "
                f"[{inputs.shape[0]}, tokens, {self.vocabulary}]"
            )
        return output

    def probe(self, where: str, special: set[int], longest: int | None, *, invariant: bool) -> None:
        """Measure that the model is causal, and prefix-invariant where that is claimed.

        On ids of plain text: models treat ``special`` ones (padding above all) in other ways. ``longest``:
        the longest window that positions serve.

        Raises:
            UserError: the losses would not be those of a language model, or not those that were claimed.
        """

        def logits(inputs: Tensor) -> Tensor:
            return self._forward(inputs, inputs.shape[1])[..., : self.vocabulary]

        measured = probe(
            logits, self.vocabulary, self.device, self.dtype, longest=longest, avoid=special,
            name=f"{where}: the model",
        )  # fmt: skip
        if invariant and measured is False:
            raise UserError(
                f"{where}: the model's losses change with the length of the window, which its architecture "
                "was not known to do; please report it"
            )


def _trunk(model: Any) -> nn.Module | None:
    """The module below the head, or None where the model names none."""
    trunk = getattr(model, getattr(model, "base_model_prefix", "") or "model", None)
    return trunk if isinstance(trunk, nn.Module) else None


@contextlib.contextmanager
def _trunk_runs_once(model: Any, kept: list[Any]) -> Iterator[None]:
    """Inside, the trunk returns what ``kept`` holds, and its first call puts that there.

    Left between chunks, in which the model may score other windows.
    """
    trunk = _trunk(model)
    assert trunk is not None
    forward = trunk.forward

    def replay(*words: Any, **named: Any) -> Any:
        if not kept:
            kept.append(forward(*words, **named))
        return kept[0]

    with replaced_forwards([(trunk, replay)]):
        yield
