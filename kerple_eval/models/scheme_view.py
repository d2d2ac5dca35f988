"""The kernels of a checkpoint as numpy arrays, evaluated in float64: what :mod:`kernel_view` describes.

The stored parameters keep their values; distances, and all arithmetic on them, are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kerple_eval.models.base import Checkpoint
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.schemes.kernel_view import Array
from kerple_eval.types import UserError

#: What makes the bias more than a function of distance.
_BEYOND_DISTANCE = ("remap", "visible")


class SchemeView:
    """A :class:`kerple_eval.schemes.kernel_view.KernelView` of a scheme with its learned parameters."""

    def __init__(self, scheme: Scheme, label: str, name: str, train_length: int | None) -> None:
        self._scheme = scheme
        self.label = label
        self.scheme = name
        self.train_length = train_length
        self.heads = scheme.geometry.heads
        self.window = scheme.window

    def kernel(self, distances: NDArray[np.int64]) -> Array | None:
        return self._of_distance("kernel", distances)

    def weight(self, distances: NDArray[np.int64]) -> Array | None:
        return self._of_distance("weight", distances)

    @torch.no_grad()
    def _of_distance(self, hook: str, distances: NDArray[np.int64]) -> Array | None:
        if not self._scheme.implements(hook):
            return None
        for more in _BEYOND_DISTANCE:
            if self._scheme.implements(more):
                raise UserError(
                    f"{self.label} ({self.scheme}): a modifier makes the bias more than a function "
                    "of distance; --kind matrix draws it"
                )
        values = getattr(self._scheme, hook)(torch.from_numpy(distances).to(torch.float64))
        return None if values is None else _array(values.expand(self.heads, len(distances)))

    @torch.no_grad()
    def matrix(self, length: int, head: int) -> Array:
        positions = torch.arange(length)
        distance = positions[:, None] - positions
        seen = distance >= 0
        if self.window is not None:
            seen &= distance < self.window
        visible = self._scheme.visible(positions, positions)
        if visible is not None:
            seen &= visible
        for far, moved_q, moved_k in self._scheme.remap(positions, positions):
            distance = torch.where(far, moved_q[:, None] - moved_k, distance)
        total = torch.zeros(length, length, dtype=torch.float64)
        every, index = torch.unique(distance.clamp(min=0), return_inverse=True)
        kernel = self._scheme.kernel(every.to(torch.float64))
        if kernel is not None:
            total += kernel[head][index]
        bias = self._scheme.bias(positions, positions)
        if bias is not None:
            total += bias[head]
        return _array(total.masked_fill(~seen, -torch.inf))


def _array(values: Tensor) -> Array:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.float64)


def view(checkpoint: Checkpoint, label: str, hooks: Sequence[str], layer: int | None = None) -> SchemeView:
    """The kernels of ``checkpoint`` that figures draw, by the hooks ``hooks`` (kernel, weight, bias).

    ``layer`` (from 0) is needed where each layer has its own kernels, and refused elsewhere.

    Raises:
        UserError: its scheme defines none of ``hooks``, or has no native form to read them from.
    """
    name = checkpoint.description.scheme
    trained = [part.partition(",")[0].split()[0] for part in name.split(" + ")]  # see format_layers
    if not any(known not in SCHEMES or _has(known, hooks) for known in trained):
        raise _without(label, name, hooks)  # before a large model is read in vain
    try:
        scheme = checkpoint.decoder().scheme
    except UserError as error:
        raise UserError(f"{_who(label, name)}: its kernel cannot be read: {error}") from None
    if not any(scheme.implements(hook) for hook in hooks):
        raise _without(label, name, hooks)
    own = _of_layer(scheme, layer, label, name)
    if not any(own.implements(hook) for hook in hooks):
        what = " or ".join(hooks)
        raise UserError(f"{_who(label, name)}: layer {layer} has no {what} to draw; other layers have")
    return SchemeView(own, label, name, checkpoint.description.train_length)


def _of_layer(scheme: Scheme, layer: int | None, label: str, name: str) -> Scheme:
    layers = scheme.geometry.layers
    own = scheme.at(0) is not scheme
    if own and layer is None:
        raise UserError(f"{label}: {name} differs by layer; choose one, --layer 0 to {layers - 1}")
    if not own and layer is not None:
        raise UserError(f"{label}: {name} is shared by all layers; leave --layer {layer} out")
    if layer is not None and layer >= layers:
        raise UserError(f"--layer {layer}: {label} has layers 0 to {layers - 1}")
    return scheme.at(layer or 0)


def _has(name: str, hooks: Sequence[str]) -> bool:
    """Whether a scheme's class defines one of ``hooks``."""
    made = SCHEMES.load(name)
    return any(getattr(made, hook) is not getattr(Scheme, hook) for hook in hooks)


def _without(label: str, name: str, hooks: Sequence[str]) -> UserError:
    having = ", ".join(known for known in SCHEMES if _has(known, hooks))
    return UserError(f"{_who(label, name)} has no {' or '.join(hooks)} to draw; these schemes have: {having}")


def _who(label: str, name: str) -> str:
    return name if label == name else f"{label} ({name})"
