"""Ranks wait for one that is slow, and no longer than their patience for one that is stopped or killed."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import make_model
from tests.helpers.ranks import in_processes, rank_environments

PATIENCE = 3.0

#: Rank 1 does ``DEED`` in its second pass; every rank says what became of its run and when.
SCRIPT = """
import os, signal, sys, time
from datetime import timedelta
from kerple_eval.cli.main import main
from kerple_eval.evaluation import pulse
from kerple_eval.evaluation.ranks import ScoreRequest

pulse.PATIENCE = timedelta(seconds=float(os.environ["PATIENCE"]))
real, passes = ScoreRequest.run, []

def run(self, model, budget, share=(0, 1)):
    passes.append(share)
    if share[0] == 1 and len(passes) == 2:
        print("begins", time.time(), flush=True)
        exec(os.environ["DEED"])
    yield from real(self, model, budget, share)

ScoreRequest.run = run
try:
    main()
finally:
    print("ended", time.time(), flush=True)
"""


def ranks(tmp_path: Path, deed: str, count: int = 2) -> tuple[list[Any], list[dict[str, float]]]:
    """What each rank returned and wrote, and the times that it told."""
    make_model(tmp_path / "rope", "rope")
    (tmp_path / "text.txt").write_text("A line of text, and a longer one after it. " * 40)
    (tmp_path / "script.py").write_text(SCRIPT)
    words = ["run", str(tmp_path / "rope"), "--text", str(tmp_path / "text.txt"), "--length", "16,32,48"]
    words += ["--protocol", "full-context", "--device", "cpu", "--out", str(tmp_path / "out")]
    more = {"PATIENCE": str(PATIENCE), "DEED": deed}
    environments = [facts | more for facts in rank_environments(count)]
    done = in_processes(tmp_path / "ranks", words, *environments, script=tmp_path / "script.py")
    told = [
        {word: float(when) for word, when in re.findall(r"^(begins|ended) (\S+)$", rank.stdout, re.MULTILINE)}
        for rank in done
    ]
    return done, told


def test_a_rank_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    done, told = ranks(tmp_path, f"time.sleep({2 * PATIENCE})")
    assert [rank.returncode for rank in done] == [0, 0], done
    assert told[0]["ended"] - told[1]["begins"] >= 2 * PATIENCE
    assert (tmp_path / "out" / "summary.csv").read_text().count(",ok,") == 3


@pytest.mark.parametrize(
    ("deed", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        # Stopped by itself, and continued by a child of its own long after the others should have ended.
        (
            f"os.fork() or (time.sleep({4 * PATIENCE}), os.kill(os.getppid(), signal.SIGCONT), os._exit(0));"
            "os.kill(os.getpid(), signal.SIGSTOP)",
            1,
        ),
    ],
)
def test_a_rank_that_is_gone_ends_the_others(tmp_path: Path, deed: str, status: int) -> None:
    done, told = ranks(tmp_path, deed, 3)
    assert [rank.returncode for rank in done] == [1, status, 1], done
    for number in (0, 2):
        (line,) = done[number].stderr.splitlines()
        lost = 1 if number == 0 else 0
        assert line.startswith(f"rank {number}: another process of this run (rank {lost}) has ended"), line
        assert line.endswith("finished cells are kept, the same command continues")
        assert told[number]["ended"] - told[1]["begins"] <= 3.5 * PATIENCE
    assert (tmp_path / "out" / "summary.csv").read_text().count(",ok,") == 1
