"""Locks and what killed writers leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kerple_eval.support.files import locked, write_atomically
from kerple_eval.types import UserError


def test_who_holds_the_lock_sweeps_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this folder and those directly in it; nothing that write_atomically would not have made."""
    left: list[Path] = []

    def killed(self: Path, target: Path) -> Path:
        left.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    for path in (tmp_path / "run.json", tmp_path / "cells" / "a.parquet", tmp_path / "a" / "b" / "deep"):
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"half")
    monkeypatch.undo()
    others = [tmp_path / name for name in (".hidden.tmp", "notes.tmp", ".lock.tmp", "cells/.x.tmp")]
    for other in others:
        other.write_text("mine")
    assert all(path.exists() for path in left)
    with locked(tmp_path):
        assert [path.exists() for path in left] == [False, False, True]
    assert all(other.exists() for other in others)


def test_without_file_locks_reading_works_and_writing_says_so(tmp_path: Path) -> None:
    """As on Windows, where Python has no fcntl."""
    program = (
        "import sys\n"
        "sys.modules['fcntl'] = None\n"
        "import kerple_eval\n"
        "from kerple_eval.cli.main import cli\n"
        "kerple_eval.open_run, kerple_eval.evaluate\n"
        "assert cli.main(['list', 'protocols'], standalone_mode=False) is None\n"
        "from kerple_eval.support.files import locked\n"
        "try:\n"
        f"    with locked(__import__('pathlib').Path({str(tmp_path / 'out')!r})): pass\n"
        "except kerple_eval.UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "this system has no file locks (fcntl)" in done.stdout.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_one_writer_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another kerple-eval is writing here"):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass
