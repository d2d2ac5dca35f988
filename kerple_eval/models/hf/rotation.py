"""The rotary positions of a transformers model, taken out of its forward and applied at any positions.

A model's rotary module turns positions into cosines and sines once a pass, and each attention layer applies
them by ``apply_rotary_pos_emb`` of its modelling file. Inside :meth:`Rotations.unrotated` the rotary modules
answer cos 1 and sin 0, so that attention receives queries and keys before rotation, and the true answers are
kept. Which layers rotate, by which call and which components of a head, is measured (:meth:`find_layers`):
what is zero where the answer is zero is rotated by it.

Source: transformers, ``modeling_rope_utils.py`` and ``models/*/modeling_*.py`` (release 5.24).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.types import UserError

#: One call of a rotary module in a pass: the module's name, and what else than positions it was given.
Call = tuple[str, tuple[tuple[str, Any], ...]]

_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True)
class Turn:
    """How a layer rotates its heads: components ``first`` to ``stop - 1``, by the answer to ``call``."""

    call: Call
    first: int
    stop: int


class Answer:
    """What a rotary module answered in the pass at hand, and what it would at other positions."""

    def __init__(self, cos: Tensor, sin: Tensor, positions: Tensor, compute: Callable[[Tensor], Any]) -> None:
        """cos and sin ``[..., N, r]`` at the pass's own ``positions [..., N]``, 0 to N - 1."""
        self.cos, self.sin = cos, sin
        self.positions = positions
        self.compute = compute

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin ``[..., n, r]`` at ``positions [n]``, whole or fractional."""
        first, last = positions.aminmax()  # a pair that is not in a move may stand below 0
        if not positions.is_floating_point() and first >= 0 and last < self.cos.shape[-2]:
            return self.cos.index_select(-2, positions), self.sin.index_select(-2, positions)
        found: tuple[Tensor, Tensor] = self.compute(positions.expand(*self.positions.shape[:-1], -1))
        return found


class Rotations:
    """The rotary modules of ``model``, and others that may come to answer in their place.

    Raises:
        UserError: the model has none that can be asked for other positions.
    """

    def __init__(self, model: nn.Module, where: str) -> None:
        self.where = where
        self.name = type(model).__name__
        own = rotary_modules(model)
        if not own:
            raise self.refusal("no module of it answers with rotary positions")
        self.modules = own
        self.answering = dict(own)
        self.answers: dict[Call, Answer] = {}
        self.calls: list[Call] = []
        self.zeroed: Call | None = None
        self.turns: dict[nn.Module, Turn] = {}

    def refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self.where}: {self.name} cannot be extended by other attention: {reason}; extend=linear, ntk, "
            "dynamic, yarn, llama3, longrope and theta change its frequencies alone"
        )

    @contextmanager
    def unrotated(self) -> Iterator[None]:
        """Inside, the rotary modules answer as if every position were 0, and ``answers`` has the truth."""
        self.answers = {}
        try:
            with _forwards((module, self._forward(name)) for name, module in self.modules.items()):
                yield
        finally:
            self.answers = {}

    def _forward(self, name: str) -> Callable[..., tuple[Tensor, Tensor]]:
        module = self.answering[name]
        forward = type(module).forward
        signature = inspect.signature(forward)
        frozen = inspect.unwrap(forward)  # without the update of frequencies by the window's length

        def answer(*words: Any, **named: Any) -> tuple[Tensor, Tensor]:
            given = signature.bind(module, *words, **named).arguments
            positions = given["position_ids"]
            counted = torch.arange(positions.shape[-1]).to(positions)
            if not torch.equal(positions, counted.expand_as(positions)):
                raise self.refusal("its positions do not count from 0")
            further = {k: v for k, v in list(given.items())[1:] if k != "position_ids"}
            truth = forward(module, position_ids=positions, **further)
            if not (isinstance(truth, tuple) and len(truth) == 2 and truth[0].shape == truth[1].shape):
                raise self.refusal("its rotary module answers no cosines and sines")

            def compute(at: Tensor) -> Any:
                return frozen(module, position_ids=at, **further)

            call = (name, tuple((k, v) for k, v in further.items() if not isinstance(v, Tensor)))
            self.answers[call] = Answer(*truth, positions, compute)
            if call not in self.calls:
                self.calls.append(call)
            return torch.full_like(truth[0], call != self.zeroed), torch.zeros_like(truth[1])

        return answer

    def find_layers(self, received: Callable[[], Sequence[tuple[nn.Module, Tensor]]]) -> None:
        """Find out which layers rotate what.

        ``received`` makes a short pass and gives attention's modules in order with their queries
        ``[B, H, N, d]``; called once plain and once for each call of a rotary module with its answer zero.
        """
        before = [_zero_components(q) for _, q in received()]
        for call in list(self.calls):
            self.zeroed = call
            try:
                found = received()
            finally:
                self.zeroed = None
            for (module, q), already in zip(found, before, strict=True):
                turned = (_zero_components(q) & ~already).nonzero().flatten().tolist()
                if not turned:
                    continue
                first, stop = turned[0], turned[-1] + 1
                if len(turned) != stop - first or module in self.turns:
                    raise self.refusal("it rotates its heads in a way that is not known here")
                self.turns[module] = Turn(call, first, stop)

    def rotate(
        self, module: nn.Module, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q ``[B, H, Q, d]`` and k ``[B, H, K, d]`` rotated as the layer does, at other positions."""
        turn = self.turns.get(module)
        if turn is None:
            return q, k
        answer, apply = self.answers[turn.call], self._apply(module)
        turned_q, turned_k = q[..., turn.first : turn.stop], k[..., turn.first : turn.stop]
        turned_q = apply(turned_q, turned_q, *answer.at(positions_q))[0]
        turned_k = apply(turned_k, turned_k, *answer.at(positions_k))[1]
        return _put(q, turned_q, turn), _put(k, turned_k, turn)

    def _apply(self, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
        found = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        if found is None:
            raise self.refusal("its code has no apply_rotary_pos_emb")
        function: Callable[..., tuple[Tensor, Tensor]] = found
        return function


@contextmanager
def answered_by(model: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, ``others`` answer for the rotary modules of those names."""
    with _forwards((model.get_submodule(name), other.forward) for name, other in others.items()):
        yield


@contextmanager
def _forwards(given: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each module computes by the function beside it."""
    replaced = list(given)
    before = [(vars(module), vars(module).get("forward")) for module, _ in replaced]  # None: the class's
    try:
        for module, function in replaced:
            module.forward = function
        yield
    finally:
        for held, forward in before:
            held.pop("forward", None)
            if forward is not None:
                held["forward"] = forward


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that turn positions of text into cosines and sines, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any("inv_freq" in buffer for buffer, _ in module.named_buffers(recurse=False))
        and not any(word in name for word in _OTHER_SENSES)
        and "position_ids" in inspect.signature(type(module).forward).parameters
    }


def _zero_components(q: Tensor) -> Tensor:
    """Which components are zero in every head at every position: ``[B, H, N, d]`` -> bool ``[d]``."""
    return (q == 0).flatten(0, -2).all(dim=0)


def _put(x: Tensor, turned: Tensor, turn: Turn) -> Tensor:
    if turn.stop - turn.first == x.shape[-1]:
        return turned
    return torch.cat([x[..., : turn.first], turned, x[..., turn.stop :]], dim=-1)
