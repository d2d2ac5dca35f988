"""Every scheme by the commands a user types: trained, saved, loaded, scored past its length."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from kerple_eval.cli.main import cli
from kerple_eval.records.run import open_run
from kerple_eval.schemes.catalogue import SCHEMES

TEXT = "The cat sat on the mat, and the dog sat by the door; the bird sang in the tree above them. "
LENGTH = 16
FORMULA = {"kernel": "kernel: -r1*log(1+r2*D**r3)"}


@pytest.mark.parametrize("name", SCHEMES)
def test_trained_saved_loaded_and_scored_at_eight_times_its_length(name: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(TEXT * 60)
    runner = CliRunner()
    words = [
        "train", "--scheme", FORMULA.get(name, name), "--text", str(tmp_path / "corpus.txt"),
        "--length", str(LENGTH), "--steps", "3", "--batch", "2", "--layers", "2", "--width", "16",
        "--heads", "2", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "ckpt"),
    ]  # fmt: skip
    done = runner.invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    done = runner.invoke(cli, ["inspect", str(tmp_path / "ckpt")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["scheme"] == name
    assert facts["prefix-invariant"] == ("yes" if SCHEMES[name].prefix_invariant else "no")
    words = [
        "run", str(tmp_path / "ckpt"), "--text", str(tmp_path / "corpus.txt"), "--max-tokens", "300",
        "--length", f"{LENGTH},{8 * LENGTH}", "--device", "cpu", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = runner.invoke(cli, words, catch_exceptions=False)
    if name == "learned":  # defined up to its last position alone: refused, not wrapped
        assert done.exit_code == 2
        assert "its positions (learned) end at 16" in done.output
        return
    assert done.exit_code == 0, done.output
    summary = open_run(tmp_path / "run").summary()
    assert list(summary["status"]) == ["ok", "ok"]
    assert summary["nll"].between(1.0, 9.0).all()  # three steps from ln 256 = 5.5
