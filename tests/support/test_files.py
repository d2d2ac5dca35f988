"""Files and folders that are whole or not there, whatever write a process dies at."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kerple_eval.support import files
from kerple_eval.support.files import inside, locked, new_folder, write_atomically, write_output
from kerple_eval.types import UserError
from tests.helpers.dying import content, dies_at

HOLDER = "import sys, pathlib\nfrom kerple_eval.support.files import *\n"


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    number = 0
    while True:
        number += 1
        path.write_bytes(b"old")
        died = dies_at(number, lambda: write_atomically(path, b"new"))
        assert path.read_bytes() in ({b"old", b"new"} if died else {b"new"})
        with locked(tmp_path):
            assert set(content(tmp_path)) == {"file", ".lock"}  # the temporary file is swept
        if not died:
            break
    assert number > 3


def test_the_users_umask_decides_who_reads(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        for mask, rights in ((0o077, 0o600), (0o022, 0o644), (0o002, 0o664)):
            os.umask(mask)
            write_atomically(tmp_path / "file", b"new")
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == rights
    finally:
        os.umask(before)


def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    """Nor files of other names, links, and folders."""
    kept = [tmp_path / name for name in (".a.tmp", ".a.b.tmp", "a.abcdefgh.tmp", ".a.abcdefgh.tmp.x")]
    for path in kept:
        path.write_bytes(b"")
    (tmp_path / ".d.abcdefgh.tmp").mkdir()
    (tmp_path / ".l.abcdefgh.tmp").symlink_to(kept[0])
    (tmp_path / "cells").mkdir()
    dead = tmp_path / "cells" / ".x.parquet.abcdef_1.tmp"
    dead.write_bytes(b"half")
    alive = tmp_path / ".state.abcdefgh.tmp"
    code = f"{HOLDER}file = open({str(alive)!r}, 'w')\nassert take_lock(file)\nprint(flush=True)\ninput()"
    code = code.replace("import *", "import take_lock")
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with locked(tmp_path):
            assert alive.exists()
            assert not dead.exists()
        process.communicate("\n")
    with locked(tmp_path):
        assert not alive.exists()
    assert all(path.exists() for path in (*kept, tmp_path / ".d.abcdefgh.tmp"))
    assert (tmp_path / ".l.abcdefgh.tmp").is_symlink()


def build(folder: Path) -> None:
    with new_folder(folder) as partial:
        for name in ("a", "b/c"):
            write_atomically(partial / name, name.encode())


@pytest.mark.parametrize("before", ["absent", "empty", "a lock"])
def test_a_folder_is_whole_or_as_it_was(tmp_path: Path, before: str) -> None:
    """Died at any change, the same call goes on and leaves nothing else behind."""
    number = 0
    died = True
    while died:
        number += 1
        folder = tmp_path / str(number) / "new"
        if before != "absent":
            folder.mkdir(parents=True)
        if before == "a lock":
            (folder / ".lock").touch()
        died = dies_at(number, lambda folder=folder: build(folder))  # type: ignore[misc]
        names = set(content(folder)) if folder.exists() else set()
        if names - {".lock"}:  # whole: dying later is dying after the end
            assert names == {"a", "b/c"}
            with pytest.raises(UserError, match="exists and is not an empty folder; choose a new one"):
                build(folder)
        else:
            build(folder)
        assert content(folder.parent) == {"new/a": b"a", "new/b/c": b"b/c"}
    assert number > 10


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    for error in (UserError("wrong"), KeyboardInterrupt(), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), new_folder(tmp_path / "new") as partial:
            write_atomically(partial / "a", b"a")
            raise error
        assert not list(tmp_path.iterdir())


def test_two_builders_of_one_folder(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "new"),
        pytest.raises(UserError, match="another kerple-eval is writing here"),
        new_folder(tmp_path / "new"),
    ):
        pass
    assert (tmp_path / "new").is_dir()


def test_a_lock_on_a_folder_that_was_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was opened before its holder renamed the folder, and locked after."""
    real = files.take_lock

    def moved(file: object) -> bool:
        (tmp_path / "a").rename(tmp_path / "b")
        return real(file)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "take_lock", moved)
    with pytest.raises(UserError, match="another kerple-eval is writing here"), locked(tmp_path / "a"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(UserError, match=r"not an empty folder|cannot be written"):
            build(folder)


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


@pytest.mark.parametrize("name", ["itself", "x" * 300, "a\0b"])
def test_a_path_that_leads_nowhere_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "itself").symlink_to("itself")
    with pytest.raises(UserError, match=r"cannot be read: a link to itself, or a name that no file can have"):
        inside(tmp_path / name, tmp_path)


def test_an_output_leaves_no_file_of_a_killed_call(tmp_path: Path) -> None:
    path = tmp_path / "page[1].html"
    (tmp_path / ".other.html.abcdefgh.tmp").write_bytes(b"another's")
    number = 1
    while dies_at(number, lambda: write_output(path, b"new")):
        number += 1
    assert number > 3
    assert set(content(tmp_path)) == {path.name, ".other.html.abcdefgh.tmp"}
