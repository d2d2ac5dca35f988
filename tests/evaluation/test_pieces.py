"""``--piece`` through a whole run: the cells' record, the table's notes, and pieces that the run chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.cli import dry_run
from kerple_eval.evaluation import pieces
from kerple_eval.evaluation.plan import PlannedModel
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.models.footprint import window_bytes
from kerple_eval.records.cell import read_cell
from kerple_eval.records.header import FeedingRecord, FinishedHeader
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders

TOKENS = np.random.default_rng(0).integers(3, folders.V, size=200)
LENGTHS = [8, 16, 64]


def run(name: str, **options: Any) -> Any:
    return kerple_eval.evaluate({"m": folders.model(name)}, tokens=TOKENS, lengths=LENGTHS, **options)


def feedings(run: Any) -> list[FeedingRecord | None]:
    headers = [read_cell(run.folder, key).header for key in run.keys()]  # type: ignore[union-attr]  # noqa: SIM118
    assert all(isinstance(header, FinishedHeader) for header in headers)
    return [header.feeding for header in headers]


def test_the_record_says_how_windows_were_fed(tmp_path: Path) -> None:
    whole = run("gemma2")
    fed = run("gemma2", piece=16, out=tmp_path / "run")
    assert feedings(whole) == [None, None, None]
    assert feedings(fed) == [None, None, FeedingRecord(16, 64)]
    np.testing.assert_allclose(fed.losses()["loss"], whole.losses()["loss"], rtol=0, atol=1e-5)
    assert "one pass" not in str(fed)
    assert "--piece 16" in " ".join(fed.provenance.sessions[0].command)
    again = run("gemma2", out=tmp_path / "run")  # no part of what was asked for: the run is the same
    assert feedings(again) == feedings(fed)


def test_a_model_that_cannot_is_scored_in_one_pass_and_says_so(tmp_path: Path) -> None:
    whole, fed = run("mamba"), run("mamba", piece=16, out=tmp_path / "run")
    np.testing.assert_array_equal(fed.losses()["loss"], whole.losses()["loss"])
    *short, long = feedings(fed)
    assert short == [None, None]
    assert long is not None and (long.piece, long.compared) == (16, 0)
    assert long.one_pass is not None and "does not carry" in long.one_pass
    shown = str(kerple_eval.open_run(tmp_path / "run").table())
    assert f"m: its windows were scored in one pass, not in pieces: {long.one_pass}" in shown


def test_frequencies_that_follow_the_length_are_scored_in_one_pass() -> None:
    whole, fed = run("phi3"), run("phi3", piece=16)
    np.testing.assert_array_equal(fed.losses()["loss"], whole.losses()["loss"])
    feeding = feedings(fed)[-1]
    assert feeding is not None and "follow the length of the window (longrope)" in str(feeding.one_pass)


@pytest.mark.parametrize("model", ["zoo:alibi", {"m": lambda ids: torch.zeros(*ids.shape, 5)}])
def test_a_model_without_a_cache_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"--piece is for models of transformers.* leave it out"):
        kerple_eval.evaluate(model, tokens=TOKENS % 5, lengths=[16], piece=4)


def test_pieces_are_chosen_where_one_pass_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest power of two whose forecast fits, here 128 of 4,096; LEAST where none does."""
    monkeypatch.setattr(pieces, "LEAST", 4)
    made = kerple_eval.from_module(folders.model("llama"))
    about, device = made.description, torch.device("cpu")
    model = PlannedModel("m", made, about, {}, {}, torch.float32)
    room = window_bytes(about, 4096, 4, piece=128) - 4 * about.parameters  # the weights are loaded already
    monkeypatch.setattr(pieces, "available_bytes", lambda device: room / pieces.SHARE + 1)
    pieces.choose_pieces(model, None, None, 4096, device)
    assert made.feeding is not None and made.feeding.piece == 128
    assert made.feeding.one_pass == 2048  # what a comparison with one pass may take
    pieces.choose_pieces(model, None, None, 512, device)
    assert made.feeding is None
    other = PlannedModel(
        "reference", kerple_eval.from_module(folders.model("llama", 2)), about, {}, {}, torch.float32
    )
    two = 2 * window_bytes(about, 4096, 4, piece=64) - 8 * about.parameters  # both in memory at once
    monkeypatch.setattr(pieces, "available_bytes", lambda device: two / pieces.SHARE + 1)
    pieces.choose_pieces(model, other, None, 4096, device)
    assert made.feeding is not None and made.feeding.piece == 64
    monkeypatch.setattr(pieces, "available_bytes", lambda device: 0)
    pieces.choose_pieces(model, None, None, 4096, device)
    assert made.feeding is not None and made.feeding.piece == pieces.LEAST
    monkeypatch.setattr(pieces, "available_bytes", lambda device: None)
    pieces.choose_pieces(model, None, None, 4096, device)
    assert made.feeding is None


def test_the_forecast_knows_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders.save(tmp_path / "model", folders.model("llama"))
    file = tmp_path / "tokens.jsonl"
    file.write_text(f'{{"tokens": {TOKENS.tolist()}}}\n')
    request = RunRequest.of(
        models=str(folder), tokens=str(file), lengths="64", piece=16, out=tmp_path / "run"
    )
    assert dry_run.run(request) == 0
    assert "windows longer than 16 tokens are fed in pieces of as many" in capsys.readouterr().out
