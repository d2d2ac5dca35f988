"""``kerple-eval plot``: figures of run directories (no torch), or of the kernels of models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.reports.catalogue import REPORTS, ReportEntry
from kerple_eval.schemes.kernel_view import KernelView
from kerple_eval.support.files import is_file
from kerple_eval.support.registry import load, unknown
from kerple_eval.types import UserError

MODEL = "MODEL (zoo:NAME, native:DIR, neox:DIR, ...)"
#: Kinds of earlier releases, and what is asked for now.
RENAMED = {
    "effective-length": "--kind effective-length is called kernel-reach now: how far a model's kernels "
    "reach; how far the model itself holds is kerple-eval reach DIR"
}


def kinds() -> dict[str, ReportEntry]:
    """The reports that are figures."""
    return {name: e for name, e in REPORTS.items() if e.output == "figure"}


def run(
    sources: Sequence[str], kind: str, out: Path | None, *,
    head: int | None = None, layer: int | None = None, over_seeds: bool = False, models: Sequence[str] = (),
    **options: int | str | None,
) -> Path:  # fmt: skip
    """Write the figure ``kind`` of ``sources`` to ``out``, or to ``KIND.png`` in the one run directory.

    Raises:
        UserError: an unknown kind, an option that the kind lacks, or no ``out`` where it is not plain.
    """
    if kind in RENAMED:
        raise UserError(RENAMED[kind])
    if kind not in kinds():
        raise unknown("kind of figure", kind, kinds())
    entry = kinds()[kind]
    _check_sources(sources, entry)
    make = REPORTS.load(entry.name)
    every = {
        "head": head,
        "layer": layer,
        "over_seeds": over_seeds or None,
        "models": models or None,
    } | options
    given: dict[str, Any] = {k: v for k, v in every.items() if v is not None}
    known = inspect.signature(make).parameters
    accepted = set(known) | ({"layer"} if entry.takes == "models" else set())
    for option in given:
        if option not in accepted:
            name = "model" if option == "models" else option.replace("_", "-")
            raise UserError(f"--kind {kind} has no --{name}; leave it out")
    if "against" in known and "against" not in given:
        raise UserError(f"--kind {kind} needs --against MODEL, the model that the others are compared with")
    given.pop("layer", None)
    out = out or _default_out(sources, entry)
    if entry.takes == "runs":
        make(sources, out, **given)
    else:
        make(_views(sources, make, head, layer), out, **given)
    return out


def _default_out(sources: Sequence[str], entry: ReportEntry) -> Path:
    if entry.takes == "models" or len(sources) > 1:
        what = "of models" if entry.takes == "models" else f"of {len(sources)} runs"
        raise UserError(f"a figure {what} needs --out FILE, as in --out {entry.name}.png")
    return Path(sources[0]) / f"{entry.name}.png"


def _check_sources(sources: Sequence[str], entry: ReportEntry) -> None:
    """A figure of runs needs run directories, one of models needs models."""
    for source in sources:
        is_run = is_file(Path(source) / "run.json")
        if entry.takes == "models" and is_run:
            others = ", ".join(name for name, e in kinds().items() if e.takes == "runs")
            raise UserError(
                f"{source} is a run directory, --kind {entry.name} takes a {MODEL}; of runs: {others}"
            )
        if entry.takes == "runs" and not is_run and _names_a_model(source):
            others = ", ".join(name for name, e in kinds().items() if e.takes == "models")
            raise UserError(
                f"{source} is a model, --kind {entry.name} takes run directories; of models: {others}"
            )


def _names_a_model(source: str) -> bool:
    """Whether ``source`` is written as a MODEL, or is a folder that holds a checkpoint."""
    prefix = source.partition("=")[2] or source
    written = any(word.startswith(f"{name}:") for name in CHECKPOINT_FORMATS for word in (source, prefix))
    return written or any(is_file(Path(source) / name) for name in ("config.json", "latest"))


def _views(
    sources: Sequence[str], make: Callable[..., None], head: int | None, layer: int | None
) -> list[KernelView]:
    from kerple_eval.models.open import label_models, open_model, parse_model  # noqa: PLC0415
    from kerple_eval.models.scheme_view import view  # noqa: PLC0415

    hooks = load(f"{make.__module__}:HOOKS")
    specs = [parse_model(source) for source in sources]
    views: list[KernelView] = []
    for spec, label in zip(specs, label_models(specs), strict=True):
        made = view(open_model(spec), label, hooks, layer)
        if head is not None and head >= made.heads:
            raise UserError(f"--head {head}: {label} has heads 0 to {made.heads - 1}")
        views.append(made)
    return views
