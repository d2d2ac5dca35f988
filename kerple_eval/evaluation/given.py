"""What Python hands to a run as values: models in memory, their tokeniser, texts and token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kerple_eval.data.texts import TextSource
from kerple_eval.data.values import holds_ids, text_of, tokens_of
from kerple_eval.models.in_memory import InMemoryCheckpoint, tokenizer_of
from kerple_eval.types import BosRule, UserError

__all__ = ["device", "dtype", "holds_ids", "models", "reference", "texts"]


def models(
    given: Any, read_by: Any = None, *, recorded: bool = False
) -> tuple[tuple[str, ...], dict[str, InMemoryCheckpoint]]:
    """MODEL arguments in order, and those of them that are models in memory, by label.

    ``recorded``: whether the run is kept, so that a function without a state needs a name for its version.
    """
    if not isinstance(given, Mapping):
        one = isinstance(given, str | PathLike | bytes) or not isinstance(given, Sequence)
        several = [given] if one else given
        for model in several:
            if not isinstance(model, str | PathLike):
                raise UserError(
                    "models: expected a name such as 'zoo:kerple-log', or a model in memory with a label for "
                    f"its row, as in evaluate({{'mine': model}}, ...); got {type(model).__name__}"
                )
        return tuple(fspath(model) for model in several), {}
    reader = tokenizer_of(read_by)
    names: list[str] = []
    held: dict[str, InMemoryCheckpoint] = {}
    for label, model in given.items():
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"models: a label is a word, got {label!r}")
        if isinstance(model, str | PathLike):
            names.append(f"{label}={fspath(model)}")
            continue
        made = model if isinstance(model, InMemoryCheckpoint) else InMemoryCheckpoint(model)
        held[label] = made.completed(reader, "not recorded" if not recorded else None)
        names.append(label)
    return tuple(names), held


def reference(given: Any, read_by: Any, held: dict[str, InMemoryCheckpoint], *, recorded: bool) -> str:
    """The label of a reference model in memory, which joins ``held``."""
    label = "reference"
    if label in held:
        raise UserError(
            f"models: the label {label!r} is that of divergence_from; choose another, or give its label"
        )
    held |= models({label: given}, read_by, recorded=recorded)[1]
    return label


def texts(
    text: Any, tokens: Any, column: str, bos: BosRule | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[TextSource, ...]]:
    """Files of text, files of token ids, and the texts that are values; a ``Path`` is a file.

    Raises:
        UserError: what :mod:`kerple_eval.data.values` refuses.
    """
    values = []
    text_files, token_files = _files(text), _files(tokens)
    if not (text_files or _nothing(text)):
        values.append(text_of(text, column=column, bos=bos))
    if not (token_files or _nothing(tokens)):
        values.append(tokens_of(tokens))
    return text_files, token_files, tuple(values)


def _files(value: Any) -> tuple[str, ...]:
    """The files that a value names, where it is a ``Path`` or a sequence of nothing else."""
    several = [value] if isinstance(value, Path) else value
    if isinstance(several, tuple | list) and several and all(isinstance(part, Path) for part in several):
        return tuple(map(str, several))
    return ()


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, tuple | list) and not value)


def device(asked: Any, held: Mapping[str, InMemoryCheckpoint]) -> Any:
    """The device of the models in memory where there are any; refuses another, or several."""
    own = {model.scored.device.type: label for label, model in held.items()}
    if len(own) > 1:
        names = " and ".join(f"{label} on {kind}" for kind, label in own.items())
        raise UserError(f"models are on different devices: {names}; move them to one")
    for kind, label in own.items():
        if asked not in ("auto", kind) and getattr(asked, "type", None) != kind:
            raise UserError(
                f"device {asked}: model {label} is in memory on {kind} and is not moved; move it, or leave "
                "device out"
            )
        return kind
    return asked


def dtype(asked: Any, held: Mapping[str, InMemoryCheckpoint]) -> Any:
    """``asked``, refused where it is not that of a model in memory; auto unless given."""
    if asked in (None, "auto"):
        return "auto"
    for label, model in held.items():
        if str(asked).removeprefix("torch.") != str(model.scored.dtype).removeprefix("torch."):
            raise UserError(
                f"dtype {asked}: model {label} is in memory in {model.scored.dtype} and is not "
                "converted; leave dtype out"
            )
    return asked
