"""The tables, figures and pages that runs or models can be shown as, one entry each."""

from __future__ import annotations

from dataclasses import dataclass

from kerple_eval.support.registry import Registry


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """One report; ``takes`` is what it is made of, ``runs`` or ``models``."""

    name: str
    target: str
    summary: str
    takes: str = "runs"


REPORTS = Registry(
    "report",
    "kerple_eval.reports",
    ReportEntry,
    (
        ReportEntry(
            "table", "kerple_eval.reports.tables.table:render", "perplexity against length, models down"
        ),
        ReportEntry(
            "explain",
            "kerple_eval.reports.tables.explain:render",
            "why loss changed with length: dilution, context gain",
        ),
        ReportEntry("curve", "kerple_eval.reports.figures.curve:draw", "perplexity against length, log-log"),
        ReportEntry(
            "position",
            "kerple_eval.reports.figures.position:draw",
            "mean loss, or perplexity, against context",
        ),
        ReportEntry(
            "ratio",
            "kerple_eval.reports.figures.ratio:draw",
            "perplexity as a ratio to one scheme's, by length",
        ),
        ReportEntry(
            "scatter", "kerple_eval.reports.figures.scatter:draw", "two schemes document by document"
        ),
        ReportEntry(
            "page",
            "kerple_eval.reports.page.page:write",
            "one HTML page: tables, figures, provenance of numbers",
        ),
        ReportEntry(
            "depth",
            "kerple_eval.reports.figures.depth:draw",
            "exact match and loss of answers by length and depth",
        ),
        ReportEntry(
            "answers",
            "kerple_eval.reports.tables.answers:render",
            "exact match and loss of answers, as a table",
        ),
        ReportEntry(
            "longppl",
            "kerple_eval.reports.tables.longppl:render",
            "perplexity on the tokens that need long context, chosen by a reference model",
        ),
        ReportEntry(
            "kernels",
            "kerple_eval.reports.figures.kernels:draw",
            "learned kernels against distance",
            "models",
        ),
        ReportEntry(
            "effective-length",
            "kerple_eval.reports.figures.effective_length:draw",
            "how many heads' kernels have fallen by more than 2 within a distance",
            "models",
        ),
        ReportEntry(
            "matrix",
            "kerple_eval.reports.figures.matrix:draw",
            "one head's bias as a causal heat map",
            "models",
        ),
        ReportEntry(
            "compare",
            "kerple_eval.reports.tables.compare:render",
            "schemes against one: difference, interval, tests",
        ),
        ReportEntry(
            "intervals",
            "kerple_eval.reports.tables.intervals:render",
            "how sure each number is: text, seeds, both",
        ),
    ),
)
