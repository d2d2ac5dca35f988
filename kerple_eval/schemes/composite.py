"""Schemes made of schemes: :class:`Stacked`, :class:`Mixed` by layer, and :class:`Combined` with modifiers.

A modifier changes what another scheme does (a window, a scaling of the scores, moved positions) and adds no
positional information itself. Of a combined scheme, the hooks that give a token its position (``embed``,
``rotate``, ``kernel``, ``weight``, ``bias``, ``score``) are the base's, and so is ``softcap``; ``row_scale``
and ``output_gate`` are the products of all parts', ``window`` the smallest, ``visible`` true where all parts
agree. At most one part may ``remap``, have a ``sink`` or ``attend`` otherwise, or give other positions in
training (``augmented``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.schemes.base import Move, Scheme
from kerple_eval.types import Geometry, UserError


class Stacked(Scheme):
    """One scheme, built anew for each layer; hooks are called on ``at(layer)``, never on this module."""

    def __init__(self, parts: Iterable[Scheme]) -> None:
        made = list(parts)
        super().__init__(made[0].geometry)
        self.layers = nn.ModuleList(made)
        self.max_positions = made[0].max_positions
        self.prefix_invariant = made[0].prefix_invariant

    def at(self, layer: int) -> Scheme:
        part = self.layers[layer]
        assert isinstance(part, Scheme)
        return part

    def reset_parameters(self, generator: torch.Generator) -> None:
        for layer in range(len(self.layers)):
            self.at(layer).reset_parameters(generator)

    @torch.no_grad()
    def project_(self) -> dict[str, int]:
        return {
            f"layers.{layer}.{name}": count
            for layer in range(len(self.layers))
            for name, count in self.at(layer).project_().items()
        }

    def begin_step(self, generator: torch.Generator) -> None:
        for layer in range(len(self.layers)):
            self.at(layer).begin_step(generator)

    def implements(self, hook: str) -> bool:
        return self.at(0).implements(hook)


class Mixed(Scheme):
    """Schemes that differ by layer; hooks are called on ``at(layer)``, never on this module.

    Layer n has ``parts[choice[n]]``. A part is built for as many layers as have it, and counts those only.
    """

    def __init__(self, geometry: Geometry, parts: Sequence[Scheme], choice: Sequence[int]) -> None:
        super().__init__(geometry)
        self.parts = nn.ModuleList(parts)
        self._made = list(parts)
        self._places = [(part, choice[:layer].count(part)) for layer, part in enumerate(choice)]
        lengths = [part.max_positions for part in parts if part.max_positions is not None]
        self.max_positions = min(lengths, default=None)
        self.prefix_invariant = all(part.prefix_invariant for part in parts)

    def at(self, layer: int) -> Scheme:
        part, within = self._places[layer]
        return self._made[part].at(within)

    def reset_parameters(self, generator: torch.Generator) -> None:
        for part in self._made:
            part.reset_parameters(generator)

    @torch.no_grad()
    def project_(self) -> dict[str, int]:
        return {
            f"parts.{index}.{name}": count
            for index, part in enumerate(self._made)
            for name, count in part.project_().items()
        }

    def begin_step(self, generator: torch.Generator) -> None:
        for part in self._made:
            part.begin_step(generator)

    def implements(self, hook: str) -> bool:
        return any(part.implements(hook) for part in self._made)


class Combined(Scheme):
    """``base`` with ``modifiers``, by name."""

    def __init__(self, base: Scheme, modifiers: Mapping[str, Scheme]) -> None:
        super().__init__(base.geometry)
        self.base = base
        self.modifiers = nn.ModuleDict(modifiers)
        self.parts = {"": base, **modifiers}  # a plain dict of the modules registered above, by name
        for hooks, does in _ONLY_ONE.items():
            having = [key for key, part in self.parts.items() if any(map(part.implements, hooks))]
            several = [key or type(base).__name__ for key in having]
            if len(several) > 1:
                raise UserError(f"{' and '.join(several)} both {does}; apply only one of them")
        remapping = [name for name, part in modifiers.items() if part.implements("remap")]
        for name, part in modifiers.items():
            if part.implements("augmented"):
                _check_augmented(name, part, base)
        absolute = [h for h in ("embed", "bias", "score") if base.implements(h)]
        if remapping and absolute:
            raise UserError(
                f"{remapping[0]} needs a scheme of relative position (rope, a kernel of distance), not "
                f"{type(base).__name__}, which gives tokens their positions by {absolute[0]}"
            )
        if remapping and not any(map(base.implements, ("rotate", "kernel", "weight", "visible"))):
            unseeing = [name for name in remapping if not modifiers[name].implements("visible")]
            if unseeing:
                raise UserError(
                    f"{unseeing[0]} moves positions, and {type(base).__name__} has none in its attention"
                )
        if remapping and not base.prefix_invariant:
            raise UserError(
                f"{remapping[0]} cannot be combined with a scheme that depends on the window's length"
            )
        windows = [part.window for part in self.parts.values() if part.window is not None]
        self.window = min(windows, default=None)
        self.max_positions = base.max_positions
        self.softcap = base.softcap
        self.prefix_invariant = all(part.prefix_invariant for part in self.parts.values())
        self._by_layer = (
            [
                Combined(base.at(i), {name: part.at(i) for name, part in modifiers.items()})
                for i in range(base.geometry.layers)
            ]
            if any(part.at(0) is not part for part in self.parts.values())
            else []
        )

    def at(self, layer: int) -> Scheme:
        return self._by_layer[layer] if self._by_layer else self

    def implements(self, hook: str) -> bool:
        return any(part.implements(hook) for part in self.parts.values())

    def reset_parameters(self, generator: torch.Generator) -> None:
        for part in self.parts.values():
            part.reset_parameters(generator)

    @torch.no_grad()
    def project_(self) -> dict[str, int]:
        return {
            f"modifiers.{key}.{name}" if key else f"base.{name}": count
            for key, part in self.parts.items()
            for name, count in part.project_().items()
        }

    def begin_step(self, generator: torch.Generator) -> None:
        for part in self.parts.values():
            part.begin_step(generator)

    @property
    def augments(self) -> bool:
        return any(part.augments for part in self.parts.values())

    def augmented(self, positions: Tensor) -> Tensor:
        for part in self.parts.values():
            positions = part.augmented(positions)
        return positions

    def masks(self) -> list[tuple[int, int]]:
        return [mask for part in self.parts.values() for mask in part.masks()]

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.base.embed(x, positions)

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor | None:
        found = (part.row_scale(positions_q, keys) for part in self.parts.values())
        scales = [scale for scale in found if scale is not None]
        return reduce(torch.mul, scales) if scales else None

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.rotate(q, k, positions_q, positions_k)

    def kernel(self, distance: Tensor) -> Tensor | None:
        return self.base.kernel(distance)

    def inline(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
        return self.base.inline(device)

    def weight(self, distance: Tensor) -> Tensor | None:
        return self.base.weight(distance)

    def bias(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        return self.base.bias(positions_q, positions_k)

    def observe(self, x: Tensor) -> Any:
        return self.base.observe(x)

    def decay(self, observed: Any) -> Tensor | None:
        return self.base.decay(observed)

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        extra = (observed,) if self.base.implements("observe") else ()
        return self.base.score(scores, q, k, positions_q, positions_k, *extra)

    def sink(self) -> Tensor | None:
        return next((sink for part in self.parts.values() if (sink := part.sink()) is not None), None)

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        found = (part.visible(positions_q, positions_k) for part in self.parts.values())
        masks = [mask for mask in found if mask is not None]
        return reduce(torch.logical_and, masks) if masks else None

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> Sequence[Move]:
        return [move for part in self.parts.values() for move in part.remap(positions_q, positions_k)]

    def attend(self, scores: Tensor, seen: Tensor, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        for part in self.parts.values():
            if part.implements("attend"):
                return part.attend(scores, seen, positions_q, positions_k)
        return super().attend(scores, seen, positions_q, positions_k)

    def output_gate(self, x: Tensor) -> Tensor | None:
        gates = [gate for part in self.parts.values() if (gate := part.output_gate(x)) is not None]
        return reduce(torch.mul, gates) if gates else None


#: Hooks that one part may define, and what two parts with one of them would do both.
_ONLY_ONE = {
    ("remap",): "move positions",
    ("sink", "attend"): "change the softmax",
    ("augmented",): "change positions in training",
}


def _check_augmented(name: str, part: Scheme, base: Scheme) -> None:
    """``base`` is a function of positions alone, and has values for all that ``part`` may give."""
    who = type(base.at(0)).__name__
    if base.implements("score") or not base.prefix_invariant:
        raise UserError(
            f"{name} needs a scheme that is a function of positions; {who} reads the text or the window"
        )
    longest = getattr(part, "longest", 0)
    if base.max_positions is not None and longest > base.max_positions:
        raise UserError(f"{name}: longest={longest} is beyond the {base.max_positions} positions of {who}")
