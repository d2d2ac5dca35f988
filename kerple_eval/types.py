"""The words of the project as frozen dataclasses. No torch, no I/O.

Units: a *token* is one id; a *target* k is ``tokens[k]`` predicted from ``tokens[start:k]``;
losses are in nats per target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: A task's rule for the first-token marker (BOS): none, token 0 of each document, before the inputs of
#: each window (one of its L), or as the model's tokeniser does by itself (``document`` or ``never``).
BosRule = Literal["never", "document", "window", "tokenizer"]

#: Where a model is scored; ``auto`` is CUDA where there is a card, else the CPU.
DeviceName = Literal["auto", "cpu", "cuda"]

#: Precisions that a model is scored in, and ``auto``: the one it is stored in where it is a Hugging Face
#: model on CUDA, float32 elsewhere; a model in memory keeps its own.
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
AskedDtype = Literal["auto", DtypeName]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A first-token rule that a protocol brings with it, in place of the run's.

    ``prefix``: one marker more before what the model's tokeniser makes of a document (its own BOS, where
    it puts one, included): BOS, or the end-of-document token where there is none (lm-eval).
    ``window``: BOS before the inputs of every window where the tokeniser has one, else nothing (YaRN).
    ``where_added``: only where the tokeniser puts BOS by itself too (llama.cpp).
    ``tokenizer``: as the model's tokeniser does by itself.
    ``id`` is the marker where it was given; token ids used as given get no other.
    """

    rule: Literal["prefix", "window", "tokenizer"]
    id: int | None = None
    where_added: bool = False


class UserError(Exception):
    """Something the user asked for is wrong. One line: what, where, what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """One forward pass: inputs ``tokens[start:stop]``, scored targets ``first_target .. stop``.

    Target k has context ``k - start`` (tokens the model saw), so contexts run from
    ``first_target - start`` to ``stop - start``. A context of 0 can only be scored ``after_marker``:
    where a first-token marker stands before the inputs.
    """

    start: int
    stop: int
    first_target: int
    after_marker: bool = False

    def __post_init__(self) -> None:
        least = self.start if self.after_marker else self.start + 1
        if not 0 <= self.start <= self.stop or not least <= self.first_target <= self.stop:
            raise ValueError(f"not a window: {self}")

    @property
    def inputs(self) -> int:
        """Number of input tokens."""
        return self.stop - self.start

    @property
    def targets(self) -> int:
        """Number of scored targets."""
        return self.stop - self.first_target + 1


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``[start:stop]`` of document number ``document``."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Spans put end to end: a document that a protocol makes of a text's."""

    name: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed ``name:key=value,key=value``; options keep the order they were written in."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return self.name + ":" + ",".join(f"{key}={value}" for key, value in self.options)


@dataclass(frozen=True, slots=True)
class SchemeSpec:
    """A parsed scheme: its options, and the modifiers applied to it with theirs.

    A modifier's main option comes first, with an empty value where it is left at its default.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()
    modifiers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    @property
    def modifier_options(self) -> dict[str, dict[str, str]]:
        """Modifier -> the options given to it."""
        return {name: {key: value for key, value in given if value} for name, given in self.modifiers}

    def __str__(self) -> str:
        parts = [
            ",".join(
                f"{name if i == 0 else key}={value}" if value else name
                for i, (key, value) in enumerate(options)
            )
            for name, options in self.modifiers
        ]
        return str(Spec(",".join([self.name, *parts]), self.options))


@dataclass(frozen=True, slots=True)
class CellKey:
    """The unit of work, of resume and of a table: one (model, task, protocol, length).

    ``longest`` (M, the run's longest length) is part of the key where the protocol depends on it.
    """

    model: str
    task: str
    protocol: str
    length: int
    longest: int | None = None

    def __str__(self) -> str:
        return f"{self.model}, {self.task}, {self.protocol} at {self.length}"


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a positional scheme needs to know of the model it serves."""

    heads: int  # H
    head_dim: int  # d
    width: int  # hidden size
    layers: int
    train_length: int
