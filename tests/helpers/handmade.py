"""Run directories written by hand: ``run.json`` and ``summary.csv`` as the contract has them, no cells."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.helpers.records import model, write_run_json

HEADER = (
    "model,scheme,seed,train_length,task,protocol,length,documents,windows,targets,targets_hash,"
    "nll,ppl,bits_per_byte,dtype,device,status,error"
)


def row(model: str, length: int, ppl: float | str | None, **changes: object) -> str:
    """A line of ``summary.csv``; ``ppl`` None is a failed cell, text is written as it stands."""
    values: dict[str, object] = {
        "model": model, "scheme": model, "seed": 1, "train_length": 512, "task": "sotu",
        "protocol": "full-context", "length": length, "documents": 3, "windows": 9, "targets": 3000,
        "targets_hash": "aaaa", "nll": 1.0, "ppl": ppl, "bits_per_byte": "", "dtype": "float32",
        "device": "cpu", "status": "ok", "error": "",
    }  # fmt: skip
    if ppl is None:
        empty = ("documents", "windows", "targets", "targets_hash", "nll", "ppl", "bits_per_byte")
        values |= dict.fromkeys(empty, "") | {"status": "failed", "error": "MemoryError: no room"}
    values |= changes
    assert list(values) == HEADER.split(",")
    return ",".join(str(v) for v in values.values())


def write_run(folder: Path, lines: list[str], tokenizers: dict[str, str] | None = None) -> Path:
    """A run directory whose ``run.json`` states what the lines do; every model reads bytes unless
    ``tokenizers`` says otherwise.
    """
    rows = list(csv.DictReader([HEADER, *lines]))
    models = {row["model"]: row for row in reversed(rows)}
    protocols = {p: sorted({int(row["length"]) for row in rows if row["protocol"] == p})
                 for p in dict.fromkeys(row["protocol"] for row in rows)}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_run_json(
        folder,
        models=[
            model(
                name, scheme=models[name]["scheme"], tokenizer=(tokenizers or {}).get(name, "bytes"),
                seed=_number(models[name]["seed"]), train_length=_number(models[name]["train_length"]),
            )
            for name in dict.fromkeys(row["model"] for row in rows)
        ],
        tasks=list(dict.fromkeys(row["task"] for row in rows)) or ["sotu"],
        protocols=[{"protocol": p, "lengths": lengths, "longest": None} for p, lengths in protocols.items()],
    )  # fmt: skip
    (folder / "summary.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


def _number(text: str) -> int | None:
    return int(text) if text else None
