"""The hooks by which a positional scheme changes attention.

Shapes: B batch, H heads, d head dim, Q queries, K keys, N tokens, W hidden size. Positions are 0-based
int64; a query i attends to keys j <= i; the distance is D = i - j >= 0 (tokens). A scheme is one module
shared by every layer unless it is ``per_layer``. Each hook does nothing unless the scheme defines it:

* ``embed(x [B, N, W], positions [N])``: changes the token embeddings.
* ``row_scale(positions_q [Q], keys [Q]) -> [1 or H, Q]``: multiplies the scaled scores of a query's row;
  ``keys`` counts the keys that the query sees (int64).
* ``rotate(q [B, H, Q, d], k [B, H, K, d], positions_q [Q], positions_k [K])``.
* ``kernel(distance [n]) -> [H, n]``: added to the scaled scores; ``weight(distance [n]) -> [H, n]``
  multiplies the scaled scores before that. Pure functions of distance: the fast path, O(H L) memory.
* ``bias(positions_q [Q], positions_k [K]) -> [H, Q, K]``: added, where absolute positions matter.
* ``score(scores [B, H, Q, K], q, k, positions_q, positions_k)``: the new scores, where content matters. A
  scheme that reads the hidden states too computes what it needs once a layer, ``observe(x [B, N, W])``, and
  receives that as the sixth argument of ``score``. Where ``score`` adds ``c_i - c_j`` and no more, with c
  never increasing, ``decay(observed) -> [B, H, N]`` gives c, so that what is far down can be left out.
* ``softcap`` c: scaled scores s become ``c tanh(s / c)``, before weight, kernel and bias.
* ``sink() -> [H]``: one more logit of every row's softmax, without a key or value of its own.
* ``window``: queries see only keys at D < window; ``visible(positions_q, positions_k) -> bool [Q, K]`` for
  any other mask, which ``masks`` states too where it has the form "D < near or j < first".
* ``remap(positions_q, positions_k) -> [(far bool [Q, K], positions_q' [Q], positions_k' [K]), ...]``: where a
  ``far`` is true, ``rotate`` uses the positions i' and j', and ``kernel`` and ``weight`` use D' = i' - j'.
  i' is a function of i alone and j' of j alone. No pair is far in two of them; one that is in none keeps its
  distance.

* ``attend(scores [B, H, Q, K], seen bool [Q, K], positions_q [Q], positions_k [K]) -> [B, H, Q, K]``: the
  weights of the values, in place of a softmax over the keys that are seen and the sink.
* ``output_gate(x [B, N, W]) -> [B, H, N, d or 1]``: multiplies attention's output; x is the layer's input.
* ``augmented(positions [N]) -> [N]``: other positions while training, increasing; all hooks get them.

* ``inline(device) -> f(distance, head)``: ``kernel`` for one distance and one head number, both scalar
  tensors, for kernels that are cheaper to compute inside a fused loop than to look up.

``bias``, ``score``, ``visible``, ``remap`` and ``attend`` are called for one chunk of queries at a time.
Distances are float32, or float64 when the model runs in float64, never lower (the KERPLE release rounds
them to bfloat16: distances above 256 collide there); kernels return the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kerple_eval.types import Geometry

#: Pairs that take other positions: (far bool [Q, K], positions_q' [Q], positions_k' [K]).
Move = tuple[Tensor, Tensor, Tensor]


class Scheme(nn.Module):
    """Base of every positional scheme."""

    #: Closed intervals kept by projection (``project_``) at load and after each optimiser step;
    #: parameter name -> (lowest, highest), None for open. Stated here once; forward never clamps.
    constraints: Mapping[str, tuple[float | None, float | None]] = {}

    #: Longest position the scheme has values for; None where it is defined for every position.
    max_positions: int | None = None

    #: Keys at this distance and beyond are not seen; None: all are.
    window: int | None = None

    #: Scaled scores are kept within (-softcap, softcap); None: they are not.
    softcap: float | None = None

    #: Whether each layer has its own copy, with its own parameters.
    per_layer: ClassVar[bool] = False

    #: Whether it needs ``factor=`` to extend a trained model (``extend=``).
    needs_factor: ClassVar[bool] = False

    #: Whether losses are the same whatever follows; an instance may differ from its class by its options.
    prefix_invariant: bool = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Set initial values; every random draw uses ``generator``."""

    @torch.no_grad()
    def project_(self) -> dict[str, int]:
        """Put constrained parameters back into their intervals; how many values moved, by name."""
        moved = {}
        for name, (lowest, highest) in self.constraints.items():
            parameter = self.get_parameter(name)
            before = parameter.clone()
            parameter.clamp_(min=lowest, max=highest)
            changed = int((parameter != before).sum())
            if changed:
                moved[name] = changed
        return moved

    def at(self, layer: int) -> Scheme:
        """The scheme of one layer (0-based)."""
        return self

    def begin_step(self, generator: torch.Generator) -> None:
        """Called before each training step, for schemes that augment positions at random."""

    @property
    def augments(self) -> bool:
        """Whether ``augmented`` may change positions now: while training alone."""
        return False

    def augmented(self, positions: Tensor) -> Tensor:
        return positions

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def row_scale(self, positions_q: Tensor, keys: Tensor) -> Tensor | None:
        return None

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def kernel(self, distance: Tensor) -> Tensor | None:
        return None

    def inline(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
        return None

    def weight(self, distance: Tensor) -> Tensor | None:
        return None

    def bias(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        return None

    def observe(self, x: Tensor) -> Any:
        return None

    def score(
        self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor,
        observed: Any = None,
    ) -> Tensor:  # fmt: skip
        return scores

    def decay(self, observed: Any) -> Tensor | None:
        return None

    def sink(self) -> Tensor | None:
        return None

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        return None

    def masks(self) -> list[tuple[int, int]]:
        """(near, first) of every mask: a key is seen where D < near or j < first (both in tokens)."""
        return [] if self.window is None else [(self.window, 0)]

    def count_keys(self, positions_q: Tensor) -> Tensor:
        """How many keys each query sees: positions ``[Q]`` -> int64 ``[Q]``.

        A mask hides the keys ``first .. i - near``; what none of them hides is seen.
        """
        hidden = torch.zeros_like(positions_q)
        end = torch.zeros_like(positions_q)  # every key before it is counted already, as hidden or seen
        for near, first in sorted(self.masks(), key=lambda mask: mask[1]):
            start, stop = end.clamp(min=first), positions_q - near + 1
            hidden += (stop - start).clamp(min=0)
            end = torch.maximum(end, stop)
        return positions_q + 1 - hidden

    def remap(self, positions_q: Tensor, positions_k: Tensor) -> Sequence[Move]:
        return ()

    def attend(self, scores: Tensor, seen: Tensor, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        scores, sink = scores.masked_fill(~seen, -torch.inf), self.sink()
        if sink is None:
            return scores.softmax(dim=-1)
        column = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]

    def output_gate(self, x: Tensor) -> Tensor | None:
        return None

    def implements(self, hook: str) -> bool:
        """Whether the scheme defines ``hook``."""
        return getattr(type(self), hook) is not getattr(Scheme, hook)
