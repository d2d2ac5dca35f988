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


class UserError(Exception):
    """Something the user asked for is wrong. One line: what, where, what would be right.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """One forward pass: inputs ``tokens[start:stop]``, scored targets ``first_target .. stop``.

    Target k has context ``k - start`` (tokens the model saw), so contexts run from
    ``first_target - start`` to ``stop - start``.
    """

    start: int
    stop: int
    first_target: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.first_target <= self.stop:
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
    """A parsed scheme: its options, and the modifiers laid on it with theirs.

    A modifier's main option comes first, with an empty value where it is left at its default.
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()
    modifiers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()

    def __str__(self) -> str:
        laid = [
            ",".join(
                f"{name if i == 0 else key}={value}" if value else name
                for i, (key, value) in enumerate(options)
            )
            for name, options in self.modifiers
        ]
        return str(Spec(",".join([self.name, *laid]), self.options))


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


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a positional scheme needs to know of the model it serves."""

    heads: int  # H
    head_dim: int  # d
    width: int  # hidden size
    layers: int
    train_length: int
