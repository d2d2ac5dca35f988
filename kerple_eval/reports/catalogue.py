"""What runs or models can be shown as (tables, figures, pages), and the formats of ``export``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kerple_eval.support.registry import Registry


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """One report; its target is a function of what it ``takes``: run directories, or views of models.

    What ``output`` says decides how it is called:

        text    ``make(sources, style=..., **options) -> str``
        figure  ``make(sources, out, **options)``, which writes the file ``out``
        page    ``make(sources, out, style, **options)``, which returns the files that it wrote
    """

    name: str
    target: str
    summary: str
    output: Literal["text", "figure", "page"]
    takes: Literal["runs", "models"] = "runs"


def _table(name: str, summary: str) -> ReportEntry:
    return ReportEntry(name, f"kerple_eval.reports.tables.{name}:make", summary, "text")


def _figure(name: str, summary: str, takes: Literal["runs", "models"] = "runs") -> ReportEntry:
    module = name.replace("-", "_")
    return ReportEntry(name, f"kerple_eval.reports.figures.{module}:make", summary, "figure", takes)


REPORTS = Registry(
    "report",
    "kerple_eval.reports",
    ReportEntry,
    (
        _table("table", "perplexity against length, models down"),
        _table("explain", "why loss changed with length: dilution, context gain"),
        _table("between", "why two protocols give one model two numbers, effect by effect"),
        _table("gain", "where the gain comes from: targets seen before or new, kinds of token, spans"),
        _figure("curve", "perplexity against length, log-log"),
        _figure("position", "mean loss, or perplexity, against context"),
        _figure("ratio", "perplexity as a ratio to one scheme's, by length"),
        _figure("scatter", "two schemes document by document"),
        ReportEntry(
            "page",
            "kerple_eval.reports.page.page:make",
            "one HTML page: tables, figures, provenance of numbers",
            "page",
        ),
        _figure("depth", "exact match and loss of answers by length and depth"),
        _table("answers", "exact match and loss of answers, as a table"),
        _table("longppl", "perplexity on the tokens that need long context, chosen by a reference model"),
        _figure("divergence", "divergence from a reference's predictions, by length and by context"),
        ReportEntry(
            "divergences",
            "kerple_eval.reports.tables.divergence:make",
            "how far predictions are from a reference's: means, percentiles, by context",
            "text",
        ),
        _figure("kernels", "learned kernels against distance", "models"),
        _figure(
            "kernel-reach",
            "how many heads' kernels have fallen by more than 2 within a distance",
            "models",
        ),
        _figure("training", "perplexity against training steps, of a model that was watched"),
        _figure("matrix", "one head's bias as a causal heat map", "models"),
        _table("compare", "schemes against one: difference, interval, tests"),
        _table("reach", "how far each model holds, and the longest context it is shown to use"),
        _table("intervals", "how sure each number is: text, seeds, both"),
    ),
)


@dataclass(frozen=True, slots=True)
class ExportEntry:
    """One format of files of ``export``; its target is ``content(run, label) -> bytes | None``.

    ``file``: what is written in a model's folder.
    """

    name: str
    target: str
    summary: str
    file: str


EXPORTS = Registry(
    "format of an export",
    "kerple_eval.exports",
    ExportEntry,
    (
        ExportEntry(
            "lm-eval",
            "kerple_eval.reports.lm_eval:content",
            "lm-evaluation-harness' JSON layout",
            "results.json",
        ),
        ExportEntry(
            "hub",
            "kerple_eval.reports.hub:content",
            "evaluation results of a model repository on the Hugging Face hub",
            ".eval_results/kerple-eval.yaml",
        ),
    ),
)
