"""Over several devices: layers on disk, and two ranks with a part of each layer. One device is the oracle."""

from __future__ import annotations

import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.models.hf import placement
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.command import Cli, refusal
from tests.helpers.hf_folders import CPU, transformers
from tests.helpers.ranks import as_ranks

SPREAD = {"devices": "auto"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("llama"), folders.model("llama"))


@pytest.fixture
def ids(tmp_path: Path) -> str:
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"tokens": [3 + i * i % 90 for i in range(120)]}))
    return str(path)


def logits(folder: Path, options: dict[str, str], ids: list[int]) -> np.ndarray[Any, Any]:
    model = HfCheckpoint.open(str(folder), options).load(CPU, torch.float32)
    with torch.inference_mode():
        return torch.cat(list(model.logits(torch.tensor([ids]), len(ids))), dim=1).numpy()


IDS = [3 + i * 7 % 90 for i in range(40)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba"])
@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_layers_on_disk_give_the_logits_of_one_device(
    name: str, shards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"max_shard_size": "20KB"} if shards else {}
    folder = folders.save(tmp_path / "model", folders.model(name), **sizes)
    expected = logits(folder, {}, IDS)
    assert np.abs(logits(folder, SPREAD, IDS) - expected).max() < 1e-5
    monkeypatch.setattr(placement, "memory", lambda device: {"cpu": 60_000})
    made = HfCheckpoint.open(str(folder), SPREAD).load(CPU, torch.float32)
    assert "disk" in made.model.hf_device_map.values(), made.model.hf_device_map
    with torch.inference_mode():
        found = torch.cat(list(made.logits(torch.tensor([IDS]), len(IDS))), dim=1).numpy()
    assert np.abs(found - expected).max() < 1e-5


def test_what_is_on_disk_is_swept(llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "kerple-eval-model-killed0"
    left.mkdir()
    (left / ".lock").touch()  # whose process was killed
    monkeypatch.setattr(placement, "memory", lambda device: {"cpu": 60_000})
    made = HfCheckpoint.open(str(llama), SPREAD).load(CPU, torch.float32)
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1
    other = HfCheckpoint.open(str(llama), SPREAD).load(CPU, torch.float32)
    assert len(list(tmp_path.iterdir())) == 2  # that of a living model stays
    del made, other
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_spread_model_in_memory(llama: Path, ids: str, tmp_path: Path) -> None:
    """With layers on disk: its losses and the sha256 of its state are those of the same model in memory."""
    spread = transformers.LlamaForCausalLM.from_pretrained(
        llama, device_map="auto", max_memory={"cpu": 60_000}, offload_folder=str(tmp_path / "off")
    )
    assert "disk" in spread.hf_device_map.values()
    whole = transformers.LlamaForCausalLM.from_pretrained(llama)
    runs = [
        kerple_eval.evaluate({"m": model}, tokens=Path(ids), lengths=[16, 32]) for model in (spread, whole)
    ]
    mine, theirs = (run.losses()["loss"].to_numpy() for run in runs)
    assert np.abs(mine - theirs).max() < 1e-5
    assert len({run.specification.models[0].weights_sha256 for run in runs}) == 1


def test_a_model_in_parts_without_a_map(ids: str) -> None:
    model = folders.model("llama")
    model.model.layers[1].to("meta")
    with pytest.raises(UserError, match=r"is on several devices \(cpu, meta\) without a device map"):
        kerple_eval.evaluate({"m": model}, tokens=Path(ids), lengths=[16])


def losses(folder: Path) -> np.ndarray[Any, Any]:
    cells = [cell for cell in open_run(folder).cells() if isinstance(cell, Cell)]
    assert len(cells) == 2
    return np.concatenate([row for cell in cells for row in cell.losses])


def test_two_ranks_give_the_losses_of_one(llama: Path, ids: str, tmp_path: Path, invoke: Cli) -> None:
    def words(model: str, out: str) -> list[str]:
        more = ["--tokens", ids, "--length", "16,32", "--device", "cpu", "--out", str(tmp_path / out)]
        return ["run", f"m=hf:{model}", *more]

    first, second = as_ranks(tmp_path / "log", 2, words(f"{llama},parallel=tensor", "two"))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert second.stdout == ""  # one rank writes and speaks
    assert invoke(*words(str(llama), "one")).exit_code == 0
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-5
    weights = [open_run(tmp_path / out).specification.models[0].weights_sha256 for out in ("one", "two")]
    assert weights[0] == weights[1]
    alone = refusal(invoke(*words(f"{llama},parallel=tensor", "alone")))
    assert "torchrun --nproc-per-node N" in alone
    assert not (tmp_path / "alone" / "run.json").exists()
    dry = refusal(invoke(*words(f"{llama},parallel=tensor", "dry"), "--dry-run"))
    assert "torchrun --nproc-per-node N" in dry


def test_heads_that_cannot_be_shared(llama: Path) -> None:
    checkpoint = HfCheckpoint.open(str(llama), {"parallel": "tensor"})
    checkpoint.check_ranks(2)
    with pytest.raises(UserError, match="4 heads cannot be shared by 3 processes; use 2"):
        checkpoint.check_ranks(3)
    with pytest.raises(UserError, match="2 heads of keys and values cannot be shared by 4"):
        checkpoint.check_ranks(4)


def test_refusals(tmp_path: Path, llama: Path) -> None:
    def refused(folder: Path, **options: str) -> str:
        with pytest.raises(UserError) as error:
            HfCheckpoint.open(str(folder), options)
        return str(error.value)

    mamba = folders.save(tmp_path / "mamba", folders.model("mamba"))
    assert "no tensor-parallel plan for MambaForCausalLM; devices=auto" in refused(mamba, parallel="tensor")
    assert "unknown value of devices= 'all'" in refused(llama, devices="all")
    assert "did you mean 'tensor'" in refused(llama, parallel="tensors")
    assert "use one of them" in refused(llama, parallel="tensor", devices="auto")
    pickled = tmp_path / "pickled"
    folders.save(pickled, folders.model("llama"))
    torch.save(folders.model("llama").state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "devices=auto reads safetensors alone, this is pickle" in refused(pickled, devices="auto")
