"""Whole inputs of each format, and the commands that read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import kerple_eval
from tests.helpers import megatron_writer
from tests.helpers.command import make_model, prose

TASK = """name: own
version: 1
description: a text beside this file
licence: none
source:
  kind: files
  path: .
  files: "*.txt"
split:
  test: 1.0
documents:
  count: 2
"""


@dataclass(frozen=True)
class Format:
    """``build`` writes a whole input; ``command`` reads what lies in a folder; ``damaged`` are its patterns.

    ``trusted``: an answer of status 0 must be the whole input's own, since what is read carries checksums.
    """

    build: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    damaged: tuple[str, ...] = ("**/*",)
    trusted: bool = False


def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(prose(60, 3))
    return path


def score(model: str) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        return [
            "run", f"m={model.format(folder=folder)}", "--text", str(folder / "text.txt"), "--length", "16",
            "--max-tokens", "40", "--out", str(folder / "out"),
        ]  # fmt: skip

    return command


def native(folder: Path) -> None:
    text(folder)
    make_model(folder / "model", "kerple-log")


def task(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.txt").write_text(prose(60 + number, 3))
    (folder / "own.yaml").write_text(TASK)


def lines(folder: Path) -> None:
    rows = [{"text": prose(30 + i, i + 2), "name": f"d{i}"} for i in range(4)]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def ids(folder: Path) -> None:
    rows = [{"tokens": list(range(40 + i)), "name": f"d{i}"} for i in range(3)]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")


def mapped(folder: Path) -> None:
    megatron_writer.write(folder / "own", [list(range(50)), list(range(60))])


def run(folder: Path) -> None:
    text(folder)
    model = make_model(folder / "model", "alibi")
    kerple_eval.evaluate(
        f"m=native:{model}", text=folder / "text.txt", lengths=[8, 16], out=folder / "run",
        protocols=["full-context", "aligned:k=4"],
    )  # fmt: skip


def hugging_face(folder: Path) -> None:
    from tests.helpers import hf_folders  # noqa: PLC0415 - imports transformers

    text(folder)
    hf_folders.save(folder / "model", hf_folders.model("llama"))
    rows = {"tokens": [int(i) % 11 for i in range(41)]}
    (folder / "ids.jsonl").write_text(json.dumps(rows) + "\n")


def gguf(folder: Path) -> None:
    from transformers import LlamaConfig  # noqa: PLC0415

    from tests.helpers import hf_folders  # noqa: PLC0415
    from tests.models.hf.test_gguf import ROPE, write  # noqa: PLC0415

    (folder / "model").mkdir()
    made = hf_folders.model(LlamaConfig(**hf_folders.sized(rope_parameters=ROPE)))
    write(folder / "model" / "tiny.gguf", made)
    (folder / "ids.jsonl").write_text(json.dumps({"tokens": [int(i) % 11 for i in range(41)]}) + "\n")


def hugging_face_command(folder: Path) -> list[str]:
    return [
        "run", f"m=hf:{folder / 'model'}", "--tokens", str(folder / "ids.jsonl"), "--length", "16",
        "--max-tokens", "40", "--out", str(folder / "out"),
    ]  # fmt: skip


def neox(folder: Path) -> None:
    from tests.helpers import neox_writer  # noqa: PLC0415

    neox_writer.write(folder / "model", neox_writer.variant())
    rows = {"tokens": [int(i) % 11 for i in range(41)]}
    (folder / "ids.jsonl").write_text(json.dumps(rows) + "\n")


def neox_command(folder: Path) -> list[str]:
    return [
        "run", f"m=neox:{folder / 'model'}", "--tokens", str(folder / "ids.jsonl"), "--length", "8",
        "--max-tokens", "20", "--out", str(folder / "out"),
    ]  # fmt: skip


def of_task(source: list[str]) -> Callable[[Path], list[str]]:
    def command(folder: Path) -> list[str]:
        return [
            "run", "m=zoo:nope", *(word.format(folder=folder) for word in source), "--length", "16",
            "--max-tokens", "40", "--out", str(folder / "out"),
        ]  # fmt: skip

    return command


FORMATS: dict[str, Format] = {
    "native": Format(native, score("native:{folder}/model"), ("model/*",)),
    "hf": Format(hugging_face, hugging_face_command, ("model/*",)),
    "gguf": Format(gguf, hugging_face_command, ("model/*",)),
    "neox": Format(neox, neox_command, ("model/**/*",)),
    "task": Format(task, of_task(["--task", "{folder}/own.yaml"]), ("own.yaml",)),
    "lines": Format(lines, of_task(["--text", "{folder}/own.jsonl"]), ("own.jsonl",)),
    "ids": Format(ids, of_task(["--tokens", "{folder}/own.jsonl"]), ("own.jsonl",)),
    "mapped": Format(mapped, of_task(["--tokens", "{folder}/own.idx"]), ("own.*",)),
    "run-table": Format(run, lambda f: ["table", str(f / "run")], ("run/run.json", "run/summary.csv")),
    "run-intervals": Format(
        run, lambda f: ["intervals", str(f / "run"), "--format", "csv"], ("run/cells/*",), trusted=True
    ),
    "run-report": Format(run, lambda f: ["report", str(f / "run")], ("run/**/*",)),
    "run-resume": Format(
        run,
        lambda f: [
            "run", f"m=native:{f / 'model'}", "--text", str(f / "text.txt"), "--length", "8,16",
            "--protocol", "full-context", "--protocol", "aligned:k=4", "--out", str(f / "run"),
        ],
        ("run/**/*",),
    ),
}  # fmt: skip
