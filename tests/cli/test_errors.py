"""What ends a command: broken output, errors with their traceback, a disk that fills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import Cli, refusal

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
    after = invoke(*words, "--traceback")
    assert (after.exit_code, after.stderr.count("error: ")) == (2, 1)
    assert after.stderr.startswith("Traceback (most recent call last):\n")
    done = invoke("--traceback", "inspect", str(Path(__file__)))
    assert done.stderr.count("error: ") == 1
