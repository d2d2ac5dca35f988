"""Kill, stop, fail, share: whatever happens to a run, the same command ends in the same ``summary.csv``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kerple_eval
from kerple_eval.evaluation import worker
from kerple_eval.evaluation.worker import RunProgress
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.support.files import locked
from kerple_eval.types import UserError
from tests.helpers.command import Cli, contents, prose, refusal, stamps
from tests.helpers.victim import killed_at

PROTOCOLS = ("full-context", "sliding-window:stride=8", "prefix")
LENGTHS = (16, 32, 64)
CELLS = 2 * len(PROTOCOLS) * len(LENGTHS)
#: run.json and an empty summary.csv; then in_progress.json, a cell and summary.csv; summary.csv at the end
WRITES = 3 + 3 * CELLS
CONSOLE = str(Path(sys.executable).parent / "kerple-eval")


@pytest.fixture(scope="module")
def arguments(models: dict[str, str], text: str) -> dict[str, Any]:
    """Two models, three protocols, three lengths: 18 cells."""
    two = [models["alibi"], models["rope"]]
    return {"models": two, "text": text, "protocols": PROTOCOLS, "lengths": LENGTHS}


@pytest.fixture(scope="module")
def whole(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """``summary.csv`` of the run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    kerple_eval.evaluate(**arguments, out=out)
    raw = (out / "summary.csv").read_bytes()
    assert raw.count(b"\n") == 1 + CELLS
    return raw


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 15, 28, WRITES - 1, WRITES])
def test_killed_at_any_write(
    at: int, when: str, arguments: dict[str, Any], whole: bytes, tmp_path: Path
) -> None:
    assert killed_at(arguments | {"out": tmp_path}, at, when)
    before = stamps(tmp_path) if (tmp_path / "cells").exists() else {}
    written = at if when == "after" else at - 1
    assert len(before) == max(0, written - 1) // 3
    if (tmp_path / "summary.csv").exists():
        raw = (tmp_path / "summary.csv").read_bytes()
        assert raw.endswith(b"\n")  # whole lines only, and as many as had been written
        assert raw.count(b"\n") == 1 + max(0, written - 2) // 3
    run = kerple_eval.evaluate(**arguments, out=tmp_path)
    assert (tmp_path / "summary.csv").read_bytes() == whole
    assert before.items() <= stamps(tmp_path).items()
    assert len(stamps(tmp_path)) == CELLS
    assert len(run.summary()) == CELLS


def test_killed_again_and_again(arguments: dict[str, Any], whole: bytes, tmp_path: Path) -> None:
    kills = 0
    while killed_at(arguments | {"out": tmp_path}, 9, "before" if kills % 2 else "after"):
        kills += 1
        assert kills < 20
    assert kills >= 4
    assert (tmp_path / "summary.csv").read_bytes() == whole


def test_a_finished_run_computes_nothing(
    arguments: dict[str, Any], whole: bytes, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert passes
    before = stamps(tmp_path)
    passes.clear()
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert passes == []
    assert stamps(tmp_path) == before
    assert (tmp_path / "summary.csv").read_bytes() == whole
    (tmp_path / "summary.csv").unlink()
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert passes == []
    assert (tmp_path / "summary.csv").read_bytes() == whole


def test_only_what_is_missing_is_computed(
    arguments: dict[str, Any], whole: bytes, tmp_path: Path, passes: list[tuple[int, ...]]
) -> None:
    kerple_eval.evaluate(**arguments, out=tmp_path)
    gone = next((tmp_path / "cells").glob("rope--text--full-context--32--*.parquet"))
    gone.unlink()
    passes.clear()
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert passes == [(4, 32), (1, 8)]  # 136 targets: four whole windows and one of 8 inputs
    assert gone.exists()
    assert (tmp_path / "summary.csv").read_bytes() == whole


class Slow:
    """The installed command at work on a text long enough to catch it in the middle."""

    def __init__(self, models: dict[str, str], folder: Path) -> None:
        text = folder / "long.txt"
        text.write_text(prose(1500, 5)[:6000])
        self.out = folder / "run"
        self.words = [
            "run", models["alibi"], models["rope"], "--text", str(text), "--length", "16,32,64",
            "--protocol", "sliding-window:stride=2", "--protocol", "full-context", "--out", str(self.out),
        ]  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def start(self, cells: int) -> None:
        """Start, and return once ``cells`` cells are finished."""
        self.process = subprocess.Popen(
            [CONSOLE, *self.words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            # A job started in the background ignores Ctrl-C, and what it starts would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        )  # fmt: skip
        end = time.monotonic() + 60
        while len(list(self.out.glob("cells/*.parquet"))) < cells:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.003)

    def send(self, number: int) -> tuple[int, str, str, float]:
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)  # where it was held
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err, time.monotonic() - began


@pytest.fixture
def slow(models: dict[str, str], tmp_path: Path) -> Iterator[Slow]:
    made = Slow(models, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def test_the_installed_command_killed_then_stopped_then_finished(
    slow: Slow, invoke: Cli, tmp_path: Path
) -> None:
    slow.start(1)
    assert slow.send(signal.SIGKILL)[0] == -signal.SIGKILL
    finished = stamps(slow.out)
    assert 1 <= len(finished) < 12

    slow.start(len(finished) + 1)
    assert slow.process is not None
    slow.process.send_signal(signal.SIGSTOP)  # a loaded machine must not let it finish meanwhile
    before = contents(slow.out / "cells")
    second = refusal(invoke(*slow.words))
    assert "another kerple-eval is writing here" in second
    assert before.items() <= contents(slow.out / "cells").items()
    status, out, err, seconds = slow.send(signal.SIGINT)
    assert status == 130
    assert seconds < 20  # about 0.1 s on an idle machine; the machines of a test are not idle
    assert out == ""
    assert err.splitlines() == [f"stopped; finished cells are kept, the same command continues in {slow.out}"]
    assert finished.items() <= stamps(slow.out).items()
    assert len(stamps(slow.out)) < 12

    finished = stamps(slow.out)
    assert invoke(*slow.words).exit_code == 0
    assert finished.items() <= stamps(slow.out).items()
    apart = tmp_path / "apart"
    assert invoke(*slow.words[:-1], str(apart)).exit_code == 0
    assert (slow.out / "summary.csv").read_bytes() == (apart / "summary.csv").read_bytes()


def test_two_processes_on_one_directory(arguments: dict[str, Any], tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another kerple-eval is writing"):
        kerple_eval.evaluate(**arguments, out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".lock"}
    kerple_eval.evaluate(**arguments, out=tmp_path)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"),
    MemoryError("no memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_in_some_cells(
    error: Exception, arguments: dict[str, Any], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DecoderModel.logits

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        if inputs.shape[1] == 64:
            raise error
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", logits)
    run = kerple_eval.evaluate(**arguments, out=tmp_path)
    summary = run.summary()
    failed = summary[summary["length"] == 64]
    assert len(failed) == CELLS // len(LENGTHS)
    assert (failed["status"] == "failed").all()
    assert (summary[summary["length"] < 64]["status"] == "ok").all()
    assert failed[["nll", "ppl", "bits_per_byte", "targets", "windows", "targets_hash"]].isna().all(axis=None)
    for text in failed["error"]:
        assert text.startswith(type(error).__name__ + ": ")
        assert "\n" not in text
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + CELLS
    assert not any(bad in line.lower() for line in lines for bad in ("nan,", "inf,", "none"))
    good = {line for line in whole.decode().splitlines() if ",64," not in line}
    # A shorter prefix cell is then computed on its own, with other batches: equal but for rounding.
    assert {line for line in good if "prefix" not in line} <= set(lines)

    monkeypatch.undo()
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert not list((tmp_path / "cells").glob("*.json"))
    after = (tmp_path / "summary.csv").read_text().splitlines()
    assert [x for x in after if "prefix" not in x] == [
        x for x in whole.decode().splitlines() if "prefix" not in x
    ]
    assert ("failed" in "".join(after)) is False


def test_a_model_that_fails_to_load(
    arguments: dict[str, Any], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = NativeCheckpoint.load

    def load(self: NativeCheckpoint, device: torch.device, dtype: torch.dtype) -> DecoderModel:
        if self.config.scheme == "alibi":
            raise MemoryError
        return real(self, device, dtype)

    monkeypatch.setattr(NativeCheckpoint, "load", load)
    summary = kerple_eval.evaluate(**arguments, out=tmp_path).summary()
    statuses = summary.groupby("model")["status"].apply(list).to_dict()
    assert statuses == {"alibi": ["failed"] * (CELLS // 2), "rope": ["ok"] * (CELLS // 2)}
    monkeypatch.undo()
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert (tmp_path / "summary.csv").read_bytes() == whole


def test_a_failed_cell_that_fails_again_stays_a_row(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def logits(self: DecoderModel, inputs: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        calls.append(rows)
        yield torch.full((*inputs.shape[:1], rows, 256), float("nan"))

    monkeypatch.setattr(DecoderModel, "logits", logits)
    kerple_eval.evaluate(**arguments, out=tmp_path)
    first, tries = (tmp_path / "summary.csv").read_bytes(), len(calls)
    assert first.count(b",failed,") == CELLS
    assert b"NotFiniteError: loss of target" in first
    kerple_eval.evaluate(**arguments, out=tmp_path)
    assert (tmp_path / "summary.csv").read_bytes() == first
    assert len(calls) == 2 * tries


def test_progress_reaches_the_end(arguments: dict[str, Any], tmp_path: Path) -> None:
    seen: list[RunProgress] = []
    kerple_eval.evaluate(**arguments, out=tmp_path, on_progress=seen.append)
    shares = [report.work_done / report.work for report in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert (seen[0].cells_done, seen[-1].cells_done, seen[-1].cells) == (0, CELLS, CELLS)


def test_the_summary_is_written_once_a_second_and_at_every_end(
    arguments: dict[str, Any], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = worker.write_summary_lines

    def counted(folder: Path, lines: list[str]) -> None:
        written.append(len(lines))
        write(folder, lines)

    monkeypatch.setattr(worker, "write_summary_lines", counted)
    monkeypatch.setattr(worker, "SUMMARY_EVERY", 1e9)
    kerple_eval.evaluate(**arguments, out=tmp_path / "quick")
    assert written == [0, CELLS]
    assert (tmp_path / "quick" / "summary.csv").read_bytes() == whole
    written.clear()

    def stop(progress: RunProgress) -> None:
        if progress.cells_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kerple_eval.evaluate(**arguments, out=tmp_path / "stopped", on_progress=stop)
    assert written == [0, 2]
    written.clear()
    monkeypatch.setattr(worker, "SUMMARY_EVERY", 0.0)
    kerple_eval.evaluate(**arguments, out=tmp_path / "each")
    assert written == [*range(CELLS + 1), CELLS]
