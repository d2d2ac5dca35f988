"""Schemes made of schemes: :class:`Stacked`, :class:`Mixed` by layer, and :class:`Combined` with modifiers.

A modifier changes what another scheme does (a window, a scaling of the scores, moved positions) and adds no
positional information itself. Of a combined scheme, the hooks that give a token its position (``embed``,
``rotate``, ``kernel``, ``weight``, ``bias``, ``score``) are the base's, and so are ``softcap`` and ``sink``;
``row_scale`` is the product of all parts', ``window`` the smallest, ``visible`` true where all parts agree,
and at most one part may ``remap``.
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
        remapping = [name for name, part in modifiers.items() if part.implements("remap")]
        if len(remapping) > 1:
            raise UserError(f"{' and '.join(remapping)} both move positions; apply only one of them")
        absolute = [h for h in ("embed", "bias", "score") if base.implements(h)]
        if remapping and absolute:
            raise UserError(
                f"{remapping[0]} needs a scheme of relative position (rope, a kernel of distance), not "
                f"{type(base).__name__}, which gives tokens their positions by {absolute[0]}"
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
            [Combined(base.at(i), modifiers) for i in range(base.geometry.layers)]
            if base.at(0) is not base
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
        self.base.begin_step(generator)

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

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        extra = (observed,) if self.base.implements("observe") else ()
        return self.base.score(scores, q, k, positions_q, positions_k, *extra)

    def sink(self) -> Tensor | None:
        return self.base.sink()

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        found = (part.visible(positions_q, positions_k) for part in self.parts.values())
        masks = [mask for mask in found if mask is not None]
        return reduce(torch.logical_and, masks) if masks else None

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> Sequence[Move]:
        return [move for part in self.parts.values() for move in part.remap(positions_q, positions_k)]
