"""The state that a killed training goes on from: enough at any moment, and checked before it is believed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kerple_eval.models.training import train as training
from kerple_eval.models.training.state import _sha256
from kerple_eval.types import UserError
from tests.helpers.command import Cli, refusal
from tests.helpers.dying import content, deaths
from tests.helpers.trainings import Killed, kill_at, recipe, run


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the state of a training killed in its last step but one."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        run(recipe(), tmp_path / "half", on_step=kill_at(7))
    return tmp_path / "half"


def test_died_at_any_change_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first state, between weights and configuration, after both: the same bytes in the end."""
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: 0.0))  # a record of no time
    run(recipe(steps=3), tmp_path / "whole")
    expected = content(tmp_path / "whole")
    assert set(expected) == {"README.md", "config.json", "model.safetensors"}
    places = set()

    def goes_on(number: int) -> None:
        folder = tmp_path / str(number) / "whole"
        left = content(folder) if folder.exists() else {}
        places.add(frozenset(name for name in left if not name.startswith(".")))
        run(recipe(steps=3), folder)
        assert content(folder) == expected

    count = [0]

    def command() -> None:
        count[0] += 1
        run(recipe(steps=3), tmp_path / str(count[0]) / "whole")

    assert len(list(deaths(command, goes_on))) > 12
    state, files = {"training-state.pt"}, ["README.md", "model.safetensors", "config.json"]
    assert places >= {frozenset(), *(frozenset(state.union(files[:n])) for n in range(4))}


def test_flipped_bits_are_refused_or_change_nothing(half: Path) -> None:
    """Every byte of the zip's padding may change, no byte of what is read."""
    path = half / training.STATE
    raw = path.read_bytes()
    rng = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        at = int(torch.randint(len(raw), (), generator=rng))
        bit = 1 << int(torch.randint(8, (), generator=rng))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
        try:
            with pytest.raises(Killed):
                run(recipe(), half, on_step=kill_at(7))
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 30


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("losses"), "no training state of this release"),
        (lambda s: s.update(extra=1), "no training state of this release"),
        (lambda s: s.update(step="6"), "step is str, not int"),
        (lambda s: s.update(step=True), "step is bool, not int"),
        (lambda s: s.update(step=9), "step 9 of 8"),
        (lambda s: s.update(step=0), "step 0 of 8"),
        (lambda s: s.update(seconds=float("nan")), "a time that is no finite number"),
        (lambda s: s["losses"].append(float("inf")), "a loss or a time that is no finite number"),
        (lambda s: s["losses"].append("1"), "a loss or a time that is no finite number"),
        (lambda s: s["reports"].append({"step": 1}), "no line of a loss curve: {'step': 1}"),
        (lambda s: s["reports"][0].update(train_loss=None), "no line of a loss curve"),
        (lambda s: s["decoder"].pop("norm.weight"), "tensor decoder.norm.weight is missing or unexpected"),
        (lambda s: s["decoder"].update(more=torch.ones(1)), "tensor decoder.more is missing or unexpected"),
        (lambda s: s["decoder"].update({"norm.weight": 3}), "tensor decoder.norm.weight is missing"),
        (
            lambda s: s["decoder"].update({"norm.weight": torch.ones(3)}),
            r"norm.weight is torch.float32 \[3\]",
        ),
        (lambda s: s["decoder"].update({"norm.weight": torch.ones(12).half()}), r"is torch.float16 \[12\]"),
        (lambda s: s["optimizer"][0].pop("exp_avg"), "tensor optimizer.0.exp_avg is missing"),
        (lambda s: s["identity"].update(data=torch.ones(2)), "no training state of this release"),
        (
            lambda s: s["identity"]["recipe"].update(seed=2),
            "holds another training: recipe.seed was 2 there and is 1 now",
        ),
    ],
)
def test_a_state_that_was_changed(half: Path, change: Change, reason: str) -> None:
    """With the sha256 that then belongs to it, where there is one, so that the checks stand by themselves."""
    path = half / training.STATE
    state = torch.load(path, weights_only=True)
    change(state)
    with suppress(KeyError, TypeError):
        state["sha256"] = _sha256(state)
    torch.save(state, path)
    with pytest.raises(UserError, match=reason) as caught:
        run(recipe(), half)
    assert "\n" not in str(caught.value)
    if "another training" not in reason:
        assert str(caught.value).endswith("; delete it to train from the beginning")


def test_a_number_that_was_changed(half: Path) -> None:
    path = half / training.STATE
    state = torch.load(path, weights_only=True)
    state["decoder"]["norm.weight"][0] += 1e-3
    torch.save(state, path)
    with pytest.raises(UserError, match="its content has another sha256 than it says"):
        run(recipe(), half)


def test_a_state_that_would_run_code(half: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    path = half / training.STATE
    state = torch.load(path, weights_only=True)
    torch.save(state | {"identity": Hostile()}, path)
    with pytest.raises(UserError, match=r"training-state\.pt: refused"):
        run(recipe(), half)


@pytest.mark.slow
def test_killed_in_earnest_the_same_command_goes_on(tmp_path: Path) -> None:
    """SIGKILL at eight moments of the command's life, then to the end: the weights of an undisturbed one."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog lay by the door. " * 400)

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [
            "train", "--scheme", "kerple-log", "--text", str(tmp_path / "text.txt"), "--length", "64",
            "--steps", "150", "--layers", "1", "--width", "32", "--heads", "2", "--threads", "1",
            "--out", str(tmp_path / name),
        ]  # fmt: skip
        return subprocess.Popen([sys.executable, "-m", "kerple_eval", *command], stderr=subprocess.PIPE)

    began = time.monotonic()
    with start("whole") as process:
        assert process.wait() == 0, process.stderr
    seconds = time.monotonic() - began
    for n in range(8):
        with start("killed") as process:
            time.sleep(seconds * (n + 1) / 8)
            process.kill()
    if not (tmp_path / "killed" / "config.json").exists():
        with start("killed") as process:
            assert process.wait() == 0
    whole, killed = content(tmp_path / "whole"), content(tmp_path / "killed")
    assert {name for name in killed if not name.startswith(".")} == {name for name in whole if name[0] != "."}
    assert killed["model.safetensors"] == whole["model.safetensors"]


def test_a_damaged_state_is_one_line_that_says_what_to_do(tmp_path: Path, invoke: Cli) -> None:
    """Of a file that is no archive any more, too; no progress bar stands above it."""
    (tmp_path / "text.txt").write_text("abcabdabe " * 40)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / training.STATE).write_bytes(b"PK\x03\x04 cut off")
    shape = ["--layers", "1", "--width", "16", "--heads", "2", "--steps", "1", "--device", "cpu"]
    words = ["--scheme", "nope", "--text", tmp_path / "text.txt", "--length", "8", "--out", tmp_path / "out"]
    line = refusal(invoke("train", *words, *shape))
    assert line.endswith("; delete it to train from the beginning")
