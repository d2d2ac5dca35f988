"""``kerple-eval list``: what can be named on the command line. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from kerple_eval.catalogue import FORMATS, PROTOCOLS, REPORTS, schemes
from kerple_eval.checkpoints.shipped import read_config, shipped
from kerple_eval.data.task import read_task, task_files

Rows = list[tuple[str, ...]]


def lines(what: str) -> list[str]:
    """Aligned lines, the name first."""
    makers: dict[str, Callable[[], Rows]] = {
        "models": _models,
        "tasks": _tasks,
        "schemes": _schemes,
        "protocols": lambda: [(e.name, e.summary) for e in PROTOCOLS],
        "formats": lambda: [(e.name, e.summary) for e in FORMATS],
        "reports": lambda: [(e.name, e.summary) for e in REPORTS],
    }
    rows = makers[what]()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _models() -> Rows:
    rows: Rows = []
    for name, folder in shipped().items():
        config = read_config(folder)
        model, training = config["model"], config["training"]
        bits = training["held_out"]["bits_per_byte"]
        rows.append(
            (
                f"zoo:{name}",
                model["scheme"],
                f"trained at {model['train_length']}",
                f"{training['parameters']:,} parameters",
                f"{bits:.4f} bits per byte held out on {training['data']['task']}",
            )
        )
    return rows


def _tasks() -> Rows:
    rows: Rows = []
    for name, path in task_files().items():
        task = read_task(path)
        rows.append((name, f"v{task.version}", task.source.kind, task.description))
    return rows


def _schemes() -> Rows:
    return [
        (
            e.name,
            str(e.year),
            f"parameters {e.parameters}",
            "prefix-invariant" if e.prefix_invariant else "depends on total length",
            e.use,
            e.kind,
            e.paper,
        )
        for e in schemes().values()
    ]
