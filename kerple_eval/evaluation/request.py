"""What a run is asked to do, as one value: made once, by the command line or by Python.

Whatever spelling a caller uses (a ``Path``, a numpy integer, a ``torch.dtype``, one string or a sequence
of them) is brought to one form here, or refused in one line. Whether the models, texts and protocols
exist is for :mod:`kerple_eval.evaluation.planning` to say. Imports no torch.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from kerple_eval.support.labels import is_text
from kerple_eval.support.readers import quoted
from kerple_eval.support.registry import unknown
from kerple_eval.support.specs import whole_number
from kerple_eval.types import AskedDtype, BosRule, DeviceName, DtypeName, UserError

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)

_DOUBLING = re.compile(r"(?P<first>[^.]+)\.\.(?P<last>[^.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The settings of a run; see :func:`kerple_eval.evaluate` for what each one means.

    ``command`` is what the run's record shows as the command: the words typed, or, where Python asked
    (``from_python``), the command line that asks the same, with ``<...>`` for what is in memory.
    """

    models: tuple[str, ...]
    out: Path
    tasks: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    protocols: tuple[str, ...] | None = None  # None: what fits the tasks
    lengths: tuple[int, ...] = LENGTHS
    documents: int | None = None
    keep_short: bool = False
    max_tokens: int | None = None
    seed: int | None = None
    bos: BosRule | None = None
    device: DeviceName = "auto"
    dtype: AskedDtype = "auto"
    attention: str = "auto"
    piece: int | None = None  # None: pieces where one pass would not fit in memory
    precision: str | None = None
    against: str | None = None
    divergence_from: str | None = None  # MODEL, the label of a model of the run, or self@N
    retry: bool = False
    typed: tuple[str, ...] | None = None
    temporary: bool = False  # whether ``out`` is a folder of this process alone, removed when it ends
    #: Label -> model in memory (:mod:`kerple_eval.models.in_memory`); ``models`` names each by its label.
    in_memory: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    #: Texts given as values (:mod:`kerple_eval.data.values`), after those of tasks and files.
    values: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, **options: Any) -> RunRequest:
        """A request from values as people write them; None leaves an option at its default.

        Raises:
            UserError: a value of the wrong type or out of its range; the message names the option.
        """
        check_options(options)
        read = {n: _READERS[n](_option(n), value) for n, value in options.items() if value is not None}
        for name, example in _NEEDED.items():
            if read.get(name, () if name in ("models", "out") else None) == ():
                raise UserError(f"run needs {example}")
        return cls(**read)

    @property
    def from_python(self) -> bool:
        return self.typed is None

    @property
    def command(self) -> tuple[str, ...]:
        """The words typed, or those that would ask the same."""
        from kerple_eval.models.open import in_memory_spec  # noqa: PLC0415 - so that this module stays light

        if self.typed is not None:
            return self.typed
        words = ["kerple-eval", "run"]
        for model in self.models:
            held = self.in_memory.get(model)
            words.append(model if held is None else in_memory_spec(model, held.name).text)
        for text in self.values:
            words += [f"--{text.name}", "<in memory>"]
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in _NO_OPTIONS or value == setting.default:
                continue
            if setting.name == "out" and self.temporary:
                continue
            if setting.name == "divergence_from" and value in self.in_memory:
                value = in_memory_spec(value, self.in_memory[value].name).text
            option = f"--{_option(setting.name)}"
            if setting.name == "lengths":
                words += [option, ",".join(map(str, value))]
            elif isinstance(value, tuple):
                words += [word for part in value for word in (option, part)]
            else:
                words += [option] if value is True else [option, str(value)]
        return tuple(words)


def parse_lengths(text: str) -> list[int]:
    """``512,1k`` and ``512..16k`` (doubling) -> tokens of each length.

    Raises:
        UserError: a part that is no length, or a range whose end is not its start doubled.
    """
    lengths: list[int] = []
    for part in text.split(","):
        ends = _DOUBLING.fullmatch(part.strip())
        first, last = (_length(end, text) for end in (ends.groups() if ends else (part, part)))
        length = first
        while length < last:
            lengths.append(length)
            length *= 2
        if length != last:
            raise UserError(
                f"length {part.strip()}: doubling {first} never gives {last}; expected a range as in 512..16k"
            )
        lengths.append(last)
    return lengths


def _length(word: str, text: str) -> int:
    number = whole_number(word.strip())
    if number is None or number < 1:
        where = "" if word == text else f" (in {text!r})"
        raise UserError(
            f"{word.strip()!r} is not a length{where}; expected tokens, as in 512,1024,2048 or 512..16k"
        )
    return number


def _option(field: str) -> str:
    """The option of the command line that sets a field."""
    plural = {"models": "model", "tasks": "task", "protocols": "protocol", "lengths": "length"}
    return plural.get(field, field.replace("_", "-"))


def _one_word(name: str, value: Any) -> str:
    """A string or a path."""
    if isinstance(value, str | os.PathLike):
        word = os.fspath(value)
        if isinstance(word, str) and word and "\0" not in word:
            if not is_text(word):
                raise UserError(f"{name} {quoted(word)}: is not UTF-8, so no record can hold it; rename it")
            return word
    raise UserError(f"{name} {quoted(value)}: expected a string or a path that is not empty")


def _words(name: str, value: Any) -> tuple[str, ...]:
    """A string or a path, or several."""
    several = [value] if isinstance(value, str | os.PathLike) else value
    if isinstance(several, bytes | Mapping) or not isinstance(several, Iterable):
        raise UserError(f"{name} {quoted(value)}: expected a string, a path or a sequence of them")
    return tuple(_one_word(name, part) for part in several)


def _folder(name: str, value: Any) -> Path:
    return Path(_one_word(name, value))


def _integer(name: str, value: Any) -> int:
    """An integer of Python, numpy or torch; a truth value and a float are none."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise UserError(f"{name} {quoted(value)} must be a whole number")


def _at_least(least: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        number = _integer(name, value)
        if number < least:
            raise UserError(f"{name} {number} must be at least {least}")
        return number

    return read


def read_lengths(name: str, value: Any) -> tuple[int, ...]:
    """A length, or several, each a number or written as on the command line."""
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    lengths: list[int] = []
    for part in several:
        lengths += parse_lengths(part) if isinstance(part, str) else [_tokens(part)]
    for length in lengths:
        if lengths.count(length) > 1:
            raise UserError(f"length {length} is given twice")
    return tuple(lengths)


def _tokens(value: Any) -> int:
    try:
        return _at_least(1)("length", value)
    except UserError:
        raise UserError(f"length {quoted(value)} must be a whole number of tokens, at least 1") from None


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UserError(f"{name} {quoted(value)}: expected True or False")


def _as_printed(name: str, value: Any) -> str:
    return str(value)


def _as_given(name: str, value: Any) -> Any:
    return value


def _command(name: str, value: Any) -> tuple[str, ...]:
    return tuple(value)


def _choice(*known: str) -> Callable[[str, Any], Any]:
    """One of ``known``, or an object of torch that prints as one of them."""

    def read(name: str, value: Any) -> str:
        word = str(value).removeprefix("torch.")
        if word in known:
            return word
        card = re.fullmatch(r"cuda:(\d+)", word)
        if name == "device" and card:
            raise UserError(
                f"device {word}: one card cannot be chosen here; set CUDA_VISIBLE_DEVICES={card[1]} and use "
                "device cuda"
            )
        raise unknown(name, word, known)

    return read


def check_options(names: Iterable[str]) -> None:
    """Raises UserError where one is not an option of a run."""
    for name in names:
        if name not in _READERS:
            raise unknown("option", name, _READERS)


#: What reads each option from the values that people write.
_READERS: dict[str, Callable[[str, Any], Any]] = {
    "models": _words,
    "out": _folder,
    "tasks": _words,
    "text": _words,
    "tokens": _words,
    "protocols": _words,
    "lengths": read_lengths,
    "documents": _at_least(1),
    "keep_short": _truth,
    "max_tokens": _at_least(2),
    "seed": _at_least(0),
    "bos": _choice(*get_args(BosRule)),
    "device": _choice(*get_args(DeviceName)),
    "dtype": _choice("auto", *get_args(DtypeName)),
    "attention": _one_word,
    "piece": _at_least(1),
    "precision": _as_printed,
    "against": _one_word,
    "divergence_from": _one_word,
    "retry": _truth,
    "typed": _command,
    "temporary": _truth,
    "in_memory": _as_given,
    "values": _as_given,
}
#: Fields that are no options of the command line.
_NO_OPTIONS = ("models", "typed", "temporary", "in_memory", "values")
#: Options that may not be empty, the first two not absent either, with what to give.
_NEEDED = {
    "models": "a model, for example zoo:kerple-log",
    "out": "a folder to write, --out DIR",
    "lengths": "a length, for example --length 512,1024",
    "protocols": "a protocol, for example --protocol full-context",
}
