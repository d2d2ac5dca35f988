"""A transformers model whose attention is computed here, with modifiers: checked first without them.

Before a model is scored, its attention as computed here must give the model's own logits, to ``1e-5`` of the
largest, in float32, on a few lengths and past each local mask it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.hf.attention import OwnAttention
from kerple_eval.models.hf.extension import Method
from kerple_eval.models.hf.foreign import one_line
from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.hf.rope import forget_lengths
from kerple_eval.models.hf.rotation import answered_by
from kerple_eval.models.lent import without_gradients
from kerple_eval.types import UserError

TOLERANCE = 1e-5  # of the largest logit
_LENGTHS = (5, 24, 61)  # tokens of the check, and as many past a local mask as _PAST
_PAST = 19
_ROWS = 64  # last positions whose logits are compared


class ExtendedModel(HfModel):
    """``model`` with the modifiers of ``method`` applied to its attention; no weight is touched.

    ``special``: ids that are no plain text; ``longest``: the longest window its positions serve;
    ``answering``: rotary modules with the method's frequencies, by the names of the model's own, where its
    configuration does not have them already. Further arguments as in :class:`HfModel`.

    Raises:
        UserError: the attention computed here is not the model's own.
    """

    def __init__(
        self, model: Any, device: torch.device, dtype: torch.dtype, where: str, *,
        method: Method, special: Collection[int] = (), longest: int | None = None,
        answering: Mapping[str, nn.Module] | None = None, placed: bool = False, together: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, device, dtype, where, placed=placed, together=together)
        self.method = method
        self.own: OwnAttention | None = None
        self.answering: Mapping[str, nn.Module] = {}
        if method.modifiers:
            self.own = self._own_attention(method, special, longest)
            self.own.rotations.answering |= answering or {}
            self.attention = "chunks"
        self.answering = answering or {}

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        if self.feeding is not None and not self.method.prefix_invariant:
            self.feeding.refused = "its positions follow the length of the window"
        return super().logits(inputs, rows)

    def _own_attention(self, method: Method, special: Collection[int], longest: int | None) -> OwnAttention:
        """The model's attention with the modifiers, after it was found to be the model's own without."""
        self.plain = torch.tensor([n for n in range(self.vocabulary) if n not in special] or [0])
        with without_gradients(), in_float32(self.model):
            attention = OwnAttention(self.model, self._ids(9), method.geometry, self.where)
            local = {size for size in attention.local.values() if size is not None}
            for length in (*_LENGTHS, *(size + _PAST for size in sorted(local))):
                if longest is None or length <= longest:
                    self._compare(attention, length)
        attention.apply(method.modifiers)
        return attention

    def _ids(self, length: int) -> Tensor:
        drawn = torch.randint(len(self.plain), (1, length), generator=torch.Generator().manual_seed(length))
        return self.plain[drawn].to(self.device)

    def _compare(self, attention: OwnAttention, length: int) -> None:
        rows, ids = min(length, _ROWS), self._ids(length)
        theirs = self._forward(ids, rows).double()
        try:
            with attention.installed():
                ours = self._forward(ids, rows).double()
        except UserError as error:
            raise attention.rotations.refusal(one_line(error)) from error
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= TOLERANCE:
            raise attention.rotations.refusal(
                f"without a method its logits differ by {difference:.1e} of the largest at {length} tokens, "
                "so it does something that is not known here"
            )

    def _call(
        self, inputs: Tensor, keep: int | Tensor | None, *, use_cache: bool = False, **cache: Any
    ) -> Any:
        for module in self.answering.values():
            forget_lengths(module)
        with self.own.installed() if self.own else answered_by(self.model, self.answering):
            return super()._call(inputs, keep, use_cache=use_cache, **cache)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Inside, modules compute with their tensors of half precision cast to float32, one module at a time."""
    kept: dict[nn.Module, list[tuple[dict[str, Any], str, Tensor]]] = {}

    def widen(module: nn.Module, _: Any) -> None:
        kept[module] = [
            (held, name, tensor)
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None and tensor.is_floating_point() and tensor.itemsize < 4
        ]
        for held, name, tensor in kept[module]:
            held[name] = tensor.float()

    def narrow(module: nn.Module, *_: Any) -> None:
        for held, name, tensor in kept.pop(module, []):
            held[name] = tensor

    hooks = [
        hook
        for module in model.modules()
        for hook in (
            module.register_forward_pre_hook(widen),
            module.register_forward_hook(narrow, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
