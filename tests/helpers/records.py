"""Complete records of models, texts and sessions, where a test cares for a few keys; ``run.json`` of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.header import DocumentRecord, FailedHeader, FinishedHeader
from kerple_eval.records.specification import Marker


def model(label: str, **facts: Any) -> dict[str, Any]:
    whole = {
        "label": label, "format": "native", "scheme": "log", "seed": None, "train_length": 64,
        "parameters": 1, "weights_sha256": "0" * 64,
    }  # fmt: skip
    return whole | facts


def session(**facts: Any) -> dict[str, Any]:
    whole = {
        "began": "2026-11-25T07:18:16+00:00", "command": ["kerple-eval", "run"], "kerple_eval": "0.1.0",
        "torch": "2.13.0", "python": "3.11.7", "platform": "Linux", "threads": 1, "device": "x86_64",
    }  # fmt: skip
    return whole | facts


def write_run_json(
    folder: Path,
    *,
    models: Sequence[dict[str, Any]],
    tasks: Sequence[str | dict[str, Any]],
    protocols: Sequence[dict[str, Any]],
    sessions: Sequence[dict[str, Any]] = (),
    **specification: Any,
) -> None:
    """``run.json`` of a run with these parts; a task by its name, or as its record."""
    content = {
        "keep_short": False,
        "max_tokens": None,
        "device": "cpu",
        "dtype": "float32",
        "protocols": list(protocols),
        "models": list(models),
        "tasks": [{"name": task} if isinstance(task, str) else task for task in tasks],
        **specification,
    }
    run = {"schema_version": 1, "specification": content, "provenance": {"sessions": list(sessions)}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))


PRECISION = {"share": 0.01, "against": None, "level": 0.95, "looks": {"book": [5]}}
NEVER = Marker("never", None)


def failed_header(**facts: Any) -> FailedHeader:
    whole = {
        "scheme": "log", "seed": None, "train_length": 16, "dtype": "float32", "device": "cpu",
        "first_token": NEVER,
    }  # fmt: skip
    return FailedHeader(**whole | facts)


def header(documents: Sequence[tuple[str, int, str]], **facts: Any) -> FinishedHeader:
    """Of a finished cell; ``documents`` are name, tokens and sha256."""
    whole = {
        "scheme": "log", "seed": None, "train_length": 16, "dtype": "float32", "device": "cpu",
        "first_token": NEVER,
    }  # fmt: skip
    return FinishedHeader(documents=tuple(DocumentRecord(*d) for d in documents), **whole | facts)
