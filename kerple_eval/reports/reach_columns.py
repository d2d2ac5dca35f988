"""How far a model holds and what context it uses, as two columns of a table of models."""

from __future__ import annotations

from dataclasses import replace

from kerple_eval.reports.grid import Grid
from kerple_eval.reports.typeset import Table, TableCell
from kerple_eval.stats.reach import Reach, Reaches


def beside(table: Table, grid: Grid, reaches: Reaches) -> Table:
    """A table of the grid's models with the columns *holds to* and *uses*, or with a note why not."""
    reasons: dict[str, list[str]] = {}
    for out in reaches.left_out:
        if (out.task, out.protocol) == (grid.task, grid.protocol) and out.model in grid.models:
            reasons.setdefault(out.why, []).append(out.model)
    left_out = (f"how far it reaches: {', '.join(models)}: {why}" for why, models in reasons.items())
    table = replace(table, notes=(*table.notes, *left_out))
    known = {o.model: o for o in reaches.found if (o.task, o.protocol) == (grid.task, grid.protocol)}
    if all(one.short_of is not None for one in known.values()):
        why = dict.fromkeys(f"how far it reaches: {one.short_of}" for one in known.values())
        return replace(table, notes=(*table.notes, *why))
    rows = tuple(replace(r, cells=(*r.cells, *columns(known.get(r.cells[0].text)))) for r in table.rows)
    return replace(table, head=(*table.head, "holds to", "uses"), rows=rows)


def columns(one: Reach | None) -> tuple[TableCell, TableCell]:
    """*Holds to* and *uses* as two cells of another table."""
    if one is None:
        return TableCell("-", missing=True), TableCell("-", missing=True)
    if one.short_of is not None:
        few = TableCell("?", missing=True)
        return few, few
    holds = TableCell("none", missing=True)
    if one.holds_to is not None:
        holds = TableCell(_at_least(one.holds_to, one.holds_at_least), one.holds_to)
    if one.used is not None:
        uses = TableCell(_at_least(one.used.length, one.uses_at_least), one.used.length)
    else:
        uses = TableCell("none shown" if one.gains else "", missing=True)
    return holds, uses


def _at_least(length: int, at_least: bool) -> str:
    return f"at least {length}" if at_least else str(length)
