"""Losses taken from finished cells: right, never where inputs differ, and the same whatever happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.data.documents import NO_MARKERS, DocumentMarkers, TokenDocument
from kerple_eval.data.texts import TokenizedText
from kerple_eval.evaluation.planning import parse_protocol
from kerple_eval.evaluation.reuse import find
from kerple_eval.evaluation.worklist import Work
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.records.cell import Cell
from kerple_eval.types import Window
from tests.helpers.records import header
from tests.helpers.victim import killed_at

PROTOCOLS = (
    "full-context", "sliding-window:stride=8", "aligned:k=4", "prefix", "last:k=4", "hf-guide:stride=16",
    "dape:k=4", "yarn:stride=8", "lm-eval-rolling",
)  # fmt: skip
LENGTHS = (16, 32, 64)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every window fed to a model from here on."""
    seen: list[tuple[int, ...]] = []
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        seen.extend(tuple(row) for row in inputs.tolist())
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    return seen


def run(models: dict[str, str], text: str, out: Path, **changes: Any) -> kerple_eval.Run:
    options = {"text": Path(text), "protocols": PROTOCOLS, "lengths": LENGTHS, "out": out} | changes
    return kerple_eval.evaluate([models["alibi"], models["rope"]], **options)


def sources(made: kerple_eval.Run, model: str = "alibi") -> dict[tuple[str, int], str]:
    return {
        (c.key.protocol, c.key.length): c.header.losses_from for c in made.cells() if c.key.model == model
    }


def test_what_coincides_is_not_computed_again(
    models: dict[str, str], tmp_path: Path, fed: list[tuple[int, ...]]
) -> None:
    """137 bytes: whole windows of 16, 32 and 64 start at the same places in most of these protocols."""
    letters = np.random.default_rng(3).integers(97, 123, size=137, dtype=np.uint8)
    (tmp_path / "random.txt").write_bytes(letters.tobytes())
    text = tmp_path / "random.txt"
    found = sources(run(models, text, tmp_path / "r"))
    for length in LENGTHS:
        assert found["full-context", length] == "forward pass"
        assert found["last:k=4", length] == f"full-context at {length}"
        assert found["dape:k=4", length] == f"full-context at {length}"
    assert found["aligned:k=4", 16] == "full-context at 16"
    assert found["hf-guide:stride=16", 16] == "full-context at 16"
    assert found["prefix", 64] == "full-context at 64"
    assert found["prefix", 16] == "prefix of 64"
    assert found["sliding-window:stride=8", 16] == "full-context at 16 (8 windows), forward pass (8 windows)"
    # Byte models have no BOS, so yarn's windows at even multiples of 8 are full-context's; lm-eval's begin
    # with NUL, one token earlier.
    assert found["yarn:stride=8", 16] == "full-context at 16 (9 windows), forward pass (8 windows)"
    assert found["lm-eval-rolling", 16] == "forward pass"
    fed.clear()
    run(models, text, tmp_path / "without", protocols=PROTOCOLS[:-1])
    for length in LENGTHS:
        whole = [row for row in fed if len(row) == length]
        assert len(whole) == 2 * len(set(whole))  # once for each of the two models


def test_losses_are_those_of_runs_apart(models: dict[str, str], text: str, tmp_path: Path) -> None:
    """Every cell against the same cell of a run of its protocol alone, which has nothing to take from."""
    together = run(models, text, tmp_path / "all")
    for protocol in PROTOCOLS:
        apart = run(models, text, tmp_path / protocol.partition(":")[0], protocols=protocol)
        for model in ("alibi", "rope"):
            for length in LENGTHS:
                wanted = {"model": model, "protocol": protocol, "length": length}
                a, b = together.losses(**wanted), apart.losses(**wanted)
                same = ["document", "target", "context"]
                assert a[same].equals(b[same])
                assert np.abs(a["loss"] - b["loss"]).max() < 1e-5
        for column in ("windows", "targets", "targets_hash"):
            mine = together.summary().query("protocol == @protocol")[column]
            assert mine.tolist() == apart.summary()[column].tolist()


@pytest.mark.parametrize("at", [9, 30, 47])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_same_bytes_after_a_kill(
    at: int, when: str, models: dict[str, str], text: str, tmp_path: Path
) -> None:
    run(models, text, tmp_path / "whole")
    arguments = {
        "models": [models["alibi"], models["rope"]], "text": text, "protocols": PROTOCOLS,
        "lengths": LENGTHS, "out": tmp_path / "cut",
    }  # fmt: skip
    assert killed_at(arguments, at, when)
    run(models, text, tmp_path / "cut")
    whole, cut = (tmp_path / name / "summary.csv" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


def test_a_cell_computed_again_takes_from_those_before_it_alone(
    models: dict[str, str], text: str, tmp_path: Path, fed: list[tuple[int, ...]]
) -> None:
    """Cells in the middle deleted: the later ones, which hold the same windows, are not looked at."""
    run(models, text, tmp_path)
    before = (tmp_path / "summary.csv").read_bytes()
    for name in ("full-context--16", "aligned_k_4--32", "last_k_4--64", "sliding-window_stride_8--32"):
        for path in (tmp_path / "cells").glob("*.parquet"):
            if name.replace("_k_", "_k=").replace("_stride_", "_stride=") in path.name:
                path.unlink()
    fed.clear()
    again = run(models, text, tmp_path)
    assert fed  # full-context at 16 is scored, though hf-guide and last hold most of it
    assert sources(again)["full-context", 16] == "forward pass"
    assert (tmp_path / "summary.csv").read_bytes() == before


@pytest.mark.parametrize("scheme", ["alibi", "rope"])
def test_a_failed_source_is_no_source(
    scheme: str, models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DecoderModel.logits
    calls = []

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        calls.append(rows)
        if len(calls) == 1:
            raise MemoryError("no room")
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    made = kerple_eval.evaluate(
        models[scheme], text=text, protocols=["full-context", "last:k=4"], lengths=[16], out=tmp_path
    )
    assert made.summary()["status"].tolist() == ["failed", "ok"]
    (cell,) = [c for c in made.cells() if isinstance(c, Cell)]
    assert cell.header.losses_from == "forward pass"


def work(protocol: str, length: int, ids: list[list[int]], bos: int | None = None) -> Work:
    documents = [TokenDocument(str(i), np.array(d, dtype=np.int64)) for i, d in enumerate(ids)]
    reading = TokenizedText(documents, NO_MARKERS if bos is None else DocumentMarkers("window", bos))
    plan = parse_protocol(protocol, [length])
    return Work(plan.key("m", "t", length), SimpleNamespace(), plan, plan.cell(reading, length))  # type: ignore[arg-type]


def taken(task: Work, source: Work, invariant: bool = True, only: set[int] | None = None) -> set[int]:
    """Windows of ``task`` that ``source`` serves (of documents ``only``); the losses are checked too."""

    def base(plan: Work, document: int, window: Window) -> int:
        """Tells rows apart, so that a wrong one shows."""
        return hash((tuple(plan.documents[document].ids.tolist()), window.start)) % 1000

    task.model = SimpleNamespace(description=SimpleNamespace(prefix_invariant=invariant))  # type: ignore[assignment]
    held = [(d, w) for d, w in source.windows if only is None or d in only]
    cell = Cell(
        source.key, header([(d.name, len(d), d.sha256) for d in source.documents]),
        np.array([d for d, _ in held]), [w for _, w in held],
        [np.arange(w.first_target, w.stop + 1, dtype=np.float32) + base(source, d, w) for d, w in held], None,
    )  # fmt: skip
    source.key, task.key = replace(source.key, protocol="held"), replace(task.key, protocol="wanted")
    found = find(task, [source], lambda key: cell)
    for index, row in found.losses.items():
        document, window = task.windows[index]
        targets = range(window.first_target, window.stop + 1)
        assert row.tolist() == [k + base(task, document, window) for k in targets]
    return set(found.losses)


IDS = [list(range(40)), list(range(5, 45))]


def test_inputs_must_be_the_same() -> None:
    full = work("full-context", 8, IDS)
    last = work("last:k=3", 8, IDS)
    every = set(range(len(last.windows)))
    assert taken(last, full) == every
    assert taken(full, last) == set()  # not all targets
    assert taken(last, work("full-context", 8, IDS[::-1])) == every  # by content, in any order
    assert taken(last, work("full-context", 8, IDS[:1])) == {i for i in every if last.windows[i][0] == 0}
    changed = [[*d[:-1], 99] for d in IDS]
    assert taken(last, work("full-context", 8, changed)) == set()
    marked = work("last:k=3", 9, IDS, bos=1)
    assert taken(marked, full) == set()
    assert taken(marked, work("full-context", 9, IDS, bos=2)) == set()
    assert taken(marked, work("full-context", 9, IDS, bos=1)) == set(range(len(marked.windows)))
    # A cell that holds some of its documents so far (--precision).
    assert taken(last, full, only={1}) == {i for i in every if last.windows[i][0] == 1}


def test_a_longer_window_serves_only_where_what_follows_does_not_matter() -> None:
    full, longer = work("full-context", 8, IDS), work("full-context", 16, IDS)
    starts = {i for i, (_, w) in enumerate(full.windows) if w.start % 16 == 0}
    assert taken(full, longer) == starts
    ends = {i for i in starts if full.windows[i][1].stop == 39}
    assert taken(full, longer, invariant=False) == ends
