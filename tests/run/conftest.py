"""Tiny checkpoints and texts for runs: byte models of two layers and width 16, a few hundred bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from kerple_eval.checkpoints.decoder_model import DecoderModel
from kerple_eval.checkpoints.native import write_checkpoint
from kerple_eval.cli import cli
from kerple_eval.data.tokenizer import JsonTokenizer
from tests import tiny

Cli = Callable[..., Result]

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "résumés", "of", "seven", "wizards"]


def prose(count: int, step: int) -> str:
    """``count`` words in an order that depends on ``step``, with two-byte characters among them."""
    return " ".join(WORDS[(i * step + i * i) % len(WORDS)] for i in range(count))


def make_model(
    folder: Path, scheme: str, seed: int = 0, *, tokenizer: bytes | None = None, vocabulary: int = 256
) -> Path:
    """A native checkpoint with random weights; its training seed is recorded as ``seed``."""
    shape = tiny.config(scheme, vocab_size=vocabulary, width=16, heads=2, mlp_width=24, train_length=16)
    made = tiny.decoder(shape, seed, torch.float32)
    if tokenizer is None:
        write_checkpoint(folder, made, seed=seed)
    else:
        path = folder.with_suffix(".json")
        path.write_bytes(tokenizer)
        write_checkpoint(folder, made, seed=seed, tokenizer=JsonTokenizer(path))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """MODEL arguments by scheme."""
    root = tmp_path_factory.mktemp("models")
    schemes = ("alibi", "rope", "kerple-log", "nope")
    return {s: f"native:{make_model(root / s, s, seed)}" for seed, s in enumerate(schemes)}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One document of 137 bytes."""
    path = tmp_path_factory.mktemp("text") / "one.txt"
    raw = prose(40, 3).encode()[:137]
    path.write_bytes(raw.decode(errors="ignore").encode().ljust(137, b"."))
    return str(path)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven documents as JSON lines; document i has 60 + 20 i bytes."""
    path = tmp_path_factory.mktemp("library") / "seven.jsonl"
    lines = []
    for i in range(7):
        raw = prose(60, i + 2).encode()[: 60 + 20 * i].decode(errors="ignore").encode()
        lines.append(json.dumps({"text": raw.ljust(60 + 20 * i, b".").decode()}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def invoke() -> Cli:
    """The command in this process; ``stderr`` is apart from ``stdout``."""

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli, list(arguments))

    return call


def refusal(result: Result) -> str:
    """The one line of a refusal: exit status 2, nothing else on stderr, no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under ``folder`` by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def command(good: dict[str, list[str]], **changes: list[str]) -> list[str]:
    return ["run", *(word for part in (good | changes).values() for word in part)]


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
