"""Whether a request asks for the run that its folder holds; what differs is named by its option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kerple_eval.records.run import Run
from kerple_eval.records.specification import RunSpecification
from kerple_eval.support.differences import Difference, differences
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError

#: Keys of ``run.json`` -> the options that set them.
_OPTIONS = {
    "keep_short": "--keep-short", "max_tokens": "--max-tokens", "device": "--device", "dtype": "--dtype",
    "attention": "--attention", "precision": "--precision", "precision.share": "--precision",
    "precision.against": "--against", "bos": "--bos", "selection.count": "--documents",
    "selection.seed": "--seed",
}  # fmt: skip


def refuse_another(run: Run, specification: RunSpecification) -> None:
    """Refuse to go on into a run that was asked for otherwise."""
    different = list(_different(run.specification, specification))
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise UserError(
            f"{run.folder}: holds a run with another specification: {different[0]}{more}; "
            "choose another --out"
        )


def _different(old: RunSpecification, new: RunSpecification) -> Iterator[str]:
    """What differs, a line each: what was asked before what follows from it."""
    alone = [to_json(replace(s, protocols=(), models=(), tasks=())) for s in (old, new)]
    yield from _named(differences(*alone))
    pairs = (
        ("--protocol", "protocol", old.protocols, new.protocols),
        ("MODEL", "label", old.models, new.models),
        ("--task", "name", old.tasks, new.tasks),
    )
    for option, name, before, after in pairs:
        parts = [{getattr(part, name): to_json(part) for part in several} for several in (before, after)]
        if list(parts[0]) != list(parts[1]):
            yield Difference(option, list(parts[0]), list(parts[1])).describe()
        for label in (label for label in parts[0] if label in parts[1]):
            what = f"{option.strip('-')} {label}".replace("MODEL", "model")
            yield from _named(differences(parts[0][label], parts[1][label]), f"{what}: ")


def _named(different: Sequence[Difference], part: str = "") -> Iterator[str]:
    for one in different:
        if one.where == "lengths":
            asked = (",".join(map(str, lengths)) for lengths in (one.old, one.new))
            yield Difference("--length", *asked).describe()
        elif one.where != "longest":  # it follows from the lengths
            yield replace(one, where=_OPTIONS.get(one.where, part + one.where)).describe()
