"""``kerple-eval convert``: the written checkpoint computes what the first one did."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from kerple_eval.cli import convert
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.command import Cli, make_model
from tests.helpers.dying import content, deaths


def test_a_converted_checkpoint_scores_the_same(
    models: dict[str, str], text: str, invoke: Cli, tmp_path: Path
) -> None:
    done = invoke("convert", models["kerple-log"], str(tmp_path / "new"))
    assert done.exit_code == 0, done.stderr
    assert "kerple-log" in done.stdout
    out = tmp_path / "run"
    pair = (f"a={models['kerple-log']}", f"b=native:{tmp_path / 'new'}")
    assert invoke("run", *pair, "--text", text, "--length", "16,64", "--out", str(out)).exit_code == 0
    old, new = ((out / "summary.csv").read_text().replace(f"\n{x}", "\n") for x in "ab")
    rows = [line for line in old.splitlines() if line.startswith(",")]
    assert rows == [line for line in new.splitlines() if line.startswith(",")]
    assert len(rows) == 2


def test_weights_keep_the_narrowest_dtype_that_is_exact(invoke: Cli, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "wide", "rope")
    decoder = NativeCheckpoint(folder).decoder()
    stored = {"half": ["F16"], "brain": ["BF16"], "double": ["F64"]}
    for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16), ("double", torch.float64)):
        step = 2.0**-40 if dtype == torch.float64 else 0.0
        tiny.rewrite(folder, {k: v.to(dtype) + step for k, v in decoder.state_dict().items()})
        assert invoke("convert", str(folder), str(tmp_path / name)).exit_code == 0
        new = NativeCheckpoint(tmp_path / name)
        assert new.description.stored_dtypes == tuple(stored[name])
        for key, tensor in NativeCheckpoint(folder).decoder().state_dict().items():
            assert torch.equal(new.decoder().state_dict()[key], tensor)
    assert (
        invoke("convert", str(tmp_path / "half"), str(tmp_path / "f32"), "--dtype", "float32").exit_code == 0
    )
    assert NativeCheckpoint(tmp_path / "f32").description.stored_dtypes == ("F32",)


@pytest.mark.parametrize("name", ["file", "full"])
def test_an_existing_destination_is_left_alone(
    models: dict[str, str], invoke: Cli, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    done = invoke("convert", models["rope"], str(tmp_path / name))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / name) in done.stderr
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["notes"]


def test_died_at_any_change_the_same_command_goes_on(models: dict[str, str], tmp_path: Path) -> None:
    """The folder is there whole or not at all; the next call leaves nothing of the first behind."""
    source = models["kerple-log"]
    convert.run(source, str(tmp_path / "whole"), None)
    expected = content(tmp_path / "whole")
    assert set(expected) == {"config.json", "model.safetensors"}
    count = [0]

    def command() -> None:
        count[0] += 1
        convert.run(source, str(tmp_path / str(count[0]) / "new"), None)

    def goes_on(number: int) -> None:
        folder = tmp_path / str(number) / "new"
        with suppress(UserError) if folder.exists() else nullcontext():  # refused, as the model is there
            convert.run(source, str(folder), None)
        assert content(folder.parent) == {f"new/{name}": data for name, data in expected.items()}

    assert len(list(deaths(command, goes_on))) > 8
