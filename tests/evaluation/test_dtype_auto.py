"""``--dtype auto``: what is taken, on which device, and where it is said.

There is no CUDA device here, so that the CPU plays one where a whole run is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import kerple_eval
from kerple_eval.models.devices import DTYPES, scoring_dtype
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from tests.helpers import hf_folders as folders
from tests.helpers.command import Cli, make_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("half"), folders.model("llama").to(torch.bfloat16))


@pytest.fixture
def ids(tmp_path: Path) -> str:
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"tokens": [3 + i * i % 90 for i in range(120)]}))
    return str(path)


@pytest.mark.parametrize("name", DTYPES)
def test_a_hugging_face_model_is_scored_in_its_own_dtype_on_cuda_alone(name: str, tmp_path: Path) -> None:
    folders.save(tmp_path, folders.model("llama").to(DTYPES[name]))
    checkpoint = HfCheckpoint.open(str(tmp_path), {})
    assert scoring_dtype("auto", checkpoint, CUDA) == DTYPES[name]
    assert scoring_dtype("auto", checkpoint, CPU) == torch.float32
    for asked in DTYPES:
        assert scoring_dtype(asked, checkpoint, CUDA) == DTYPES[asked]


def test_most_of_the_numbers_decide(tmp_path: Path) -> None:
    model = folders.model("llama").to(torch.bfloat16)
    model.model.norm.to(torch.float32)
    checkpoint = HfCheckpoint.open(str(folders.save(tmp_path, model)), {})
    assert scoring_dtype("auto", checkpoint, CUDA) == torch.bfloat16


def test_other_checkpoints_are_scored_in_float32(tmp_path: Path) -> None:
    native = NativeCheckpoint(make_model(tmp_path / "rope", "rope"))
    assert scoring_dtype("auto", native, CUDA) == torch.float32


def _command(half: Path, native: Path, ids: str, out: Path, *more: str) -> list[str]:
    return [
        "run", f"half=hf:{half}", f"native={native}", "--tokens", ids, "--length", "16,32", "--device", "cpu",
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    own = HfCheckpoint.auto_dtype
    monkeypatch.setattr(HfCheckpoint, "auto_dtype", lambda self, device: own(self, CUDA))


def test_the_record_the_cells_and_the_table_say_what_was_taken(
    half: Path, ids: str, tmp_path: Path, invoke: Cli, as_on_cuda: None
) -> None:
    native = make_model(tmp_path / "native", "rope")
    words = _command(half, native, ids, tmp_path / "auto")
    dry = invoke(*words, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    first = invoke(*words)
    assert first.exit_code == 0, first.stderr
    assert "half: scored in bfloat16, its own dtype" in first.stdout
    assert "native: scored in" not in first.stdout
    run = open_run(tmp_path / "auto")
    assert run.specification.dtype == "float32"
    assert [model.dtype for model in run.specification.models] == ["bfloat16", None]
    assert {c.key.model: c.header.dtype for c in run.cells()} == {"half": "bfloat16", "native": "float32"}
    again = invoke(*words)
    assert again.exit_code == 0, again.stderr
    exact = invoke(*words, "--dtype", "float32")
    assert exact.exit_code == 2
    assert "dtype" in exact.stderr
    asked = invoke(*_command(half, native, ids, tmp_path / "asked", "--dtype", "bfloat16"))
    assert asked.exit_code == 0, asked.stderr
    assert "its own dtype" not in asked.stdout
    alike = [
        [
            np.concatenate(c.losses)
            for c in open_run(tmp_path / name).cells()
            if c.key.model == "half" and isinstance(c, Cell)
        ]
        for name in ("auto", "asked")
    ]
    for mine, theirs in zip(*alike, strict=True):
        assert np.array_equal(mine, theirs)


def test_on_the_cpu_auto_and_float32_are_one_run(half: Path, ids: str, tmp_path: Path, invoke: Cli) -> None:
    native = make_model(tmp_path / "native", "rope")
    words = _command(half, native, ids, tmp_path / "run")
    for more in ((), ("--dtype", "float32"), ("--dtype", "auto")):
        done = invoke(*words, *more)
        assert done.exit_code == 0, done.stderr
    assert "scored in" not in done.stdout
    assert {cell.header.dtype for cell in open_run(tmp_path / "run").cells()} == {"float32"}


def test_a_function_s_model_keeps_its_dtype(tmp_path: Path, ids: str, invoke: Cli) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Embedding(97, 8), torch.nn.Linear(8, 97)).bfloat16()\n"
    )
    words = ["run", f"python:{file}:build", "--tokens", ids, "--length", "16", "--device", "cpu"]
    done = invoke(*words, "--out", str(tmp_path / "own"))
    assert done.exit_code == 0, done.stderr
    assert {cell.header.dtype for cell in open_run(tmp_path / "own").cells()} == {"bfloat16"}
    refused = invoke(*words, "--out", str(tmp_path / "other"), "--dtype", "float32")
    assert refused.exit_code == 2
    assert "gives a model in bfloat16, which is not converted; leave --dtype out" in refused.stderr
    opened: Any = open_model(parse_model(f"python:{file}:build"))
    assert scoring_dtype("auto", opened, CUDA) == torch.bfloat16


def test_models_in_memory_keep_theirs_side_by_side(ids: str) -> None:
    torch.manual_seed(0)
    models: dict[str, Any] = {
        str(dtype): nn.Sequential(nn.Embedding(97, 8), nn.Linear(8, 97)).to(dtype)
        for dtype in (torch.float32, torch.bfloat16)
    }
    run = kerple_eval.evaluate(models, tokens=Path(ids), lengths=[16], device="cpu")
    assert sorted(run.summary()["dtype"]) == ["bfloat16", "float32"]
