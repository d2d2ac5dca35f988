"""The rotary positions of a transformers model, taken out of its forward and applied at any positions.

A model's rotary module turns positions into cosines and sines once a pass, and each attention layer rotates
pairs of components by them, as its modelling file has it. Inside :meth:`Rotations.unrotated` the rotary
modules answer cos 1 and sin 0, so that attention receives queries and keys before rotation, and the true
answers are kept. Which layers rotate, by which call, which components of a head and in which pairs, is
measured (:meth:`find_layers`): what is zero where the answer is zero is rotated by it, and of the pairings
used by such models one gives what the layer's own code gives.

Source: transformers, ``modeling_rope_utils.py`` and ``models/*/modeling_*.py`` (release 5.24).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.lent import replaced_forwards
from kerple_eval.types import UserError

#: One call of a rotary module in a pass: the module's name, and what else than positions it was given.
Call = tuple[str, tuple[tuple[str, Any], ...]]

_OTHER_SENSES = ("vision", "visual", "image", "audio", "speech")


@dataclass(frozen=True)
class Turn:
    """How a layer rotates its heads: components ``first`` to ``stop - 1``, by the answer to ``call``.

    A component's partner is the next one (``neighbours``) or half of them further; ``sign`` is -1 where the
    rotation is clockwise.
    """

    call: Call
    first: int
    stop: int
    neighbours: bool = False
    sign: int = 1

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x ``[B, H, n, d]`` rotated by cos and sin ``[..., n, (stop - first) / 2]``."""
        half = (self.stop - self.first) // 2
        turned = x[..., self.first : self.stop]
        turned = turned.to(torch.promote_types(x.dtype, torch.float32))
        axis = -1 if self.neighbours else -2
        pairs = (half, 2) if self.neighbours else (2, half)
        a, b = turned.reshape(*turned.shape[:-1], *pairs).unbind(axis)
        cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3) * self.sign
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=axis).flatten(-2).to(x.dtype)
        if 2 * half == x.shape[-1]:
            return turned
        return torch.cat([x[..., : self.first], turned, x[..., self.stop :]], dim=-1)


class Answer:
    """What a rotary module answered in the pass at hand, and what it would at other positions."""

    def __init__(self, truth: Any, positions: Tensor, compute: Callable[[Tensor], Any]) -> None:
        """``truth`` was answered at the pass's own ``positions [..., N]``, 0 to N - 1.

        Either cos and sin ``[..., N, r]`` in any order, r components or pairs, or ``cos + i sin`` of pairs.

        Raises:
            ValueError: it is neither.
        """
        self.truth = truth
        self.positions = positions
        self.compute = compute
        if isinstance(truth, Tensor) and truth.is_complex():
            self.cos, self.sin = truth.real, truth.imag
            return
        if not (isinstance(truth, tuple) and len(truth) == 2 and truth[0].shape == truth[1].shape):
            raise ValueError
        self.sine = int(not truth[1][..., 0, :].any())  # the sine is the one that is 0 at position 0
        self.sin, self.cos = truth[self.sine], truth[1 - self.sine]
        if self.sin[..., 0, :].any() or not self.cos[..., 0, :].all():
            raise ValueError

    def without_turn(self, size: int) -> Any:
        """As the module would answer with every cosine ``size`` (1, or 0 for no query at all) and no sine."""
        if isinstance(self.truth, Tensor):
            return torch.full_like(self.truth, size)
        cos, sin = torch.full_like(self.cos, size), torch.zeros_like(self.sin)
        return (cos, sin) if self.sine else (sin, cos)

    def at(self, positions: Tensor, components: int) -> tuple[Tensor, Tensor]:
        """cos and sin ``[..., n, components / 2]`` at ``positions [n]``, whole or fractional."""
        first, last = positions.aminmax()  # a pair that is not in a move may stand below 0
        if not positions.is_floating_point() and first >= 0 and last < self.cos.shape[-2]:
            cos, sin = self.cos.index_select(-2, positions), self.sin.index_select(-2, positions)
        else:
            found = self.compute(positions.expand(*self.positions.shape[:-1], -1))
            if isinstance(found, Tensor):
                cos, sin = found.real, found.imag
            else:
                cos, sin = found[1 - self.sine], found[self.sine]
        return self._of_pairs(cos, components), self._of_pairs(sin, components)

    def _of_pairs(self, x: Tensor, components: int) -> Tensor:
        """One of the two equal values of a pair, where there are two."""
        half = components // 2
        if x.shape[-1] == half:
            return x
        return x[..., :half] if self._in_halves else x[..., ::2]

    @cached_property
    def _in_halves(self) -> bool:
        """Whether the second half of the components repeats the first; else each repeats the one before."""
        first, second = self.sin.chunk(2, dim=-1)
        return torch.equal(first, second)


#: What attention's modules received in a pass, in order, and what the rotary modules answered.
Queries = tuple[Sequence[tuple[nn.Module, Tensor]], Mapping[Call, Answer]]


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
        self.zeroed: Call | None = None  # the call that is answered by zeros
        self.turning = False  # whether layers rotate by themselves
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
            with replaced_forwards((module, self._forward(name)) for name, module in self.modules.items()):
                yield
        finally:
            self.answers = {}

    def _forward(self, name: str) -> Callable[..., Any]:
        module = self.answering[name]
        forward = type(module).forward
        signature = inspect.signature(forward)
        frozen = inspect.unwrap(forward)  # without the update of frequencies by the window's length

        def answer(*words: Any, **named: Any) -> Any:
            given = signature.bind(module, *words, **named).arguments
            positions = given["position_ids"]
            counted = torch.arange(positions.shape[-1]).to(positions)
            if not torch.equal(positions, counted.expand_as(positions)):
                raise self.refusal("its positions do not count from 0")
            further = {k: v for k, v in list(given.items())[1:] if k != "position_ids"}
            truth = forward(module, position_ids=positions, **further)

            def compute(at: Tensor) -> Any:
                return frozen(module, position_ids=at, **further)

            call = (name, tuple((k, v) for k, v in further.items() if not isinstance(v, Tensor)))
            try:
                answered = self.answers[call] = Answer(truth, positions, compute)
            except ValueError:
                raise self.refusal("its rotary module answers no cosines and sines") from None
            if call not in self.calls:
                self.calls.append(call)
            return truth if self.turning else answered.without_turn(int(call != self.zeroed))

        return answer

    def find_layers(self, received: Callable[[], Queries]) -> None:
        """Find out which layers rotate what.

        ``received`` makes a short pass in which attention passes nothing on that depends on positions, and
        gives attention's modules in order with their queries ``[B, H, N, d]``, and the answers of the rotary
        modules in it. It is called without rotation, once for each call of a rotary module with its answer
        zero, and as the layers rotate by themselves.
        """
        plain, _ = received()
        self.turning = True
        try:
            own, answers = received()
        finally:
            self.turning = False
        for call in list(self.calls):
            self.zeroed = call
            try:
                found, _ = received()
            finally:
                self.zeroed = None
            for (module, q), (_, x), (_, turned) in zip(found, plain, own, strict=True):
                zero = _zero_components(q)
                if torch.equal(zero, _zero_components(x)):
                    continue
                turn = self._turn(call, zero, answers[call], x, turned)
                if turn is None or self.turns.setdefault(module, turn) != turn:
                    raise self.refusal("it rotates its heads in a way that is not known here")

    @staticmethod
    def _turn(call: Call, zero: Tensor, answer: Answer, x: Tensor, turned: Tensor) -> Turn | None:
        """What makes ``turned`` of the queries ``x``, both ``[B, H, N, d]``; None where nothing here does.

        Of the components ``zero [d]`` without the answer, all are rotated that are not zero in ``x`` too (a
        norm may have a weight of 0 anywhere).
        """
        moved = (zero & ~_zero_components(x)).nonzero()
        at = torch.arange(x.shape[-2], device=x.device)
        sizes = [size for size in (answer.cos.shape[-1], 2 * answer.cos.shape[-1]) if size <= len(zero)]
        for size, neighbours, sign in itertools.product(sizes, (False, True), (1, -1)):
            for first in range(max(0, int(moved.max()) + 1 - size), int(moved.min()) + 1):
                if not zero[first : first + size].all() or first + size > len(zero):
                    continue
                turn = Turn(call, first, first + size, neighbours, sign)
                if (turn.rotate(x, *answer.at(at, size)) - turned).abs().max() <= 1e-4 * turned.abs().max():
                    return turn
        return None

    def rotate(
        self, module: nn.Module, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q ``[B, H, Q, d]`` and k ``[B, H, K, d]`` rotated as the layer does, at other positions."""
        turn = self.turns.get(module)
        if turn is None:
            return q, k
        answer, components = self.answers[turn.call], turn.stop - turn.first
        return (
            turn.rotate(q, *answer.at(positions_q, components)),
            turn.rotate(k, *answer.at(positions_k, components)),
        )


@contextmanager
def answered_by(model: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, ``others`` answer for the rotary modules of those names."""
    with replaced_forwards((model.get_submodule(name), other.forward) for name, other in others.items()):
        yield


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
