"""A run directory as a script or notebook sees it: frames, tables and figures."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kerple_eval.evaluation.request import read_lengths
from kerple_eval.records import merging
from kerple_eval.records.run import Run as RunDirectory
from kerple_eval.records.run import open_run as open_directory
from kerple_eval.reports.catalogue import REPORTS
from kerple_eval.reports.exports import export
from kerple_eval.support.registry import unknown


class Run(RunDirectory):
    """A run directory with its reports, as on the command line; ``summary()`` and ``losses()`` are frames.

    Tables are texts: ``style`` is text, markdown, latex, csv or html.
    """

    def table(self, style: str = "text", **options: Any) -> str:
        """Perplexity against length.

        As in ``kerple-eval table``: models, over_seeds, reference, against, down, reach.
        """
        return self._text("table", style=style, **options)

    def compare(self, against: str, style: str = "text", **options: Any) -> str:
        """Models against one of them, on the same targets: ``task``, ``protocol``, ``level``, ``seed``.

        ``models`` and ``lengths``: these comparisons only.
        """
        return self._text("compare", against=against, style=style, **options)

    def intervals(self, style: str = "text", **options: Any) -> str:
        """How sure each number is: ``task``, ``protocol``, ``models``, ``lengths``, ``level``, ``seed``."""
        return self._text("intervals", style=style, **options)

    def reach(self, style: str = "text", **options: Any) -> str:
        """How far each model holds, and what context it uses.

        ``task``, ``protocol``, ``models``, ``margin`` ("1%").
        """
        return self._text("reach", style=style, **options)

    def explain(self, style: str = "text", **options: Any) -> str:
        """Why loss changed with length: ``lengths``, two of them.

        With ``between``, two protocols: why their numbers differ; ``model``, ``length`` ("512,2048"). With
        ``gain=True``: where the change comes from; ``lengths``, ``model``, ``protocol``, ``ngram``.
        """
        from kerple_eval.reports.tables.explain import parse_pair  # noqa: PLC0415

        name = "gain" if options.pop("gain", False) else "between" if "between" in options else "explain"
        if given := [options.pop(key) for key in ("lengths", "length") if options.get(key) is not None]:
            text = ",".join(map(str, read_lengths("length", given[0])))
            options |= {"length": text} if name == "between" else {"lengths": parse_pair(text)}
        return self._text(name, style=style, **options)

    def divergence(self, style: str = "text", **options: Any) -> str:
        """How far predictions are from the reference's: ``task``, ``protocol``, ``down`` ("contexts")."""
        return self._text("divergences", style=style, **options)

    def longppl(self, reference: str | None = None, style: str = "text", **options: Any) -> str:
        """Perplexity on the tokens that need long context: ``alpha``, ``beta``, ``short``.

        ``key_tokens``, in place of ``reference``, and ``write_key_tokens`` are files.
        """
        return self._text("longppl", reference=reference, style=style, **options)

    def plot(self, kind: str = "curve", out: str | PathLike[str] | None = None, **options: Any) -> Path:
        """Write a figure of the run, ``KIND.png`` in its directory unless ``out`` is given.

        Raises:
            UserError: an unknown kind, or an option that it does not have.
        """
        from kerple_eval.cli.plot import run as plot  # noqa: PLC0415

        return plot(
            [str(self.folder)], kind, None if out is None else Path(out), **_spelled(options, "length")
        )

    def report(
        self, out: str | PathLike[str] | None = None, style: str | None = None, **options: Any
    ) -> list[Path]:
        """Write the page: ``report.html`` in the run's directory unless ``out`` is given."""
        path = None if out is None else Path(out)
        files: list[Path] = REPORTS.load("page")([self.folder], path, style, **options)
        return files

    def export(
        self, out: str | PathLike[str] | None = None, style: str = "lm-eval", model: str | None = None
    ) -> list[str]:
        """Write results in another program's format, or to an experiment tracker; returns where they are."""
        return export(self.folder, None if out is None else Path(out), style=style, model=model)

    def _text(self, name: str, **options: Any) -> str:
        make = REPORTS.load(name)
        known = inspect.signature(make).parameters
        if "models" in known:
            options = _spelled(options)
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
            for option in options.keys() - known.keys():
                raise unknown("option", option, list(known)[1:])
        text: str = make([self.folder], **options)
        return text

    def __repr__(self) -> str:
        done, keys = len(list(self.cells())), len(self.keys())
        return f"Run({str(self.folder)!r}): {done} of {keys} cells"

    def _repr_html_(self) -> str:
        """The table, where a notebook shows the run."""
        return self.table("html")


def _spelled(options: dict[str, Any], length: str = "lengths") -> dict[str, Any]:
    """Options of a report with models and lengths given as to :func:`evaluate`: one or several, a length also
    as "16k"; ``model`` and ``length`` are the command's words for them. ``length``: what the report has.
    """
    found = dict(options)
    if (model := found.pop("model", None)) is not None:
        found["models"] = model
    if isinstance(found.get("models"), str):
        found["models"] = [found["models"]]
    given = [found.pop(name) for name in ("length", "lengths") if found.get(name) is not None]
    if given:
        lengths = read_lengths("length", given[0])
        found[length] = lengths if length == "lengths" or len(lengths) > 1 else lengths[0]
    return found


def open_run(folder: str | PathLike[str]) -> Run:
    """Open a run directory that ``kerple-eval run`` or :func:`evaluate` wrote.

    Raises:
        UserError: no run directory, or one that is damaged or was written by a newer release.
    """
    return with_reports(open_directory(fspath(folder)))


def merge(
    folders: Sequence[str | PathLike[str] | RunDirectory], out: str | PathLike[str], *, within: float = 0.0
) -> Run:
    """Join runs of other models, lengths, protocols or tasks into one, in the new folder ``out``.

    Args:
        folders: two run directories or more, or runs.
        out: a folder that does not exist, or is empty.
        within: the largest difference, in nats, between losses of a cell that several runs hold; the first
            run's cell is kept.

    Raises:
        UserError: runs that do not join, cells that do not agree, or an ``out`` that is not empty.
    """
    several = [folders] if isinstance(folders, str | PathLike | RunDirectory) else folders
    paths = [run.folder if isinstance(run, RunDirectory) else Path(run) for run in several]
    merging.merge(paths, Path(out), within=within)
    return open_run(out)


def with_reports(run: RunDirectory) -> Run:
    return Run(**{setting.name: getattr(run, setting.name) for setting in fields(run)})
