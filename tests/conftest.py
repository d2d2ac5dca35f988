"""Shared fixtures: tiny checkpoints (byte models, two layers, width 16) and texts of a few hundred bytes.

One thread: sums then come out in one order, and the suite shares a machine politely.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kerple_eval.cli.main import cli
from kerple_eval.models.decoder.scored import DecoderModel
from tests.helpers.command import Cli, make_model, prose

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``-n 2`` gives each worker one half in order, so that most modules' fixtures are made once."""
    from xdist.scheduler import WorkStealingScheduling  # noqa: PLC0415

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes stay out of a test's name: a gzip file's holds a time, on which two workers disagree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """MODEL arguments by scheme."""
    root = tmp_path_factory.mktemp("models")
    schemes = ("alibi", "rope", "kerple-log", "nope")
    return {s: f"native:{make_model(root / s, s, seed)}" for seed, s in enumerate(schemes)}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One document of 137 bytes."""
    path = tmp_path_factory.mktemp("text") / "one.txt"
    raw = prose(40, 3).encode()[:137]
    path.write_bytes(raw.decode(errors="ignore").encode().ljust(137, b"."))
    return path


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven documents as JSON lines; document i has 60 + 20 i bytes."""
    path = tmp_path_factory.mktemp("library") / "seven.jsonl"
    lines = []
    for i in range(7):
        raw = prose(60, i + 2).encode()[: 60 + 20 * i].decode(errors="ignore").encode()
        lines.append(json.dumps({"text": raw.ljust(60 + 20 * i, b".").decode()}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def invoke() -> Cli:
    """The command in this process; ``stderr`` is apart from ``stdout``."""

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def good(models: dict[str, str], text: str, tmp_path: Path) -> dict[str, list[str]]:
    """A good command, by part."""
    return {
        "model": [models["alibi"]],
        "text": ["--text", text],
        "length": ["--length", "16,32"],
        "out": ["--out", str(tmp_path / "out")],
        "more": [],
    }


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs of every forward pass from here on."""
    seen: list[tuple[int, ...]] = []
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        seen.append(tuple(inputs.shape))
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    return seen
