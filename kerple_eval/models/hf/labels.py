"""Which inputs reach which tensor: labels that follow tensors through a forward pass on the meta device.

A label marks a tensor that says where tokens stand (a table of frequencies, of learned positions, a mask).
Whatever is computed from it carries the label too. On the meta device shapes are computed and numbers are
not, so that the pass of a large model takes no memory and little time. A branch that asks for a number takes
it for zero, a choice of tokens for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

POSITION = "position"  # computed from a count of tokens: torch.arange or a running sum
_COUNTS = ("arange", "cumsum")
_NUMBERS: dict[str, Any] = {"__bool__": False, "__contains__": False, "item": 0}
_IN_PLACE = ("__setitem__", "copy_")


class Labels(TorchFunctionMode):
    """Inside, every torch function passes on the labels of its arguments.

    ``on_attention`` is called for each softmax over keys and each scaled dot product, with the labels of all
    that it is given; that a query alone is scaled by where it stands tells keys nothing and is left out.
    ``tokens``: how many the pass is over.
    """

    def __init__(self, tokens: int, on_attention: Callable[[frozenset[str]], None]) -> None:
        super().__init__()
        self.tokens = tokens
        self.on_attention = on_attention
        self._labels: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # an id belongs to one tensor for as long as that lives

    def mark(self, tensors: Any, labels: Iterable[str]) -> None:
        found = frozenset(labels)
        for tensor in tree_leaves(tensors) if found else ():
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._labels[id(tensor)] = self._labels.get(id(tensor), frozenset()) | found

    def of(self, values: Any) -> frozenset[str]:
        """All labels of the tensors anywhere in ``values``."""
        return frozenset().union(
            *(self._labels.get(id(leaf), ()) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        )

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _NUMBERS:
            return _NUMBERS[name]
        labels = self.of((args, kwargs))
        if name in _COUNTS:
            labels |= {POSITION}
        if name == "scaled_dot_product_attention":
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            shown = self.of([named["key"], named.get("attn_mask")])
            self.on_attention(self.of(named["query"]) - {POSITION} | shown)
        elif name == "softmax" and self._is_over_keys(args[0] if args else kwargs["input"]):
            self.on_attention(labels)
        result = _all_chosen(name, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        self.mark(args[0] if name in _IN_PLACE else result, labels)
        return result

    def _is_over_keys(self, scores: Tensor) -> bool:
        """Scores ``[B, H, N, K]`` or ``[B H, N, N]``; a softmax over experts is ``[B, N, E]`` at most."""
        square = scores.dim() == 3 and scores.shape[-1] == scores.shape[-2] >= self.tokens
        return scores.dim() > 3 or square


def _all_chosen(name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a choice by a mask gives where it chooses all; None for other functions."""
    chosen = args[1] if name == "__getitem__" else args[0] if args else None
    if not isinstance(chosen, Tensor):
        return None
    if name == "__getitem__" and chosen.dtype == torch.bool:
        return args[0].flatten(0, chosen.dim() - 1)
    if name == "nonzero" or (name == "where" and len(args) == 1):
        indices = torch.zeros(chosen.numel(), chosen.dim(), dtype=torch.int64, device=chosen.device)
        return indices.unbind(1) if name == "where" or kwargs.get("as_tuple") else indices
    return None


def plain(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and dtype that has no label."""
    with torch._C.DisableTorchFunction():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
