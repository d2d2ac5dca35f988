"""An error of one cell is its row, with where it arose; others are computed; own faults are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.evaluation.failures import failure_of
from kerple_eval.models.callable import CallableModel
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.scoring import NotFiniteError
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.types import UserError
from tests.helpers.command import Cli


def raised(work: Callable[[], Any]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_where_an_error_arose() -> None:
    here = f"(at {__name__}:"
    foreign = failure_of(raised(lambda: {}["x"]))
    assert foreign.error.startswith(f"KeyError: 'x' {here}")
    assert "Traceback (most recent call last)" in foreign.traceback
    library = failure_of(raised(lambda: torch.nn.functional.layer_norm(torch.ones(2), (3,))))
    assert library.error.startswith("RuntimeError: Given normalized_shape=[3]")
    assert here in library.error  # not torch, which was told to
    assert here in failure_of(raised(lambda: np.concatenate([]))).error
    called = CallableModel(lambda: None, torch.device("cpu"), torch.float32, together=False)  # type: ignore[arg-type,misc]
    line = failure_of(raised(lambda: list(called.logits(torch.zeros(1, 4), 2)))).error
    assert line.startswith("TypeError: ")
    assert line.endswith("(the model was called with ids [B, N])")
    own = failure_of(raised(lambda: FullContext().plan("x", 4, 4)))  # type: ignore[arg-type]
    assert own.error.startswith("internal error, a fault of kerple-eval: TypeError: ")
    assert "(at kerple_eval.protocols.full_context:" in own.error


@pytest.mark.parametrize(
    "error",
    [
        UserError("no such file"), NotFiniteError("loss of target 3 is nan"), MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)  # fmt: skip
def test_what_a_cell_may_honestly_meet_says_it_itself(error: Exception) -> None:
    def fails() -> None:
        raise error

    assert failure_of(raised(fails)).error == f"{type(error).__name__}: {error}"


def test_a_long_message_is_cut() -> None:
    assert len(failure_of(ValueError("x" * 10_000 + "\n")).error) < 400


@pytest.mark.parametrize("kind", [TypeError, AttributeError, AssertionError, ValueError, NotImplementedError])
@pytest.mark.parametrize("where", ["load", "forward"])
def test_one_models_error_does_not_end_the_sweep(
    kind: type[Exception], where: str, models: dict[str, str], text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real_load, real_logits = NativeCheckpoint.load, DecoderModel.logits
    bad: list[Any] = []

    def load(self: NativeCheckpoint, device: Any, dtype: Any) -> Any:
        model = real_load(self, device, dtype)
        if self.description.scheme == "alibi":
            bad.append(model)
            if where == "load":
                raise kind("in a constructor")
        return model

    def logits(self: Any, inputs: Any, rows: int) -> Any:
        if any(self is model for model in bad):
            raise kind("in forward")
        return real_logits(self, inputs, rows)

    monkeypatch.setattr(NativeCheckpoint, "load", load)
    monkeypatch.setattr(DecoderModel, "logits", logits)
    run = kerple_eval.evaluate(
        [models["alibi"], models["rope"]], text=text, lengths=[16], out=tmp_path / "run"
    )
    assert run.summary()["status"].tolist() == ["failed", "ok"]
    assert f"{kind.__name__}: in " in run.summary()["error"][0]
    assert f"(at {__name__}:" in run.summary()["error"][0]
    (file,) = (run.folder / "cells").glob("*.json")
    assert f"{kind.__name__}: in " in json.loads(file.read_text())["traceback"]


def test_the_command_line_shows_the_traceback_where_asked(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Cli
) -> None:
    def logits(self: Any, inputs: Any, rows: int) -> Any:
        raise TypeError("in forward")

    monkeypatch.setattr(DecoderModel, "logits", logits)
    words = ["run", models["alibi"], "--text", text, "--length", "16", "--out", str(tmp_path / "run")]
    plain, asked = invoke(*words), invoke("--traceback", *words)
    assert plain.exit_code == asked.exit_code == 1
    assert "Traceback" not in plain.stderr
    assert "Traceback (most recent call last)" in asked.stderr
    assert 'raise TypeError("in forward")' in asked.stderr


def test_what_opening_a_model_raises_refuses_that_model(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def description(self: NativeCheckpoint) -> Any:
        raise AttributeError("per_layer_config")

    monkeypatch.setattr(NativeCheckpoint, "description", property(description))
    with pytest.raises(UserError) as raised:
        kerple_eval.evaluate(f"mine={models['alibi']}", text=text, lengths=[16], out=tmp_path / "run")
    assert str(raised.value).startswith(
        "model mine: cannot be opened: AttributeError: per_layer_config (at tests."
    )
    assert not (tmp_path / "run").exists()
