"""The command and what it is run on in tests: tiny checkpoints, and what its answers look like."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from click.testing import Result

from kerple_eval.data.tokenizer import JsonTokenizer
from kerple_eval.models.native import write_checkpoint
from tests.helpers import tiny

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


def command(good: dict[str, list[str]], **changes: list[str]) -> list[str]:
    return ["run", *(word for part in (good | changes).values() for word in part)]


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every finished cell."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (out / "cells").glob("*.parquet")}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def imported(*words: str) -> set[str]:
    """Top-level packages that ``python -X importtime -m kerple_eval WORDS`` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kerple_eval", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip()
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
