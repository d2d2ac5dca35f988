"""What ends a command: broken output, errors with their traceback, a disk that fills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kerple_eval.records.cell import read_cell
from kerple_eval.records.run import open_run
from kerple_eval.support import files
from tests.helpers.command import Cli, contents, refusal

PROGRAM = [sys.executable, "-m", "kerple_eval"]


def piped(*words: str, stdout: int, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    done = subprocess.run([*PROGRAM, *words], stdout=stdout, stderr=stderr, text=True, check=False)
    return done.returncode, done.stderr or ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_full_output_is_one_line() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for words in (["list", "protocols"], ["--help"], ["run", "--help"], ["--version"]):
            status, errors = piped(*words, stdout=full)
            assert status == 1
            assert errors == "error: standard output cannot be written: No space left on device\n"
        assert piped("list", "nothing", stdout=subprocess.DEVNULL, stderr=full) == (2, "")
    finally:
        os.close(full)


def test_an_output_whose_reader_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert piped("list", "schemes", stdout=writing) == (1, "")
    finally:
        os.close(writing)


def test_an_output_that_was_never_open() -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "list", "formats"],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_traceback_comes_before_the_line(invoke: Cli) -> None:
    """With what ``raise ... from None`` hides; without the option the line stands alone."""
    words = ["table", "no/such/run"]
    line = refusal(invoke(*words))
    done = invoke("--traceback", *words)
    assert done.exit_code == 2
    assert done.stderr.endswith(line + "\n")
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert "in open_run" in done.stderr
    done = invoke("--traceback", "inspect", str(Path(__file__)))
    assert done.stderr.count("error: ") == 1


def test_a_disk_that_fills_in_mid_run(
    models: dict[str, str], text: str, invoke: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 2 while nothing was computed, 1 afterwards; finished cells are kept."""
    out = tmp_path / "run"
    words = ["run", models["alibi"], "--text", text, "--length", "16,32", "--out", str(out)]
    assert invoke(*words[:-1], str(tmp_path / "whole")).exit_code == 0
    real = os.fsync

    def full_after(count: int) -> None:
        left = [count]

        def fsync(number: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(number)

        monkeypatch.setattr(files.os, "fsync", fsync)

    full_after(0)
    assert "No space left on device" in refusal(invoke(*words))
    statuses = []
    for count in range(3, 9):
        full_after(count)
        done = invoke(*words)
        statuses.append(done.exit_code)
        if done.exit_code == 1:
            (line,) = done.stderr.splitlines()
            assert line.startswith("error: ")
            assert line.endswith("No space left on device; finished cells are kept, the same command goes on")
            assert any(read_cell(out, key) is not None for key in open_run(out).keys())  # noqa: SIM118
    monkeypatch.setattr(files.os, "fsync", real)
    assert set(statuses) <= {1, 2, 0}
    assert 1 in statuses
    assert invoke(*words).exit_code == 0
    assert contents(out)["summary.csv"] == contents(tmp_path / "whole")["summary.csv"]
