"""A pipe in place of a file is refused: reading it would wait for ever."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import kerple_eval
from kerple_eval.records.cell import file_name
from tests.helpers.command import Cli, refusal


@pytest.fixture(autouse=True)
def ends_soon() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.fixture(scope="module")
def run(models: dict[str, str], text: Path, tmp_path_factory: pytest.TempPathFactory) -> kerple_eval.Run:
    out = tmp_path_factory.mktemp("pipes") / "run"
    return kerple_eval.evaluate(f"m={models['alibi']}", text=text, lengths=16, out=out)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--text", "a.txt"), ("--text", "a.jsonl"), ("--text", "a.csv"), ("--text", "a.parquet"),
        ("--tokens", "a.jsonl"), ("--tokens", "a.idx"), ("--task", "a.yaml"),
    ],
)  # fmt: skip
def test_inputs(option: str, name: str, models: dict[str, str], tmp_path: Path, invoke: Cli) -> None:
    words = ["run", models["alibi"], option, str(pipe(tmp_path / name)), "--length", "16", "--out"]
    line = refusal(invoke(*words, str(tmp_path / "out")))
    assert name in line and ("not a regular file" in line or "does not exist" in line)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_checkpoints(name: str, models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    shutil.copytree(models["alibi"].removeprefix("native:"), tmp_path / "m")
    pipe(tmp_path / "m" / name)
    for model in ("native:", "hf:", ""):
        for command in (["inspect", f"{model}{tmp_path / 'm'}"],):
            assert refusal(invoke(*command))


def test_runs(run: kerple_eval.Run, models: dict[str, str], text: Path, tmp_path: Path, invoke: Cli) -> None:
    cell = f"cells/{file_name(run.keys()[0])}"
    names = {
        "run.json": ["table", "run", "report"], "summary.csv": ["table", "report"], f"{cell}.parquet":
        ["intervals", "run", "report"], f"{cell}.json": ["intervals", "run"], ".lock": ["run"],
        "in_progress.json": ["run"],
    }  # fmt: skip
    for number, (name, commands) in enumerate(names.items()):
        folder = tmp_path / str(number)
        shutil.copytree(run.folder, folder)
        if name == f"{cell}.json":
            (folder / f"{cell}.parquet").unlink()
        pipe(folder / name)
        for command in commands:
            words = [command, str(folder)]
            if command == "run":
                words = ["run", f"m={models['alibi']}", "--text", str(text), "--length", "16", "--out"]
                words.append(str(folder))
            line = refusal(invoke(*words))
            assert "not a regular file" in line or "not a run directory" in line, (name, command)
