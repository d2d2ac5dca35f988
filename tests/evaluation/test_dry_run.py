"""--dry-run: counts from the plan, work by torch's own counter, time by the truth; nothing scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kerple_eval.evaluation.forecast import _predicted, forecast
from kerple_eval.evaluation.planning import make_plan
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.pass_time import PassShape, pass_work
from kerple_eval.models.scoring import score
from kerple_eval.records.run import open_run
from kerple_eval.types import Window
from tests.helpers.command import Cli, make_model


@pytest.mark.parametrize("shape", [PassShape(1, 40, 40), PassShape(3, 24, 5), PassShape(2, 64, 1)])
def test_work_is_torch_s_count(shape: PassShape, tmp_path: Path) -> None:
    """Matrix products without attention exactly; attention by the triangle that is not masked."""
    checkpoint = NativeCheckpoint(make_model(tmp_path / "nope", "nope"))
    model = checkpoint.load(torch.device("cpu"), torch.float32)
    ids = np.zeros(shape.inputs + 1, dtype=np.int64)
    window = Window(0, shape.inputs, shape.inputs - shape.rows + 1)
    with FlopCounterMode(display=False) as counter:
        list(score(model, [ids], [(0, window)] * shape.batch))
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    attention = sum(v for k, v in counts.items() if "attention" in k)
    linear, triangle = pass_work(shape, checkpoint.description)
    assert linear == pytest.approx(sum(counts.values()) - attention, rel=0.1)  # biases are parameters too
    assert attention == 0  # torch does not count the CPU's fused attention; pairs of tokens, then
    layers = [range(shape.inputs), range(shape.inputs - shape.rows, shape.inputs)]
    pairs = sum(i + 1 for rows in layers for i in rows)
    assert triangle == pytest.approx(shape.batch * pairs * 2 * 2 * 16, rel=1.1 / shape.inputs)


def test_the_fit_is_of_constant_linear_and_attention_work() -> None:
    work = {PassShape(1, n, n): (1e6 * n, 1e3 * n * n) for n in (16, 64, 256, 1024, 4096)}
    truth = {p: 0.001 + 2e-9 * a + 3e-9 * b for p, (a, b) in work.items()}
    timed = {p: truth[p] for p in list(work)[:4]}
    assert _predicted(PassShape(1, 4096, 4096), work, timed) == pytest.approx(
        truth[PassShape(1, 4096, 4096)], rel=1e-6
    )


@pytest.mark.parametrize("known", [1, 2, 3])
def test_few_timed_shapes_still_give_longer_ones_their_time(known: int) -> None:
    """A time alone fits a constant as well: four windows of 16,384 would cost no more than four of 4,096."""
    work = {PassShape(1, n, 512): (2e8 * n, 1e5 * n * n) for n in (4096, 8192, 16384, 32768)}
    truth = {shape: sum(done) / 1e11 for shape, done in work.items()}
    timed = {shape: truth[shape] for shape in list(work)[:known]}
    for shape, seconds in truth.items():
        assert _predicted(shape, work, timed) == pytest.approx(seconds, rel=1e-3)


@pytest.fixture
def words(models: dict[str, str], text: str, tmp_path: Path) -> list[str]:
    return [
        "run", models["kerple-log"], models["rope"], "--text", text, "--length", "8,16,32", "--protocol",
        "full-context", "--protocol", "prefix", "--device", "cpu", "--out", str(tmp_path / "run"),
    ]  # fmt: skip


def test_counts_are_the_run_s_and_nothing_is_scored(words: list[str], invoke: Cli, tmp_path: Path) -> None:
    done = invoke(*words, "--dry-run")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "run" / "cells").exists()
    assert not (tmp_path / "run" / "summary.csv").exists()
    estimate = json.loads((tmp_path / "run" / "estimate.json").read_text())
    ran = invoke(*words)
    assert ran.exit_code == 0
    summary = open_run(tmp_path / "run").summary()
    for model in estimate["models"]:
        mine = summary[summary["model"] == model["model"]]
        assert (model["cells"], model["windows"], model["targets"]) == (
            len(mine), mine["windows"].sum(), mine["targets"].sum(),
        )  # fmt: skip
        served = 0
        for cell in open_run(tmp_path / "run").cells():
            if cell.key.model == model["model"] and cell.header.losses_from.startswith("prefix of"):
                served += len(cell.windows)  # type: ignore[union-attr]
        assert model["served"] >= served > 0
        assert model["seconds"] > 0
    line = next(line for line in ran.stdout.splitlines() if line.startswith("estimated "))
    assert ", took " in line
    again = invoke(*words, "--dry-run")  # nothing left
    assert "0" in again.stdout
    assert json.loads((tmp_path / "run" / "estimate.json").read_text())["cells"] == []
    other = [*words[:-1], str(tmp_path / "other")]
    assert invoke(*other, "--dry-run").exit_code == 0
    assert "estimated" not in invoke(*other, "--max-tokens", "40").stdout  # estimated was another run
    key = '{"model": 1, "task": "t", "protocol": "p", "length": 2}'
    for raw in ("{}", '{"cells": [{"zz": 1}], "models": []}', '{"cells": 3}', f'{{"cells": [{key}]}}'):
        (tmp_path / "run" / "estimate.json").write_text(raw)
        finished = invoke(*words)  # an estimate that cannot be read is none
        assert finished.exit_code == 0
        assert "estimated" not in finished.stdout


OWN = """
import torch

def model(fails=False):
    torch.manual_seed(0)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(256, 256)

        def forward(self, ids):
            if fails and ids.shape[1] > 50:
                raise RuntimeError("too long")
            return self.table(ids)

    return Own(), "bytes"
"""


def test_models_of_unknown_shape_and_passes_that_fail(text: str, invoke: Cli, tmp_path: Path) -> None:
    """The time of a pass that fails is unknown; the rest is told all the same, and no estimate is kept."""
    (tmp_path / "own.py").write_text(OWN)
    given = [
        f"python:{tmp_path}/own.py:model",
        "--text",
        text,
        "--length",
        "16",
        "--out",
        str(tmp_path / "r"),
    ]
    done = invoke("run", *given, "--dry-run")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r" / "estimate.json").exists()
    given[0] += ",fails=true"
    given[4:] = ["16,64", "--out", str(tmp_path / "f")]
    done = invoke("run", *given, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "unknown" in done.stdout
    assert "its time is unknown: RuntimeError: too long (at own.py:" in done.stdout
    assert not (tmp_path / "f" / "estimate.json").exists()


@pytest.mark.parametrize("tokens", [16, 64, 2048])
def test_passes_are_those_of_the_budget(tokens: int, models: dict[str, str], text: str) -> None:
    """137 bytes in windows of 8 are 17 whole ones; the budget says how many share a pass."""
    plan = make_plan(RunRequest.of(models=models["rope"], out="out", lengths=8, text=text, device="cpu"))
    (entry,) = forecast(plan, tokens=tokens)
    sizes = [p.batch for p, count in entry.passes.items() for _ in range(count) if p.inputs == 8]
    assert sum(sizes) == 17
    assert max(sizes) == min(17, tokens // 8)


@pytest.mark.parametrize(("seconds", "runs"), [(0.5, 4), (90.0, 1)])
def test_a_long_pass_is_run_once(
    seconds: float, runs: int, models: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a shape that would take longer is not run at all."""
    ran: list[PassShape] = []

    def run(model: object, shape: PassShape, budget: object) -> float:
        ran.append(shape)
        return seconds

    monkeypatch.setattr("kerple_eval.evaluation.forecast.pass_seconds", run)
    plan = make_plan(
        RunRequest.of(
            models=models["rope"], out="out", lengths=[8, 16], text=text, device="cpu",
            protocols="last:k=1", documents=1,
        )
    )  # fmt: skip
    (entry,) = forecast(plan)
    assert len(ran) == runs
    assert ran[::2] == ran[1::2] or runs == 1
    assert entry.seconds >= sum(entry.passes.values()) * seconds


def test_another_specification_is_refused(words: list[str], invoke: Cli) -> None:
    assert invoke(*words).exit_code == 0
    done = invoke(*words, "--max-tokens", "40", "--dry-run")
    assert done.exit_code == 2
    assert "holds a run with another specification" in done.stderr


@pytest.mark.slow
def test_the_time_is_within_half_of_the_truth(invoke: Cli, tmp_path: Path) -> None:
    """On a machine with nothing else to do."""
    words = [
        "run", "zoo:kerple-log", "zoo:rope", "--task", "sotu", "--documents", "1", "--max-tokens", "8193",
        "--length", "512,2048,4096", "--protocol", "sliding-window:stride=512",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert invoke(*words, "--dry-run").exit_code == 0
    assert invoke(*words).exit_code == 0
    models = json.loads((tmp_path / "run" / "estimate.json").read_text())["models"]
    guess = sum(model["seconds"] for model in models)
    took = sum(cell.header.seconds for cell in open_run(tmp_path / "run").cells())
    assert 1 / 1.5 < guess / took < 1.5
