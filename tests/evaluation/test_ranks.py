"""Several processes on one run, by the command a user types: the same bytes, whoever shares the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.evaluation.ranks import RankGroup, ScoreRequest
from kerple_eval.models.scoring import Batch, Budget
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from tests.helpers.command import make_model

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(folder: Path, ranks: int, out: str, *more: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python"]
    return [
        *(torchrun if ranks > 1 else []), sys.executable, "-m", "kerple_eval", "run",
        str(folder / "kerple-log"), str(folder / "rope"), "--text", str(folder / "text.txt"),
        "--length", "16,48", "--protocol", "full-context", "--protocol", "sliding-window:stride=8",
        "--device", "cpu", "--out", str(folder / out), *more,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("kerple-log", "rope"):
        make_model(tmp_path / name, name)
    (tmp_path / "text.txt").write_text("A line of text, and a longer one after it. " * 120)
    return tmp_path


def run(folder: Path, ranks: int, out: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, ranks, out, *more), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def losses(folder: Path) -> list[bytes]:
    return [
        b"".join(row.tobytes() for row in cell.losses)
        for cell in open_run(folder).cells()
        if isinstance(cell, Cell)
    ]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_bytes_at_any_number_of_ranks(folder: Path, ranks: int) -> None:
    alone, together = run(folder, 1, "one"), run(folder, ranks, "many")
    assert alone.returncode == together.returncode == 0, together.stderr
    assert (folder / "one" / "summary.csv").read_bytes() == (folder / "many" / "summary.csv").read_bytes()
    assert losses(folder / "one") == losses(folder / "many")
    assert len(losses(folder / "many")) == 8
    assert together.stdout.replace("/many", "/one") == alone.stdout  # rank 0 alone talks
    assert open_run(folder / "many").provenance.sessions[0].ranks == ranks
    again = run(folder, ranks, "many")  # nothing left to do
    assert again.returncode == 0


def test_a_cluster_s_own_rank_means_nothing(folder: Path) -> None:
    """Some schedulers set RANK and WORLD_SIZE for jobs that stand alone."""
    environment = ENVIRONMENT | {"RANK": "3", "WORLD_SIZE": "8"}
    done = subprocess.run(
        command(folder, 1, "out"), env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "8 cells in" in done.stdout


WRONG = [
    (["--protocol", "fullcontext"], "did you mean 'full-context'"),
    pytest.param(
        ["--device", "cuda"], "no CUDA device is visible",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_wrong_command_is_one_line_of_rank_0(folder: Path, words: list[str], said: str) -> None:
    done = run(folder, 2, "out", *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "is gone" not in done.stderr
    assert "exitcode  : 2 " in done.stderr  # torchrun's own status is 1 whatever went wrong
    assert not (folder / "out").exists()


def test_the_budget_is_the_smallest_of_any_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of three: another rank found less memory, and its losses come after rank 0's own."""
    scored: list[tuple[int, tuple[int, int]]] = []

    class Fixed(ScoreRequest):
        def scored(self, model: Any, budget: Budget, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
            scored.append((budget.tokens, share))
            yield [0], [np.zeros(1, dtype=np.float32)]

    others: list[Any] = [None, ([([1], [])], 16), ([([2], [])], 48)]
    monkeypatch.setattr(RankGroup, "_tell", lambda self, order: order)
    monkeypatch.setattr(RankGroup, "_gather", lambda self, error: others)
    budget = Budget(64)
    found = RankGroup(0, 3).score(SimpleNamespace(), Fixed([], [], None, False), budget)  # type: ignore[arg-type]
    assert [members for members, _ in found] == [[0], [1], [2]]
    assert scored == [(64, (0, 3))]
    assert budget.tokens == 16


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_no_finished_cell(folder: Path, rank: int) -> None:
    (folder / "text.txt").write_text("A line of text, and a longer one after it. " * 1500)
    assert run(folder, 1, "whole").returncode == 0
    began = subprocess.Popen(
        command(folder, 2, "killed"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((folder / "killed").glob("cells/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            facts = place.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            f"RANK={rank}".encode() in facts
            and str(folder).encode() in (place.parent / "cmdline").read_bytes()
        ):
            os.kill(int(place.parent.name), signal.SIGKILL)
    assert began.wait(timeout=120) != 0
    done = run(folder, 2, "killed")
    assert done.returncode == 0, done.stderr
    assert (folder / "killed" / "summary.csv").read_bytes() == (folder / "whole" / "summary.csv").read_bytes()
