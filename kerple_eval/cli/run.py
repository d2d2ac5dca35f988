"""``kerple-eval run``: score, show progress, end with the table."""

from __future__ import annotations

import shlex
from collections import Counter
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kerple_eval.cli import dry_run as dry
from kerple_eval.cli.errors import BrokenOffError, is_terminal
from kerple_eval.evaluation.pulse import RankLostError
from kerple_eval.evaluation.ranks import launched_rank
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.run import run_request
from kerple_eval.evaluation.stopping import read_lines
from kerple_eval.evaluation.worker import RunProgress
from kerple_eval.models.devices import DeviceLostError
from kerple_eval.records.cell import Cell, FailedCell, file_name
from kerple_eval.records.notes import passed_over_words
from kerple_eval.records.reader import RunReader
from kerple_eval.records.run import Run
from kerple_eval.reports.grid import read_grids
from kerple_eval.reports.tables import answers, divergence, table
from kerple_eval.support.files import is_file
from kerple_eval.types import CellKey, UserError


def run(request: RunRequest, *, dry_run: bool = False) -> int:
    """The exit status: 0 all cells finished, 1 some failed or the run broke off, 130 interrupted."""
    rank = launched_rank() or 0
    if dry_run:
        return 0 if rank else dry.run(request)
    try:
        if rank:  # scores what rank 0 asks for, and prints nothing
            run_request(request)
            return 0
        result = _watched(request)
    except (RankLostError, DeviceLostError) as error:
        click.echo(f"rank {rank}: {error}; finished cells are kept, the same command continues", err=True)
        return 1
    except KeyboardInterrupt:
        if not rank:
            click.echo(
                f"stopped; finished cells are kept, the same command continues in {request.out}", err=True
            )
        return 130
    try:
        return finish(result, divergences=request.divergence_from is not None)
    except UserError as error:  # exit status 2 would say that nothing was computed
        raise BrokenOffError(f"{error}; the run itself is finished") from error


def _lost_cells(folder: Path) -> int:
    """How many finished cells of the summary have no file, as in a copy without ``cells/``."""
    if is_file(folder / "summary.csv"):
        with suppress(UserError):  # the run says what is wrong, or writes the summary anew
            entries = [entry for grid in read_grids(RunReader([folder])) for entry in grid.entries.values()]
            files = [folder / "cells" / f"{file_name(entry.key)}.parquet" for entry in entries if entry.ok]
            return sum(not is_file(file) for file in files)
    return 0


def _watched(request: RunRequest) -> Run:
    """Do the run; on a terminal, show its progress."""
    lost = _lost_cells(request.out)
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.fields[cells]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[cell]}", markup=False), console=console,
        disable=not console.is_interactive,  # in a pipe or a log an error's line stands alone
    ) as progress:  # fmt: skip
        bar = progress.add_task("run", total=None, cells="preparing", cell="")
        computed = 0.0

        def show(state: RunProgress) -> None:
            nonlocal computed, lost
            if lost:  # said once nothing refuses the run any more
                line = f"{request.out}: finished cells of its summary without a file, computed again: {lost}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                lost = 0
            computed = state.work_done
            key = state.key
            progress.update(
                bar, total=state.work, completed=state.work_done,
                cells=f"{state.cells_done}/{state.cells} cells",
                cell=f"{key.model} {key.protocol} {key.length}" + ", compiling" * state.compiling,
            )  # fmt: skip

        try:
            return run_request(request, show)
        except UserError as error:
            progress.live.transient = True  # the error's line stands alone
            if computed:
                raise BrokenOffError(
                    f"{error}; finished cells are kept, the same command continues"
                ) from error
            raise


def finish(result: Run, *, divergences: bool = False) -> int:
    """Print the tables and which files hold what; the exit status: 1 if a cell failed, else 0.

    ``divergences``: whether they were asked for, so that a cell without them is not finished.
    """
    folder = result.folder
    seconds: dict[CellKey, float | None] = {}
    failed: list[FailedCell] = []
    answered = False
    without: Counter[str] = Counter()  # cells by why they have no divergences
    for cell in result.cells():
        if isinstance(cell, Cell):
            seconds[cell.key] = cell.header.seconds
            answered = answered or cell.hits is not None
            if divergences and cell.divergence is None and cell.header.divergence is not None:
                without[str(cell.header.divergence.error)] += 1
        else:
            failed.append(cell)
    shown = answers.make([folder]) if answered else table.make([folder], "text", color=is_terminal())
    print(shown)
    if divergences and len(seconds) > without.total():
        print(divergence.make([folder]))
    if click.get_current_context().find_root().params.get("traceback"):
        for cell in failed:
            if cell.header.traceback:
                click.echo(f"{cell.key}:\n{cell.header.traceback}", err=True)
    print(
        f"{len(seconds)} {'cell' if len(seconds) == 1 else 'cells'} in {folder}/summary.csv"
        + (f", {len(failed)} failed" if failed else "")
    )
    passed_over = {
        text.name: (text.source or {}).get("passed_over", {}) for text in result.specification.tasks
    }
    notes = [f"{name}: {passed_over_words(counts)}" for name, counts in passed_over.items() if counts]
    notes += [
        f"without divergences: {count} {'cell' if count == 1 else 'cells'}: {error}"
        for error, count in without.items()
    ]
    for line in [*notes, *(f"precision: {line}" for line in read_lines(folder))]:
        print(line)
    verdict = dry.verdict(result, seconds)
    if verdict is not None:
        print(verdict)
    kind = "depth" if answered else "curve"
    figure = Path(folder) / f"{kind}.png"
    print("figure: " + shlex.join(["kerple-eval", "plot", str(folder), "--kind", kind, "--out", str(figure)]))
    return 1 if failed or without else 0
