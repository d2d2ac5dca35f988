"""``import=MODULE``: an architecture that a package of one's own registers with transformers."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.ranks import as_ranks
from tests.models.hf.test_own_code import CODE, folder

REGISTER = """
from transformers import AutoConfig, AutoModelForCausalLM
from {package}.model import OwnConfig, OwnModel
AutoConfig.register("{kind}", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnModel)
"""


def package(root: Path, name: str, kind: str) -> None:
    (root / name).mkdir()
    (root / name / "model.py").write_text(CODE.replace("own-tables", kind))
    (root / name / "__init__.py").write_text(REGISTER.format(package=name, kind=kind))


def checkpoint(root: Path, kind: str) -> Path:
    """Without code and ``auto_map``: a folder that needs the package."""
    made = folder(root)
    config = json.loads((made / "config.json").read_text())
    del config["auto_map"]
    (made / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    (made / "own_tables.py").unlink()
    return made


def test_the_losses_are_those_of_the_package_s_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Cli
) -> None:
    package(tmp_path, "own_package_a", "own-kind-a")
    place = checkpoint(tmp_path / "model", "own-kind-a")
    ids = [3 + i * i % 90 for i in range(50)]
    (tmp_path / "ids.jsonl").write_text(json.dumps({"tokens": ids}))
    words = ["--tokens", tmp_path / "ids.jsonl", "--length", "16", "--out", tmp_path / "run"]
    without = refusal(invoke("run", f"hf:{place}", *words))
    assert "model_type 'own-kind-a' is not known" in without
    assert "import=MODULE" in without
    absent = refusal(invoke("run", f"hf:{place},import=own_package_a", *words))
    assert "hf: import=own_package_a: cannot be imported (ModuleNotFoundError" in absent
    monkeypatch.syspath_prepend(str(tmp_path))
    done = invoke("run", f"m=hf:{place},import=own_package_a", *words)
    assert done.exit_code == 0, done.stderr
    record = open_run(tmp_path / "run").specification.models[0]
    assert record.other["import"] == "own_package_a"
    digest = hashlib.sha256()
    for name in ("__init__.py", "model.py"):
        digest.update(name.encode() + b"\0" + (tmp_path / "own_package_a" / name).read_bytes() + b"\0")
    assert record.other["code_sha256"] == digest.hexdigest()
    shown = invoke("inspect", f"hf:{place},import=own_package_a")
    assert "Python code was run: the package own_package_a (import=)" in shown.output

    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(place)
    fresh = type(model)(model.config)  # with the tensors that its constructor computes
    fresh.load_state_dict(model.state_dict(), strict=False)
    with torch.inference_mode():
        parts = [
            torch.nn.functional.cross_entropy(
                fresh(torch.tensor([ids[s : s + 16]])).logits[0, : 49 - s],
                torch.tensor(ids[s + 1 : s + 17]), reduction="none",
            )
            for s in (0, 16, 32)
        ]  # fmt: skip
    cell = next(open_run(tmp_path / "run").cells())
    found = np.concatenate(cell.losses)  # type: ignore[union-attr]
    assert np.abs(found[:48] - torch.cat(parts).numpy()[:48]).max() < 1e-5


def test_under_torchrun_every_rank_imports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "own_package_c", "own-kind-c")
    place = checkpoint(tmp_path / "model", "own-kind-c")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ids.jsonl").write_text(json.dumps({"tokens": [3 + i * i % 90 for i in range(50)]}))
    words = ["run", f"hf:{place},import=own_package_c", "--tokens", str(tmp_path / "ids.jsonl")]
    more = ["--length", "16", "--device", "cpu", "--out", str(tmp_path / "run")]
    for done in as_ranks(tmp_path / "log", 2, [*words, *more]):
        assert done.returncode == 0, done.stderr
    assert [cell.summary()["status"] for cell in open_run(tmp_path / "run").cells()] == ["ok"]


def test_a_changed_package_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "own_package_b", "own-kind-b")
    place = checkpoint(tmp_path / "model", "own-kind-b")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"import": "own_package_b"}
    first = HfCheckpoint.open(str(place), options).description.details["code_sha256"]
    with (tmp_path / "own_package_b" / "model.py").open("a") as file:
        file.write("# changed\n")
    assert HfCheckpoint.open(str(place), options).description.details["code_sha256"] != first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_package", "ModuleNotFoundError"),
        ("../model", "is no module's name"),
        ("os;print", "is no module's name"),
        ("raises_at_import", "(RuntimeError: 'not today'); --traceback shows where"),
    ],
)
def test_modules_that_cannot_be_imported(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as error:
        HfCheckpoint.open(str(tmp_path), {"import": name})
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "raises_at_import" not in sys.modules
