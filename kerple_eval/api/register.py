"""Add schemes, protocols, formats, tasks and reports at run time."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kerple_eval.data.task import TASKS, TaskFile, read_task
from kerple_eval.models.base import Checkpoint
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.protocols.base import Protocol
from kerple_eval.protocols.catalogue import PROTOCOLS
from kerple_eval.reports.catalogue import REPORTS, ReportEntry
from kerple_eval.schemes.catalogue import SCHEMES, SchemeEntry
from kerple_eval.support.registry import Entry

if TYPE_CHECKING:
    from kerple_eval.schemes.base import Scheme


def register_scheme(
    name: str,
    scheme: type[Scheme],
    *,
    parameters: str,
    prefix_invariant: bool,
    kind: str = "",
    paper: str = "",
    year: int = 0,
) -> None:
    """Add a positional scheme for this process, for ``--scheme``, checkpoints and :func:`evaluate`.

    An installed package adds one permanently through the entry-point group ``kerple_eval.schemes``.

    Args:
        scheme: a subclass of :class:`kerple_eval.schemes.base.Scheme`.
        parameters: how many learned numbers it has: a sum of products of H (heads), d (head dimension) and W
            (width), ``"0"`` for none; "a layer" at its end where each layer has its own.
        prefix_invariant: whether the logits of a prefix do not depend on what follows it.
        kind: how position enters attention, in words.

    Raises:
        UserError: a scheme of that name exists.
    """
    entry = SchemeEntry(name, _target(scheme), year, paper, kind, parameters, prefix_invariant)
    SCHEMES.register(entry, scheme)


def register_protocol(name: str, protocol: type[Protocol], summary: str = "") -> None:
    """Add a protocol for this process; the entry-point group is ``kerple_eval.protocols``.

    Args:
        protocol: a subclass of :class:`kerple_eval.protocols.base.Protocol`.
        summary: a line for ``kerple-eval list protocols``.
    """
    PROTOCOLS.register(Entry(name, _target(protocol), summary), protocol)


def register_format(name: str, checkpoint: type[Checkpoint], summary: str = "") -> None:
    """Add a checkpoint format, ``NAME:PATH``, for this process; the group is ``kerple_eval.formats``.

    Args:
        checkpoint: a subclass of :class:`kerple_eval.models.base.Checkpoint`.
        summary: a line for ``kerple-eval list formats``.
    """
    CHECKPOINT_FORMATS.register(Entry(name, _target(checkpoint), summary), checkpoint)


def register_task(path: str | PathLike[str]) -> None:
    """Add a task file under the name it states, for this process; the group is ``kerple_eval.tasks``.

    Raises:
        UserError: the file is no task, or a task of that name exists.
    """
    file = Path(path)
    TASKS.register(TaskFile(read_task(file).name, str(file.resolve())))


def register_report(
    name: str,
    make: Callable[..., Any],
    summary: str = "",
    *,
    output: Literal["text", "figure", "page"] = "figure",
) -> None:
    """Add a report of runs for this process; the entry-point group is ``kerple_eval.reports``.

    Args:
        make: what makes it, called as :class:`kerple_eval.reports.catalogue.ReportEntry` says for ``output``.
        summary: a line for ``kerple-eval list reports``.
    """
    REPORTS.register(ReportEntry(name, _target(make), summary, output), make)


def _target(implementation: Any) -> str:
    return f"{implementation.__module__}:{implementation.__qualname__}"
