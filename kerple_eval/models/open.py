"""MODEL arguments to checkpoints: ``[LABEL=]FORMAT:PLACE[,key=value...]`` or a bare directory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerple_eval.models.base import Checkpoint
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.specs import parse_options
from kerple_eval.types import UserError

_LABEL = re.compile(r"(?P<label>[^=:,/\\]+)=(?P<rest>.+)", re.DOTALL)
_FORMAT = re.compile(r"(?P<format>[A-Za-z][A-Za-z0-9_-]*):(?P<rest>.*)", re.DOTALL)
_OPTIONS = re.compile(r",(?=[A-Za-z][A-Za-z0-9_-]*=)")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One MODEL argument, parsed; ``format`` is None for a bare directory."""

    text: str
    label: str | None
    format: str | None
    place: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def short(self) -> str:
        """The label's default: a zoo name, or the last part of a path."""
        return self.place if self.format == "zoo" else Path(self.place).resolve().name


def in_memory_spec(label: str, name: str) -> ModelSpec:
    """The place of a model in memory among MODEL arguments; ``name`` is its class, for the record."""
    return ModelSpec(f"{label}=<{name} in memory>", label, None, "")


def parse_model(text: str) -> ModelSpec:
    label = None
    rest = text
    if match := _LABEL.fullmatch(text):
        label, rest = match["label"].strip(), match["rest"]
    kind = None
    if match := _FORMAT.fullmatch(rest):
        kind, rest = match["format"], match["rest"]
        CHECKPOINT_FORMATS.entry(kind)
    place, *options = _OPTIONS.split(rest, maxsplit=1)
    if not place:
        raise UserError(f"model {text!r} names no place; expected FORMAT:PLACE or a directory")
    pairs = parse_options(options[0], text, may_be_empty=SCHEMES) if options else ()
    return ModelSpec(text, label, kind, place, pairs)


def label_models(specs: Sequence[ModelSpec]) -> list[str]:
    """Labels, unique in the run: given ones, else short names, else the whole argument."""
    labels = [spec.label or spec.short for spec in specs]
    shared = {label for label, count in Counter(labels).items() if count > 1}
    labels = [
        spec.text if spec.label is None and label in shared else label
        for spec, label in zip(specs, labels, strict=True)
    ]
    for label, count in Counter(labels).items():
        if count > 1:
            raise UserError(f"two models are labelled {label!r}; write LABEL= before one of them")
    return labels


def open_model(spec: ModelSpec) -> Checkpoint:
    """Validate the checkpoint a MODEL argument names, without loading its weights."""
    kind = spec.format or _recognise(spec.place)
    opener: type[Checkpoint] = CHECKPOINT_FORMATS.load(kind)
    return opener.open(spec.place, dict(spec.options))


def _recognise(place: str) -> str:
    folder = Path(place)
    if not folder.is_dir():
        names = ", ".join(f"{known}:" for known in CHECKPOINT_FORMATS)
        raise UserError(f"no model {place!r}: not a directory, and no format before it ({names})")
    candidates = [name for name in CHECKPOINT_FORMATS if CHECKPOINT_FORMATS.load(name).recognises(folder)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(f"{place} could be {' or '.join(candidates)}; write {candidates[0]}:{place}")
    known = ", ".join(CHECKPOINT_FORMATS)
    raise UserError(f"{place}: not recognised as a checkpoint of any format ({known})")
