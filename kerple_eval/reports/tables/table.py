"""Paper-style tables: models down, lengths across (or the other way), best in bold, trained length marked.

Over seeds a cell is mean ± standard deviation, rounded by its uncertainty, with the paper's dagger
(:mod:`kerple_eval.reports.tables.seeds`). The KERPLE paper's rows may stand beside measured ones
(:mod:`kerple_eval.reports.tables.paper`), never compared with them by a mark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kerple_eval.records.reader import RunReader
from kerple_eval.reports.grid import VALUES, Grid, read_grids
from kerple_eval.reports.numbers import number
from kerple_eval.reports.reach_columns import beside
from kerple_eval.reports.tables import paper
from kerple_eval.reports.tables.seeds import (
    choose_reference,
    families,
    families_of_seeds,
    fewer_seeds,
    significantly_worse,
)
from kerple_eval.reports.typeset import (
    CellValue,
    Link,
    Table,
    TableCell,
    TableRow,
    check_format,
    no_link,
    records_table,
    typeset,
)
from kerple_eval.stats.reach import Reaches, read_reach
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

DAGGER = "†"
COLUMNS = ("task", "protocol", "value", "model", "train_length")  # of CSV, before one a length


def uncertain(value: float, error: float | None) -> str:
    """``23.9 ± 0.6``: the error at one or two digits (two where they begin below 355), the value to match.

    The Particle Data Group's rule (Review of Particle Physics, Introduction, section 5.3).
    """
    if error is None or error <= 0:
        return number(value)
    exponent = math.floor(math.log10(error))
    leading = round(error / 10.0 ** (exponent - 2))  # its three leading digits
    digits = 1 - exponent if leading < 355 or leading >= 950 else -exponent
    if leading >= 950:
        digits -= 1
    digits = max(0, digits)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def make(
    folders: Sequence[str | Path],
    style: str = "text",
    *,
    color: bool = False,
    over_seeds: bool = False,
    reference: str | None = None,
    against: str | None = None,
    down: str = "models",
    reach: bool = False,
    models: Sequence[str] = (),
) -> str:
    """The tables of one or several runs in one of :data:`~kerple_eval.reports.typeset.TABLE_FORMATS`.

    ``over_seeds`` makes one row of the seeds of a scheme, with daggers where ``reference`` beats it;
    ``against`` ("paper[:table=T,dataset=NAME]") sets the paper's rows beside; ``down`` says what rows are;
    ``reach`` adds how far each model holds and what context it uses; ``models`` are rows of these alone.
    """
    check_format(style)
    if down not in ("models", "lengths"):
        raise unknown("direction --down", down, ("models", "lengths"))
    if reference is not None and not over_seeds:
        raise UserError("--reference goes with --over-seeds: a dagger is a test over seeds")
    if reach and (over_seeds or against is not None or down != "models" or style == "csv"):
        raise UserError(
            "--reach adds columns to rows of models: leave out the options for the layout; as csv: "
            "kerple-eval reach DIR --format csv"
        )
    reader = RunReader(folders)
    grids = read_grids(reader, models)
    reaches = read_reach(reader) if reach else Reaches([], [])
    if against is not None:
        paper.rows(against, grids[0].task)  # refuses a wrong name
        if not any(map(_papers, grids)):
            raise UserError(f"--against paper needs perplexities by {' or '.join(paper.PAPER_PROTOCOLS)}")
    if style == "csv":
        if over_seeds or against or down != "models":
            raise UserError(
                "csv has one row per model at full precision; leave out the options for the layout"
            )
        return typeset(_records(grids), style)
    blocks = []
    for grid in grids:
        tables = [
            seeds_table(grid, value, reference)
            if over_seeds
            else beside(model_table(grid, value), grid, reaches)
            for value in grid.values()
        ]
        if against is not None and _papers(grid):
            tables = [_with_paper(tables[0], grid, against)]
        if style != "latex":  # the same notes: once, under the last
            tables = [replace(table, notes=()) for table in tables[:-1]] + tables[-1:]
        if down == "lengths":
            tables = [table.transposed("length") for table in tables]
        blocks += [typeset(table, style, color=color) for table in tables]
    return "\n".join(blocks)


def model_table(grid: Grid, value: str, link: Link = no_link) -> Table:
    """One row a model; numbers are linked by ``link``."""
    trained = _trained(grid)
    best = {length: grid.best(length, value) for length in grid.lengths}
    rows = []
    for index, model in enumerate(grid.models):
        numbers = []
        for length in grid.lengths:
            entry = grid.entries.get((model, length))
            number_ = entry.row[value] if entry is not None and entry.ok else None
            text = "-" if entry is None else number(number_) if entry.ok else "failed"
            numbers.append(
                TableCell(
                    text,
                    number_,
                    best=model in best[length],
                    link=link(grid.task, grid.protocol, model, length),
                    missing=number_ is None,
                )
            )
        rows.append(TableRow((TableCell(model), *(trained[index : index + 1]), *numbers)))
    head = ("model", *(["trained"] if trained else []), *headings(grid))
    return Table(
        title(grid, value), head, tuple(rows), tuple(grid.notes()), ruled_column=_ruled(grid), spaced=True
    )


def _ruled(grid: Grid) -> int | None:
    trained = grid.shared_train_length
    return 1 + grid.lengths.index(trained) if trained in grid.lengths else None


def over_seeds(grid: Grid, reference: str | None) -> Table | None:
    """One row a scheme, where the grid holds several seeds of one; daggers where ``reference`` is in it."""
    members, _ = families(grid)
    if all(len(family.models) == 1 for family in members):
        return None
    known = {family.label for family in members}
    return seeds_table(grid, grid.values()[0], reference if reference in known else None)


def seeds_table(grid: Grid, value: str, reference: str | None) -> Table:
    """One row a scheme: mean ± standard deviation over its seeds."""
    members, apart = families_of_seeds(grid)
    against = choose_reference(members, reference)
    rows = []
    found = {(f.label, n): f.spread(n, value) for f in members for n in grid.lengths}
    for family in members:
        cells = []
        for length in grid.lengths:
            own = found[family.label, length]
            means = [s.mean for f in members if (s := found[f.label, length]) is not None]
            best = own is not None and number(own.mean) == number(min(means))
            best = best and len(means) > 1 and grid.same_targets(length)
            worse = against is not None and significantly_worse(family, against, length, value)
            if own is None:
                cells.append(TableCell("-", missing=True))
            else:
                mark = DAGGER if worse else ""
                cells.append(TableCell(uncertain(own.mean, own.std), own.mean, best=best, mark=mark))
        rows.append(TableRow((TableCell(family.label), *cells)))
    counts = sorted({len(family.models) for family in members})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    notes = [f"mean ± standard deviation (n - 1) over {seeds}"]
    if fewer := fewer_seeds(grid, members, value):
        notes.append(f"warning: {fewer}")
    if against is not None:
        notes.append(
            f"{DAGGER}: {against.label} is significantly better "
            "(paired two-sided t-test over seeds, p < 0.05)"
        )
    return Table(
        title(grid, value),
        ("scheme", *headings(grid)),
        tuple(rows),
        (*notes, *apart, *grid.notes()),
        ruled_column=_ruled(grid),
        spaced=True,
    )


def _papers(grid: Grid) -> bool:
    """Whether the paper's numbers may stand beside a grid: its protocol, in perplexity."""
    return grid.protocol.partition(":")[0] in paper.PAPER_PROTOCOLS and "ppl" in grid.values()


def _with_paper(measured: Table, grid: Grid, against: str) -> Table:
    """The paper's rows, in separate groups below the measured ones, without bold."""
    rows = [replace(row, group="measured here") for row in measured.rows]
    trained = len(measured.head) - 1 - len(grid.lengths)  # 1 where there is a column of trained lengths
    for row in paper.rows(against, grid.task):
        printed = [row.values.get(length) for length in grid.lengths]
        numbers = [
            TableCell("-", missing=True) if x is None else TableCell(x[0], mark=DAGGER if x[1] else "")
            for x in printed
        ]
        cells = (TableCell(row.scheme), *[TableCell(str(row.train_length))] * trained, *numbers)
        rows.append(TableRow(cells, row.group, heading=f"{row.scheme} (paper, {row.dataset})"))
    note = (
        "the paper's rows are not comparable with the measured ones: other text and tokeniser; its daggers "
        "are against its own kerple-log"
    )
    return replace(measured, rows=tuple(rows), notes=(*measured.notes, note))


def headings(grid: Grid) -> list[str]:
    trained = grid.shared_train_length
    return [f"{length}*" if length == trained else str(length) for length in grid.lengths]


def title(grid: Grid, value: str) -> str:
    trained = grid.shared_train_length
    mark = ""
    if trained is not None:
        mark = f"; * trained length {trained}" if trained in grid.lengths else f"; trained at {trained}"
    return f"{grid.task}, {grid.protocol}: {VALUES[value]} against length{mark}"


def _trained(grid: Grid) -> list[TableCell]:
    """A column of trained lengths where they differ between models; empty where they do not."""
    lengths = [grid.trained(model) for model in grid.models]
    if len(set(lengths)) == 1:
        return []
    return [TableCell("?", missing=True) if n is None else TableCell(str(n), n) for n in lengths]


def _records(grids: Sequence[Grid]) -> Table:
    lengths = sorted({length for grid in grids for length in grid.lengths})
    records: list[dict[str, CellValue]] = []
    for grid in grids:
        for value in grid.values():
            for model in grid.models:
                entries = [grid.entries.get((model, length)) for length in lengths]
                numbers = [None if e is None or not e.ok else e.row[value] for e in entries]
                facts = (grid.task, grid.protocol, value, model, grid.trained(model))
                records.append(dict(zip((*COLUMNS, *map(str, lengths)), (*facts, *numbers), strict=True)))
    return records_table((*COLUMNS, *map(str, lengths)), records)
