"""Paper-style tables: models down, lengths across (or the other way), best in bold, trained length marked.

Over seeds a cell is mean ± standard deviation, rounded by its uncertainty, with the paper's dagger
(:mod:`kerple_eval.reports.tables.seeds`). The KERPLE paper's rows may stand beside measured ones
(:mod:`kerple_eval.reports.tables.paper`), never compared with them by a mark.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kerple_eval.reports.grid import VALUES, Grid, read_grids
from kerple_eval.reports.rows import number
from kerple_eval.reports.tables import paper
from kerple_eval.reports.tables.seeds import choose_reference, families, gathered, significantly_worse
from kerple_eval.reports.typeset import STYLES, Item, Line, Sheet, typeset
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

TABLE_FORMATS = (*STYLES, "csv")
DAGGER = "†"


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


def render(
    folders: Sequence[str | Path],
    style: str = "text",
    *,
    color: bool = False,
    over_seeds: bool = False,
    reference: str | None = None,
    against: str | None = None,
    down: str = "models",
) -> str:
    """The tables of one or several runs in one of ``TABLE_FORMATS``.

    ``over_seeds`` makes one row of the seeds of a scheme, with daggers where ``reference`` beats it;
    ``against`` ("paper[:table=T,dataset=NAME]") sets the paper's rows beside; ``down`` says what rows are.
    """
    if style not in TABLE_FORMATS:
        raise unknown("table format", style, TABLE_FORMATS)
    if down not in ("models", "lengths"):
        raise unknown("what goes down", down, ("models", "lengths"))
    if reference is not None and not over_seeds:
        raise UserError("--reference goes with --over-seeds: a dagger is a test over seeds")
    grids = read_grids(folders)
    if against is not None:
        paper.rows(against, grids[0].task)  # refuses a wrong name
        if not any(map(_papers, grids)):
            raise UserError(f"--against paper needs perplexities by {' or '.join(paper.PROTOCOLS)}")
    if style == "csv":
        if over_seeds or against or down != "models":
            raise UserError(
                "csv has one row a model at full precision; leave out the options that set tables"
            )
        return _csv(grids)
    blocks = []
    for grid in grids:
        made = [
            seeds_sheet(grid, value, reference) if over_seeds else sheet(grid, value)
            for value in grid.values()
        ]
        if against is not None and _papers(grid):
            made = [_with_paper(made[0], grid, against)]
        noted = [replace(s, notes=()) for s in made[:-1]] + made[-1:] if style != "latex" else made
        turned = [s.transposed() if down == "lengths" else s for s in noted]
        blocks.append("\n".join(typeset(s, style, color=color) for s in turned))
    return "\n".join(blocks)


def sheet(grid: Grid, value: str) -> Sheet:
    """One row a model."""
    trained = _trained(grid)
    lines = tuple(
        Line(
            model,
            (*([Item(trained[index])] if trained else []), *(Item(text, best) for text, best in row)),
        )
        for index, (model, row) in enumerate(cells(grid, value))
    )
    return Sheet(
        title(grid, value),
        "model",
        (*(["trained"] if trained else []), *headings(grid)),
        lines,
        tuple(grid.notes()),
        _ruled(grid),
    )


def _ruled(grid: Grid) -> int | None:
    trained = grid.shared_train_length
    return grid.lengths.index(trained) if trained in grid.lengths else None


def over_seeds(grid: Grid, reference: str | None) -> Sheet | None:
    """One row a scheme, where the grid holds several seeds of one; daggers where ``reference`` is in it."""
    if all(len(family.models) == 1 for family in gathered(grid)):
        return None
    known = {family.label for family in families(grid)}
    return seeds_sheet(grid, grid.values()[0], reference if reference in known else None)


def seeds_sheet(grid: Grid, value: str, reference: str | None) -> Sheet:
    """One row a scheme: mean ± standard deviation over its seeds."""
    members = families(grid)
    against = choose_reference(members, reference)
    lines = []
    found = {(f.label, n): f.spread(n, value) for f in members for n in grid.lengths}
    for family in members:
        items = []
        for length in grid.lengths:
            own = found[family.label, length]
            means = [s.mean for f in members if (s := found[f.label, length]) is not None]
            best = own is not None and own.mean == min(means) and len(means) > 1 and grid.same_targets(length)
            worse = against is not None and significantly_worse(family, against, length, value)
            text = "-" if own is None else uncertain(own.mean, own.std)
            items.append(Item(text, best, DAGGER if worse else ""))
        lines.append(Line(family.label, tuple(items)))
    counts = sorted({len(family.models) for family in members})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    notes = [f"mean ± standard deviation (n - 1) over {seeds}"]
    if against is not None:
        notes.append(
            f"{DAGGER}: {against.label} is significantly better "
            "(paired two-sided t-test over seeds, p < 0.05)"
        )
    return Sheet(
        title(grid, value),
        "scheme",
        tuple(headings(grid)),
        tuple(lines),
        (*notes, *grid.notes()),
        _ruled(grid),
    )


def _papers(grid: Grid) -> bool:
    """Whether the paper's numbers may stand beside a grid: its protocol, in perplexity."""
    return grid.protocol.partition(":")[0] in paper.PROTOCOLS and "ppl" in grid.values()


def _with_paper(made: Sheet, grid: Grid, against: str) -> Sheet:
    """The paper's rows in groups of their own below the measured ones, without bold."""
    lines = [replace(line, group="measured here") for line in made.lines]
    extra = len(made.head) - len(grid.lengths)  # a column of trained lengths
    for row in paper.rows(against, grid.task):
        found = [row.values.get(length) for length in grid.lengths]
        items = [Item("-") if x is None else Item(x[0], mark=DAGGER if x[1] else "") for x in found]
        before = [Item(str(row.train_length))] * extra
        column = f"{row.scheme} (paper, {row.dataset})"
        lines.append(Line(row.scheme, (*before, *items), row.group, column=column))
    note = (
        "the paper's rows are not comparable with the measured ones: other text and tokeniser; its daggers "
        "are against its own kerple-log"
    )
    return replace(made, lines=tuple(lines), notes=(*made.notes, note))


def cells(grid: Grid, value: str) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(model, [(text, best) a length]); ``failed`` and ``-`` stand for cells without a number."""
    best = {length: grid.best(length, value) for length in grid.lengths}
    rows = []
    for model in grid.models:
        row = []
        for length in grid.lengths:
            entry = grid.entries.get((model, length))
            shown = "-" if entry is None else number(entry.row[value]) if entry.ok else "failed"
            row.append((shown, model in best[length]))
        rows.append((model, row))
    return rows


def headings(grid: Grid) -> list[str]:
    trained = grid.shared_train_length
    return [f"{length}*" if length == trained else str(length) for length in grid.lengths]


def title(grid: Grid, value: str) -> str:
    trained = grid.shared_train_length
    mark = ""
    if trained is not None:
        mark = f"; * trained length {trained}" if trained in grid.lengths else f"; trained at {trained}"
    return f"{grid.task}, {grid.protocol}: {VALUES[value]} against length{mark}"


def _trained(grid: Grid) -> list[str] | None:
    """A column of trained lengths where they differ between models."""
    lengths = [grid.trained(model) for model in grid.models]
    return None if len(set(lengths)) == 1 else ["?" if n is None else str(n) for n in lengths]


def _csv(grids: Sequence[Grid]) -> str:
    lengths = sorted({length for grid in grids for length in grid.lengths})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["task", "protocol", "value", "model", "train_length", *lengths])
    for grid in grids:
        for value in grid.values():
            for model in grid.models:
                entries = [grid.entries.get((model, length)) for length in lengths]
                found = [None if e is None or not e.ok else e.row[value] for e in entries]
                numbers = ["" if x is None else repr(x) for x in found]
                trained = grid.trained(model)
                writer.writerow(
                    [grid.task, grid.protocol, value, model, "" if trained is None else trained, *numbers]
                )
    return buffer.getvalue()
