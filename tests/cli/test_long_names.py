"""A name that no file can have (over 255 bytes) is a user's mistake: one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import kerple_eval
from kerple_eval.cli.main import cli

LONG = "a" * 300


def test_one_line_for_a_path_that_cannot_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("A sentence that is scored. " * 20)
    run = f"--text {text} --length 16"
    wrong = [
        *(f"{command} {LONG}" for command in ("table", "report", "inspect")),
        f"merge {LONG} --out merged",
        f"plot {LONG} --kind curve --out x.png",
        f"convert zoo:alibi {LONG}",
        *(f"run m={spec} {run} --out runs" for spec in (LONG, f"native:{LONG}", f"neox:{LONG}")),
        *(f"run m={spec} {run} --out runs" for spec in (f"hf:./{LONG}", f"python:{LONG}:f")),
        f"run zoo:alibi {run} --out {LONG}",
        f"run zoo:alibi {run} --dry-run --out {LONG}",
    ]
    for command in wrong:
        result = CliRunner().invoke(cli, command.split())
        assert result.exit_code == 2, (command, result.output, result.exception)
        assert len(result.stderr.splitlines()) == 1 and LONG in result.stderr, command


def test_a_text_may_be_one_long_line() -> None:
    assert len(kerple_eval.score("zoo:alibi", LONG, length=64)) == len(LONG) - 1
