"""Results to lm-evaluation-harness' JSON layout, and such files into pandas. Imports no torch.

Source: lm_eval 0.4.13, ``evaluator_utils.py`` (EvalAcc), ``loggers/evaluation_tracker.py``
(save_results_aggregated), ``utils.py`` (make_table). One file per model:

    results           task -> alias, "METRIC,FILTER" and "METRIC_stderr,FILTER" ("N/A" where there is none)
    configs           task -> its configuration; versions, n-shot, higher_is_better, n-samples likewise
    config            the model and how it was run; date, model_name, ... beside it

A cell becomes the task ``TASK/PROTOCOL/LENGTH``, with what identifies it under ``configs.TASK.metadata``.
Metrics, filter ``none``: ``nll`` (nats per target), ``token_perplexity``, where bytes are known
``bits_per_byte`` and ``byte_perplexity`` (2 to that power), where answers were scored ``exact_match``.
``word_perplexity`` needs words, which no cell counts. Standard errors are over documents (linearised ratio
of sums; of powers by the delta method; of exact matches as lm-eval's mean), from five documents on. A
failed cell has no number: it stands under ``kerple_eval.failed``, which lm-eval's tools do not read.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.records.answers import answers
from kerple_eval.records.cell import Cell, FailedCell
from kerple_eval.records.run import Run
from kerple_eval.records.specification import TaskRecord
from kerple_eval.stats.documents import document_sums
from kerple_eval.stats.intervals import MINIMUM_DOCUMENTS, sums_interval
from kerple_eval.support.files import is_folder
from kerple_eval.support.readers import read_json
from kerple_eval.support.typed_json import to_json
from kerple_eval.types import UserError

if TYPE_CHECKING:
    import pandas as pd

HIGHER_IS_BETTER = {
    "nll": False, "token_perplexity": False, "bits_per_byte": False, "byte_perplexity": False,
    "exact_match": True,
}  # fmt: skip
NO_METRIC = ("alias", "name", "sample_len", "sample_count")
COLUMNS = (
    "model", "name", "task", "protocol", "length", "version", "n_shot", "metric", "filter", "value",
    "stderr", "higher_is_better", "samples", "file",
)  # fmt: skip


def content(run: Run, label: str) -> bytes | None:
    """The file for one model; None where none of its cells is finished."""
    data = to_lm_eval(run, label)
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n" if data["results"] else None


def to_lm_eval(run: Run, model: str) -> dict[str, Any]:
    """The results of one model of a run in lm-eval's layout."""
    entry = run.specification.model(model)
    texts = {task.name: task for task in run.specification.tasks}
    parts: dict[str, dict[str, Any]] = {
        name: {} for name in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    }
    failed: dict[str, str] = {}
    seconds = 0.0
    dtype = device = None
    keys = [key for key in run.keys() if key.model == model]  # noqa: SIM118 - no mapping's
    for cell in map(run.cell, keys):
        if cell is None:
            continue
        name = f"{cell.key.task}/{cell.key.protocol}/{cell.key.length}"
        if isinstance(cell, FailedCell):
            failed[name] = cell.error
            continue
        text = texts[cell.key.task]
        metrics = _metrics(cell)
        parts["results"][name] = {"alias": name, **_layout(metrics)}
        parts["configs"][name] = _config(cell, text, list(metrics))
        parts["versions"][name] = _version(text)
        parts["n-shot"][name] = 0
        parts["higher_is_better"][name] = {metric: HIGHER_IS_BETTER[metric] for metric in metrics}
        used = len(set(cell.document.tolist()))
        there = used if text.selection is None else text.selection.documents
        parts["n-samples"][name] = {"original": max(there, used), "effective": used}
        seconds += cell.header.seconds or 0.0
        dtype, device = cell.header.dtype, cell.header.device
    last = run.provenance.sessions[-1] if run.provenance.sessions else None
    return {
        "results": parts.pop("results"),
        "group_subtasks": {},
        **parts,
        "config": {
            "model": entry.format,
            "model_args": run.provenance.models.get(model),
            "model_num_parameters": entry.parameters,
            "model_dtype": dtype,
            "model_sha": entry.weights_sha256,
            "batch_size": None,
            "batch_sizes": [],
            "device": device,
            "use_cache": None,
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": {},
        },
        "date": None if last is None else datetime.fromisoformat(last.began).timestamp(),
        "transformers_version": None if last is None else last.transformers,
        "model_source": entry.format,
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "total_evaluation_time_seconds": str(seconds),
        "task_hashes": {},
        "kerple_eval": {
            "version": None if last is None else last.kerple_eval,
            "model": to_json(entry),
            "failed": failed,
        },
    }


def _metrics(cell: Cell) -> dict[str, tuple[float, float | None]]:
    """Metric -> value and standard error over documents; a value beyond the largest float is left out."""
    row = cell.summary()
    found = sums_interval(document_sums(cell))
    nll = None if found.nll is None else found.nll.error
    bits = None if found.bits_per_byte is None else found.bits_per_byte.error
    metrics: dict[str, tuple[float, float | None]] = {"nll": (row["nll"], nll)}
    if row["ppl"] is not None:
        metrics["token_perplexity"] = (row["ppl"], None if nll is None else row["ppl"] * nll)
    if row["bits_per_byte"] is not None:
        metrics["bits_per_byte"] = (row["bits_per_byte"], bits)
        if row["bits_per_byte"] < sys.float_info.max_exp:
            power = 2.0 ** row["bits_per_byte"]
            metrics["byte_perplexity"] = (power, None if bits is None else math.log(2) * power * bits)
    if cell.hits is not None:
        exact = [answer.exact for answer in answers(cell)]
        share, n = sum(exact) / len(exact), len(exact)
        error = math.sqrt(share * (1 - share) / (n - 1)) if n >= MINIMUM_DOCUMENTS else None
        metrics["exact_match"] = (share, error)
    return metrics


def _layout(metrics: dict[str, tuple[float, float | None]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for metric, (value, error) in metrics.items():
        finite = error is not None and math.isfinite(error)
        values[f"{metric},none"] = value
        values[f"{metric}_stderr,none"] = error if finite else "N/A"
    return values


def _config(cell: Cell, text: TaskRecord, metrics: list[str]) -> dict[str, Any]:
    row = cell.summary()
    identity = ("task", "protocol", "length", "windows", "targets", "targets_hash", "dtype", "device")
    return {
        "task": f"{cell.key.task}/{cell.key.protocol}/{cell.key.length}",
        "dataset_path": cell.key.task,
        "output_type": "loglikelihood" if cell.hits is not None else "loglikelihood_rolling",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "higher_is_better": HIGHER_IS_BETTER[metric]} for metric in metrics
        ],
        "metadata": {
            "version": _version(text),
            **{key: row[key] for key in identity},
            "longest": cell.key.longest,
            "text": to_json(text),
        },
    }


def _version(text: TaskRecord) -> int | str:
    return "N/A" if text.version is None else text.version


def sanitized(name: str) -> str:
    """As lm-eval names a model's folder."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def read_lm_eval(path: str | Path) -> pd.DataFrame:
    """Results in lm-eval's layout, from this package or from lm-eval: one row per task, metric and filter.

    ``path`` is a file, or a folder whose ``results*.json`` are read, at any depth. Columns: model, name
    (lm-eval's name of the task), task, protocol and length (of a cell of this package; elsewhere task is
    the name and the others are missing), version, n_shot, metric, filter, value, stderr (missing where
    "N/A"), higher_is_better, samples (effective), file.

    Raises:
        UserError: nothing to read, or a file that is not in this layout.
    """
    import pandas as pd  # noqa: PLC0415

    source = Path(path)
    files = sorted(source.rglob("results*.json")) if is_folder(source) else [source]
    if not files:
        raise UserError(f"{source}: holds no results*.json, as lm-eval writes them")
    rows = [row for file in files for row in _rows(file)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    try:
        return frame.astype({"length": "Int64", "samples": "Int64", "value": "float64", "stderr": "float64"})
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not in the layout of lm-evaluation-harness: {error}") from None


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    data = read_json(file)
    results = data.get("results")
    if not isinstance(results, dict) or not all(isinstance(found, dict) for found in results.values()):
        raise UserError(f'{file}: no "results" of tasks; expected the layout of lm-evaluation-harness')
    model = data.get("model_name") or _get(data, "config", "model_args") or _get(data, "config", "model")
    for name, found in results.items():
        cell_key = {
            key: _get(data, "configs", name, "metadata", key) for key in ("task", "protocol", "length")
        }
        for key, value in found.items():
            metric, _, chosen = key.partition(",")
            if key in NO_METRIC or metric.endswith("_stderr") or not _number(value):
                continue
            error = found.get(f"{metric}_stderr,{chosen}" if chosen else f"{metric}_stderr")
            yield {
                "model": model, "name": name, **cell_key, "task": cell_key["task"] or name,
                "version": _get(data, "versions", name), "n_shot": _get(data, "n-shot", name),
                "metric": metric, "filter": chosen or None, "value": value,
                "stderr": error if _number(error) else None,
                "higher_is_better": _get(data, "higher_is_better", name, metric),
                "samples": _get(data, "n-samples", name, "effective"), "file": str(file),
            }  # fmt: skip


def _get(data: Any, *keys: str) -> Any:
    """``data[a][b]...``; None where any is not there."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
