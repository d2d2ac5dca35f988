"""The page's sections but provenance: what was asked, warnings, results, comparisons, figures.

A section is a function of what was gathered and gives None where it has nothing to say.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from kerple_eval.records.cell import Cell
from kerple_eval.reports.figures import curve, depth, divergence, position, ratio, scatter
from kerple_eval.reports.grid import VALUES, Grid
from kerple_eval.reports.page.blocks import (
    Beside,
    Block,
    Code,
    Facts,
    Figures,
    Heading,
    Paragraph,
    Section,
    Switch,
    Warn,
)
from kerple_eval.reports.page.findings import in_words
from kerple_eval.reports.page.gathered import Gathered
from kerple_eval.reports.reach_columns import beside
from kerple_eval.reports.tables import answers, compare, explain, gain, intervals, reach, table
from kerple_eval.reports.tables import divergence as divergence_table
from kerple_eval.reports.typeset import Table, TableCell
from kerple_eval.reports.words import listing
from kerple_eval.stats.intervals import MINIMUM_DOCUMENTS
from kerple_eval.types import UserError

_ASKED = {"dtype": "dtype", "device": "device", "max_tokens": "tokens a document, at most"}


def asked(data: Gathered) -> Section:
    """The command, models, texts, protocols and lengths of each run."""
    blocks: list[Block] = []
    for number, run in enumerate(data.runs, 1):
        spec, provenance = run.specification, run.provenance
        if len(data.runs) > 1:
            blocks.append(Heading(run.folder.resolve().name))
        # The last of each run that it was merged of.
        last = {session.run: session.command for session in provenance.sessions}
        blocks += [Code(shlex.join(["kerple-eval", *command[1:]])) for command in last.values()]
        models = [model.label for model in spec.models]
        protocols = [f"{p.protocol} at {', '.join(map(str, p.lengths))}" for p in spec.protocols]
        facts = [
            ("models", TableCell(", ".join(models), link=f"models-{number}")),
            ("texts", TableCell(", ".join(task.name for task in spec.tasks), link=f"texts-{number}")),
            ("protocols", TableCell("; ".join(protocols))),
        ]
        settings = [(name, getattr(spec, key)) for key, name in _ASKED.items()]
        facts += [(name, TableCell(str(setting))) for name, setting in settings if setting]
        blocks.append(Facts(tuple(facts)))
    return Section("What was asked", "asked", tuple(blocks))


def warnings(data: Gathered) -> Section:
    blocks = list(_warnings(data))
    if not blocks:
        blocks = [Paragraph("None: every cell asked for is finished and on disk, on the same targets.")]
    return Section("Warnings", "warnings", tuple(blocks))


def _warnings(data: Gathered) -> Iterator[Block]:
    done = {(cell.entry.folder, cell.entry.key) for cell in data.cells()}
    for run in data.runs:
        wanted = run.keys()
        unfinished = [key for key in wanted if (run.folder, key) not in done]
        if unfinished:
            yield Warn(f"{run.folder.resolve().name}: {len(unfinished)} cells asked for have not been run")
        for plan in run.specification.protocols:
            if plan.reduction is not None:
                yield Warn(
                    f"{plan.protocol}: its number is another tool's ({plan.reduction}), and so are "
                    "intervals and comparisons; bits per byte, the split of a change and losses by context "
                    "are of the mean over targets"
                )
        if run.specification.precision is not None:
            yield Warn(
                f"{run.folder.resolve().name}: documents were added until it was sure (--precision), so that "
                "intervals here cover less than they say; precision.json there holds those corrected for it"
            )
    for cell in data.cells():
        if not cell.entry.ok:
            where = f"{cell.label}, {cell.grid.task}, {cell.grid.protocol} at {cell.length}"
            yield Warn(f"{where} failed: {cell.entry.row['error']}", cell.anchor)
    shared: dict[str, list[str]] = {}
    for grid in data.grids:
        for text in _grid_warnings(grid):
            shared.setdefault(text, []).append(f"{grid.task} {grid.protocol}")
    yield from (Warn(f"{listing(places)}: {text}") for text, places in shared.items())
    absent = sum(p.entry.ok and (p.entry.folder, p.entry.key) not in data.known for p in data.cells())
    if absent:
        yield Warn(
            f"of {absent} finished cells the files are not beside run.json: their numbers stand in "
            "summary.csv, but losses, intervals and comparisons cannot be shown"
        )


def _grid_warnings(grid: Grid) -> Iterator[str]:
    cells = [entry.row for entry in grid.entries.values() if entry.ok]
    mixed = [str(length) for length in grid.lengths if not grid.same_targets(length)]
    if len(grid.tokenizers) > 1:
        yield "models with different tokenisers; compare bits per byte, not perplexity"
        if grid.other_bytes:
            yield grid.other_bytes
    elif mixed:
        yield (
            f"models were scored on different targets at {listing(mixed)}, so a difference there is one of "
            "text too"
        )
    if grid.differs_between_lengths():
        yield "the targets differ between lengths, so a change with length is one of text too"
    fewest = min((row["documents"] for row in cells), default=MINIMUM_DOCUMENTS)
    if fewest < MINIMUM_DOCUMENTS:
        yield (
            f"{fewest} {'document' if fewest == 1 else 'documents'}, and an interval needs "
            f"{MINIMUM_DOCUMENTS}; small differences may be noise"
        )
    for what in ("dtype", "device"):
        kinds = sorted({row[what] for row in cells})
        if len(kinds) > 1:
            yield f"cells differ in {what} ({listing(kinds)})"


def results(data: Gathered) -> Section:
    """In words, as tables whose numbers link to their cells, and the curve beside."""
    blocks: list[Block] = []
    serious = sum(isinstance(block, Warn) for block in warnings(data).blocks)
    if serious:
        blocks.append(Warn(f"{serious} thing{'s' * (serious != 1)} to know about these numbers", "warnings"))
    pictures = curve.pictures(data.grids, data.known)
    for grid, picture in zip(data.grids, pictures, strict=True):
        blocks.append(Heading(f"{grid.task}, {grid.protocol}"))
        if words := in_words(grid):
            blocks.append(Paragraph(words))
        values = grid.values()
        tables = tuple(
            beside(table.model_table(grid, value, data.anchor), grid, data.reaches) for value in values
        )
        names = tuple(VALUES[value] for value in values)
        shown: list[Table | Switch] = [tables[0] if len(tables) == 1 else Switch(names, tables)]
        drawn = [picture]
        if (seeds := table.over_seeds(grid, data.reference)) is not None:
            shown.insert(0, seeds)
            drawn = curve.seed_pictures([grid])
        blocks.append(Beside(tuple(shown), Figures("curve", tuple(drawn))))
    return Section("Results", "results", tuple(blocks))


def reached(data: Gathered) -> Section | None:
    """How far each model holds, and what context it uses."""
    tables = reach.tables(data.reaches)
    return Section("How far it reaches", "reach", tuple(tables)) if tables else None


def answered(data: Gathered) -> Section | None:
    """Exact match and loss of made tasks by length and depth."""
    if not any(cell.grid.protocol == "answer" and cell.entry.ok for cell in data.cells()):
        return None
    figures = Figures("depth", tuple(depth.pictures(data.reader)))
    return Section("Answers", "answers", (*answers.tables(data.reader), figures))


def explained(data: Gathered) -> Section | None:
    """Why it changed with length: fewer cold starts, or more context."""
    if not data.known:
        return None
    blocks: list[Block] = [
        Paragraph(
            "Dilution is what fewer cold starts alone would change, for a model that uses no more than the "
            "shorter length; context gain is what longer context changes."
        )
    ]
    try:
        tables, missing = explain.tables(data.reader)
    except UserError as error:
        return Section("Why it changed", "explained", (Paragraph(f"No explanation: {error}."),))
    blocks += tables
    blocks += [Code("\n".join(missing))] if missing else []
    return Section("Why it changed", "explained", tuple(blocks))


def gained(data: Gathered) -> Section | None:
    """Which targets the change with length comes from, and the spans of text that gained and lost most."""
    if not data.gain:
        return None
    blocks: list[Block] = []
    for pair in gain.pairs(data.reader):
        try:
            blocks += gain.tables(gain.sources(*pair))
        except UserError as error:
            blocks.append(Paragraph(f"Not said of {pair[0]}, {pair[2].key}: {error}."))
    return Section("Where the gain comes from", "gain", tuple(blocks))


def compared(data: Gathered) -> Section | None:
    """Every model against the reference: tests, ratio by length, document by document."""
    against = data.reference
    if against is None:
        return None
    blocks: list[Block] = []
    try:
        blocks += compare.tables(data.reader, against, link=data.link)
    except UserError as error:
        blocks.append(Paragraph(f"No tests: {error}."))
    try:
        blocks.append(Figures("ratio", tuple(ratio.pictures(data.grids, data.known, against=against))))
    except UserError as error:
        blocks.append(Paragraph(f"No figure of ratios: {error}."))
    enough = any(len(cell.sums) >= MINIMUM_DOCUMENTS for cell in data.known.values())
    if enough:
        try:
            pictures = scatter.pictures(data.grids, data.known, against=against)
            blocks.append(Figures("scatter", tuple(pictures)))
        except UserError as error:
            blocks.append(Paragraph(f"No figure by document: {error}."))
    return Section(f"Against {against}", "compared", tuple(blocks))


def sure(data: Gathered) -> Section | None:
    """Intervals of every number."""
    if not data.known:
        return None
    return Section("How sure", "sure", tuple(intervals.tables(data.reader, link=data.link)))


def diverged(data: Gathered) -> Section | None:
    """How far predictions are from those of the reference that ``--divergence-from`` named."""
    if not any(isinstance(cell, Cell) and cell.divergence is not None for _, cell in data.reader.cells()):
        return None
    tables = divergence_table.tables(data.reader, link=data.link)
    pictures = divergence.pictures(data.reader)
    drawn = (Figures("divergence", tuple(pictures)),) if pictures else ()
    return Section("Divergence from a reference", "divergence", (*tables, *drawn))


def by_context(data: Gathered) -> Section:
    pictures = position.pictures(data.reader)
    block = (
        Figures("position", tuple(pictures)) if pictures else Paragraph("No finished cell's contexts vary.")
    )
    return Section("Loss against context", "context", (block,))
