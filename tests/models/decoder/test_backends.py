"""Which backend computes attention: one asked for by name is used or refused, and the record says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kerple_eval
from kerple_eval.models.decoder import backends as module
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.records.cell import Cell
from kerple_eval.types import UserError
from tests.helpers import tiny
from tests.helpers.command import make_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def backend(asked: str, scheme: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> str:
    return resolve_backend(asked, scheme_of(tiny.config(scheme, width=48)), scheme, device, dtype)


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shared_memory_limit", lambda _: 232_448)


def test_auto_on_the_cpu() -> None:
    assert {backend("auto", name) for name in tiny.SCHEMES} == {"sdpa"}
    assert {backend("auto", name) for name in ("fire", "cope", "kerple-bias-wht")} == {"chunks"}


def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert backend("auto", "kerple-log", CUDA, torch.bfloat16) == "flex"
    assert backend("auto", "kerple-bias-wht", CUDA, torch.float16) == "flex"
    assert backend("auto", "kerple-log", CUDA, torch.float32) == "sdpa"
    assert backend("flex", "kerple-log", CUDA, torch.float32) == "flex"
    assert backend("auto", "cope", CUDA, torch.bfloat16) == "chunks"
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert backend("auto", "kerple-log", CUDA, torch.bfloat16) == "sdpa"
    with pytest.raises(UserError, match="needs triton"):
        backend("flex", "kerple-log", CUDA, torch.bfloat16)


@pytest.mark.parametrize(
    ("asked", "scheme", "device", "dtype", "reason"),
    [
        ("flex", "kerple-log", CPU, torch.float32, "is compiled for CUDA, the device is cpu; use auto"),
        ("flex", "fire", CUDA, torch.float32, "fire is not a function of distance alone"),
        ("flex", "kerple-log", CUDA, torch.float64, "float32 at most"),
        ("sdpa", "cope", CPU, torch.float32, "cope needs its scores in memory; use auto or eager"),
    ],
)
def test_refusals(asked: str, scheme: str, device: torch.device, dtype: torch.dtype, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        backend(asked, scheme, device, dtype)


def test_heads_that_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_HEAD", 17)
    with pytest.raises(UserError, match="heads of 16 are too small"):
        backend("flex", "kerple-log", CUDA)


def test_a_card_with_too_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(module, "shared_memory_limit", lambda _: 8_000)
    assert backend("auto", "kerple-log", CUDA, torch.bfloat16) == "sdpa"
    assert backend("auto", "kerple-bias-wht", CUDA, torch.bfloat16) == "chunks"
    with pytest.raises(UserError, match="kerple-log needs more shared memory than this card's 8,000"):
        backend("flex", "kerple-log", CUDA, torch.bfloat16)


def evaluated(place: Path, model: str, asked: str, **more: Any) -> kerple_eval.Run:
    place.mkdir(exist_ok=True)
    make_model(place / model, model)
    (place / "text.txt").write_text("A line of text, and another. " * 20)
    return kerple_eval.evaluate(
        str(place / model), text=place / "text.txt", lengths=[16, 48], device="cpu", attention=asked,
        out=place / f"{model}-{asked}", **more,
    )  # fmt: skip


def test_the_record_says_it(tmp_path: Path) -> None:
    runs = {asked: evaluated(tmp_path, "kerple-log", asked) for asked in ("auto", "sdpa", "eager")}
    for asked, run in runs.items():
        cells = [cell for cell in run.cells() if isinstance(cell, Cell)]
        assert {cell.header.attention for cell in cells} == {"eager" if asked == "eager" else "sdpa"}
        assert (run.specification.attention or "auto") == asked
    nll = [run.summary()["nll"].tolist() for run in runs.values()]
    assert nll[0] == nll[1] == pytest.approx(nll[2], abs=1e-6)
    chunks = evaluated(tmp_path, "cope", "auto")
    assert {c.header.attention for c in chunks.cells() if isinstance(c, Cell)} == {"chunks"}


def test_a_run_refuses_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model kerple-log: attention flex: is compiled for CUDA"):
        evaluated(tmp_path, "kerple-log", "flex")
    with pytest.raises(UserError, match="unknown attention 'fast'"):
        evaluated(tmp_path, "kerple-log", "fast")
    assert not list(tmp_path.glob("kerple-log-*"))


def test_a_run_says_when_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a shape of this process: 16 and 48 tokens are one block each, in groups of another size."""
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(module, "_flex_obstacle", lambda *_: None)
    said: list[tuple[int, bool]] = []
    run = evaluated(tmp_path, "alibi", "flex", on_progress=lambda p: said.append((p.key.length, p.compiling)))
    assert run.summary()["status"].tolist() == ["ok", "ok"]
    assert {length for length, compiling in said if compiling} == {16, 48}
    for length in (16, 48):
        steps = [compiling for n, compiling in said if n == length]
        assert steps.count(True) == 1
        assert not steps[-1]
    said.clear()
    evaluated(tmp_path / "sdpa", "alibi", "sdpa", on_progress=lambda p: said.append((0, p.compiling)))
    assert (0, True) not in said
