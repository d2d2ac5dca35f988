"""Memory that runs out: passes made in halves, the same losses, and the record says so. No GPU needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import kerple_eval
from kerple_eval.evaluation.budget import MOST, START, Trial, largest_useful
from kerple_eval.evaluation.ranks import RankGroup, ScoreRequest
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.scoring import Budget, score
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.records.cell import Cell
from tests.helpers import tiny

CPU = torch.device("cpu")


class Cramped(DecoderModel):
    """A device with memory for ``room`` tokens a pass."""

    room = 24
    passes: list[int]

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        if inputs.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.passes.append(inputs.numel())
        return super().logits(inputs, rows)


def cramped(room: int) -> Cramped:
    model = Cramped(tiny.decoder(tiny.config("kerple-log")), CPU, torch.float64)
    model.room, model.passes = room, []
    return model


@pytest.mark.parametrize("room", [6, 13, 24, 40, 1000])
@pytest.mark.parametrize("ranks", [1, 2])
def test_halves_give_the_same_losses(room: int, ranks: int) -> None:
    documents = [tiny.tokens(50, seed=s) for s in range(3)]
    windows = [(d, w) for d in range(3) for w in FullContext().plan(50, 6, 6)]
    roomy = {
        i: r
        for members, rows in score(cramped(9999), documents, windows)
        for i, r in zip(members, rows, strict=True)
    }
    model, found = cramped(room), {}
    for rank in range(ranks):
        budget = Budget(60)  # each rank's own; the passes that are shared out are those of the first
        for members, rows in score(model, documents, windows, share=(rank, ranks), budget=budget):
            for index, row in zip(members, rows, strict=True):
                assert index not in found
                found[index] = row
    assert sorted(found) == list(range(len(windows)))
    for index, row in found.items():
        np.testing.assert_allclose(row, roomy[index], rtol=0, atol=1e-6)
        assert budget.tokens // 6 <= max(1, room // 6)
        assert (budget.tokens < 60) == (room < 60)
    assert max(model.passes) <= room


def test_one_window_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(score(cramped(5), [tiny.tokens(20)], [(0, w) for w in FullContext().plan(20, 6, 6)]))


@pytest.mark.parametrize(("told", "kept"), [(7, 7), (90, 60)])
def test_the_smallest_budget_of_any_rank_is_kept(
    told: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 hears from the other what fitted there; a roomier one does not raise its own."""
    monkeypatch.setattr(RankGroup, "_broadcast", lambda *_: None)
    monkeypatch.setattr(RankGroup, "_gather", lambda *_: [None, ([], told)])
    windows = [(0, w) for w in FullContext().plan(50, 6, 6)]
    budget = Budget(60)
    mine = list(
        RankGroup(0, 2).score(
            cramped(9999), ScoreRequest([tiny.tokens(50)], ["hash"], windows, None, False), budget
        )
    )
    assert len(mine) == 1
    assert budget.tokens == kept


def short_of_memory(monkeypatch: pytest.MonkeyPatch, too_much: Callable[[Tensor], bool]) -> None:
    """From here on every model has no memory for such inputs ``[B, N]``."""
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        if too_much(inputs):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)


def test_the_record_says_where_memory_ran_out(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"text": text, "lengths": [16], "device": "cpu"}
    before = kerple_eval.evaluate(models["rope"], out=tmp_path / "roomy", **words)
    assert before.provenance.tokens_per_pass is None
    short_of_memory(monkeypatch, lambda inputs: inputs.shape[0] > 2)
    run = kerple_eval.evaluate(models["rope"], out=tmp_path / "cramped", **words)
    (cell,) = run.cells()
    assert isinstance(cell, Cell)
    assert cell.header.out_of_memory_at == 2048
    assert cell.header.tokens_per_pass < 48
    kept = json.loads((tmp_path / "cramped" / "run.json").read_text())["provenance"]["tokens_per_pass"]
    assert kept == cell.header.tokens_per_pass
    assert run.summary()["nll"][0] == pytest.approx(before.summary()["nll"][0], abs=1e-6)


def test_a_failed_cell_leaves_the_others(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, lambda inputs: inputs.shape[1] > 16)
    run = kerple_eval.evaluate(
        models["rope"], text=text, lengths=[16, 48], device="cpu", out=tmp_path / "out"
    )
    summary = run.summary()
    assert summary["status"].tolist() == ["ok", "failed"]
    assert "OutOfMemoryError: CUDA out of memory" in summary["error"][1]


def test_doubling_stops_where_it_does_not_pay() -> None:
    tried: list[int] = []

    def device(rate: float, overhead: float, room: int, memory: float = 1e9) -> int:
        tried.clear()

        def attempt(tokens: int) -> Trial | None:
            tried.append(tokens)
            return None if tokens > room else Trial(overhead + tokens / rate, tokens / memory)

        return largest_useful(attempt)

    assert device(1e6, 0.0, MOST) == START  # the second brings nothing
    assert device(1e6, 1.0, 65536) == 65536  # as far as it fits
    assert device(1e6, 1.0, MOST, memory=100_000) == 65536  # beyond a share of the memory
    assert tried[-1] == 65536
    assert device(1e6, 1e9, 1 << 30) == MOST
