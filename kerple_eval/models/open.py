"""MODEL arguments to checkpoints: ``[LABEL=]FORMAT:LOCATION[,key=value...]`` or a bare directory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kerple_eval.models.base import Checkpoint
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.support.files import is_folder
from kerple_eval.support.labels import check_label
from kerple_eval.support.specs import parse_options
from kerple_eval.types import UserError

_LABEL = re.compile(r"(?P<label>[^=:,/\\]+)=(?P<rest>.+)", re.DOTALL)
_FORMAT = re.compile(r"(?P<format>[A-Za-z][A-Za-z0-9_-]*):(?P<rest>.*)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?(@[\w./-]+)?")
_OPTIONS = re.compile(r",(?=[A-Za-z][A-Za-z0-9_-]*=)")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One MODEL argument, parsed; ``format`` is None for a bare directory."""

    text: str
    label: str | None
    format: str | None
    location: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def short(self) -> str:
        """The label's default: a zoo name, or the last part of a path."""
        return self.location if self.format == "zoo" else Path(self.location).resolve().name


def in_memory_spec(label: str, name: str) -> ModelSpec:
    """The place of a model in memory among MODEL arguments; ``name`` is its class, for the record."""
    return ModelSpec(f"{label}=<{name} in memory>", label, None, "")


def parse_model(text: str) -> ModelSpec:
    """``[LABEL=][FORMAT:]LOCATION[,key=value...]``, as on the command line.

    Raises:
        UserError: an unknown format, or options that cannot be read.
    """
    label = None
    rest = text
    if match := _LABEL.fullmatch(text):
        label, rest = match["label"].strip(), match["rest"]
    kind = None
    if match := _FORMAT.fullmatch(rest):
        kind, rest = match["format"], match["rest"]
        CHECKPOINT_FORMATS.entry(kind)
    location, *options = _OPTIONS.split(rest, maxsplit=1)
    if not location:
        raise UserError(
            f"model {text!r} has nothing after its format; expected FORMAT:LOCATION or a directory"
        )
    pairs = parse_options(options[0], text, may_be_empty=SCHEMES) if options else ()
    return ModelSpec(text, label, kind, location, pairs)


def label_models(specs: Sequence[ModelSpec]) -> list[str]:
    """One label a model, unique in the run: the given one, else the short name, else the whole argument.

    Raises:
        UserError: two models have the same label, or one is not allowed (``check_label``).
    """
    labels = [spec.short if spec.label is None else spec.label for spec in specs]
    shared = {label for label, count in Counter(labels).items() if count > 1}
    labels = [
        spec.text if spec.label is None and label in shared else label
        for spec, label in zip(specs, labels, strict=True)
    ]
    for label, count in Counter(labels).items():
        if count > 1:
            raise UserError(f"two models are labelled {label!r}; write LABEL= before one of them")
        check_label(label, "model label", "write another LABEL= before the model")
    return labels


def open_model(spec: ModelSpec) -> Checkpoint:
    """The checkpoint a MODEL argument names, validated; no weights are put on a device.

    Raises:
        UserError: it does not exist, fits no format or several, or is damaged; says what and where.
    """
    kind = spec.format or _recognise(spec.location)
    opener: type[Checkpoint] = CHECKPOINT_FORMATS.load(kind)
    return opener.open(spec.location, dict(spec.options))


def _recognise(location: str) -> str:
    folder = Path(location)
    if not is_folder(folder):
        names = ", ".join(f"{known}:" for known in CHECKPOINT_FORMATS)
        hub = f"; as a model of the hub it is hf:{location}" if _HUB_ID.fullmatch(location) else ""
        raise UserError(f"no model {location!r}: not a directory, and no format before it ({names}){hub}")
    candidates = [name for name in CHECKPOINT_FORMATS if CHECKPOINT_FORMATS.load(name).recognises(folder)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserError(f"{location} could be {' or '.join(candidates)}; write {candidates[0]}:{location}")
    known = ", ".join(CHECKPOINT_FORMATS)
    raise UserError(f"{location}: not recognised as a checkpoint of any format ({known})")
