"""The estimate of ``inspect`` against what a process really takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kerple_eval.models.footprint import window_bytes
from kerple_eval.models.open import open_model, parse_model
from tests.benchmarks.piece_rows import measured

PROGRAM = """
import sys
import numpy as np, torch
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scoring import score
from kerple_eval.types import Window
torch.set_num_threads(1)
model = open_model(parse_model(sys.argv[1])).load(torch.device("cpu"), torch.float32)
tokens = np.zeros(20000, dtype=np.int64)
def peak(length):
    list(score(model, [tokens], [(0, Window(0, length, 1))]))
    # of this program alone; getrusage would count what its parent held when it was forked
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
low = peak(2048)
print(peak(int(sys.argv[2])) - low)
"""


def test_more_tokens_and_wider_numbers_take_more() -> None:
    description = open_model(parse_model("zoo:kerple-log")).description
    sizes = [window_bytes(description, length, 4) for length in (2048, 4096, 16384)]
    assert sizes == sorted(set(sizes))
    assert window_bytes(description, 4096, 2) < sizes[1]
    assert sizes[0] > 4 * description.parameters


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_estimate_is_near_the_truth() -> None:
    """What 16,384 tokens add to what 2,048 take, within a factor of 1.3."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "zoo:kerple-log", "16384"], capture_output=True, text=True, check=True
    )
    description = open_model(parse_model("zoo:kerple-log")).description
    estimate = window_bytes(description, 16384, 4) - window_bytes(description, 2048, 4)
    assert 1 / 1.3 < estimate / int(done.stdout) < 1.3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_logits_do_not_pile_up() -> None:
    """One window of 32,768 tokens at V = 128,256: its 504 chunks of logits of 33 MB took 11 GB of heap, which
    the small tensors of losses between them kept from being used again."""
    (short, _), (whole, _) = measured("short"), measured("whole")
    assert whole - short < 1.5
