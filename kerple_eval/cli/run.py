"""``kerple-eval run``: score, show progress, end with the table."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kerple_eval.cli import dry_run as dry
from kerple_eval.evaluation.ranks import RankLostError, launched
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.run import run_request
from kerple_eval.evaluation.stopping import read_lines
from kerple_eval.evaluation.worker import RunProgress as Report
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import Run
from kerple_eval.reports.tables.answers import render as answers
from kerple_eval.reports.tables.table import render
from kerple_eval.types import UserError


def run(request: RunRequest, *, dry_run: bool = False) -> int:
    """The exit status: 0 all cells finished, 1 some failed, 130 interrupted."""
    other = bool(
        launched()
    )  # a rank of torchrun's other than 0: it scores what rank 0 says, and says nothing
    if dry_run:
        return 0 if other else dry.run(request)
    if other:
        run_request(request)
        return 0
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.fields[cells]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[cell]}", markup=False), console=console,
        disable=not console.is_interactive,  # in a pipe or a log an error's line stands alone
    ) as progress:  # fmt: skip
        bar = progress.add_task("run", total=None, cells="preparing", cell="")

        def show(report: Report) -> None:
            key = report.key
            progress.update(
                bar, total=report.work, completed=report.work_done,
                cells=f"{report.cells_done}/{report.cells} cells",
                cell=f"{key.model} {key.protocol} {key.length}" + ", compiling" * report.compiling,
            )  # fmt: skip

        try:
            result = run_request(request, show)
        except UserError:
            progress.live.transient = True  # the error's line stands alone
            raise
        except RankLostError as error:
            progress.stop()
            console.out(f"a process of this run is gone ({error}); the same command goes on", highlight=False)
            return 1
        except KeyboardInterrupt:
            progress.stop()
            console.out(
                f"stopped; finished cells are kept, the same command goes on in {request.out}",
                highlight=False,
            )
            return 130
    return finish(result)


def finish(result: Run) -> int:
    """Print the tables and where things are; 1 where a cell failed."""
    folder = result.folder
    answered = any(isinstance(cell, Cell) and cell.hits is not None for cell in result.cells())
    shown = answers([folder]) if answered else render([folder], "text", color=sys.stdout.isatty())
    print(shown)
    statuses = [cell.summary()["status"] for cell in result.cells()]
    failed = statuses.count("failed")
    print(
        f"{len(statuses) - failed} cells in {folder}/summary.csv" + (f", {failed} failed" if failed else "")
    )
    for line in read_lines(folder):
        print(f"precision: {line}")
    said = dry.verdict(Path(folder))
    if said is not None:
        print(said)
    kind = "depth" if answered else "curve"
    print(f"figure: kerple-eval plot {folder} --kind {kind} --out {Path(folder) / f'{kind}.png'}")
    return 1 if failed else 0
