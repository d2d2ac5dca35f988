"""One case: damage a copy of a whole input, read it in a child process, judge the answer.

An answer is right when it is: status 0 or 1 with no traceback, or status 2 with exactly one line on stderr
that begins with ``error:``. It is wrong when it takes longer than `SECONDS`, holds more than `GIGABYTES`,
ends in a traceback or a signal, starts a program or opens a connection. Where what is read carries checksums,
an answer of status 0 must be that of the whole input.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.damage import damage
from tests.fuzz.seeds import FORMATS

SECONDS = 20
GIGABYTES = 4
#: What a reader of files never does.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")


@dataclass(frozen=True)
class Answer:
    """What a command answered; ``wrong`` says why that is not right, and is empty where it is."""

    status: int | None
    stdout: str
    stderr: str
    wrong: str = ""


class Inputs:
    """Whole inputs, built once a format, and what the command answers to each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.whole: dict[str, tuple[Path, Answer]] = {}

    def of(self, name: str) -> tuple[Path, Answer]:
        if name not in self.whole:
            folder = self.root / name
            folder.mkdir(parents=True)
            FORMATS[name].build(folder)
            answer = self._answer(name, folder)
            assert answer.status == 0 and not answer.wrong, (name, answer)
            self.whole[name] = folder, answer
        return self.whole[name]

    def _answer(self, name: str, folder: Path) -> Answer:
        """Of a copy, as every case has; its folder's own name is left out of what is printed."""
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            copy = Path(scratch) / "case"
            shutil.copytree(folder, copy)
            answer = ask(FORMATS[name].command(copy), copy)
            return replace(answer, stdout=answer.stdout.replace(scratch, ""))

    def case(self, name: str, number: int) -> tuple[str, Answer]:
        """Damage number ``number`` of a format: what was damaged, and the answer judged."""
        folder, expected = self.of(name)
        kind = FORMATS[name]
        rng = np.random.default_rng([number, *name.encode()])
        with tempfile.TemporaryDirectory(dir=self.root) as scratch:
            copy = Path(scratch) / "case"
            shutil.copytree(folder, copy)
            files = sorted({p for pattern in kind.damaged for p in copy.glob(pattern) if p.is_file()})
            what = damage(copy, [p for p in files if p.name != ".lock"], rng)
            answer = ask(kind.command(copy), copy)
            answer = replace(answer, stdout=answer.stdout.replace(scratch, ""))
            if kind.trusted and answer.status == 0 and not answer.wrong and answer.stdout != expected.stdout:
                return what, Answer(0, answer.stdout, answer.stderr, "another answer without a word")
            return what, answer


def ask(command: list[str], folder: Path) -> Answer:
    """Run ``kerple-eval`` with these words in a child process, within bounds."""
    report, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(report)
        _answer_and_leave(command, folder, write)
    os.close(write)
    deadline = signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(SECONDS)
    try:
        with os.fdopen(report, "rb") as pipe:
            raw = pipe.read()
        _, status, used = os.wait4(child, 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, deadline)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        why = f"longer than {SECONDS} s" if number == signal.SIGKILL else f"ended by signal {number}"
        return Answer(None, "", "", why)
    found: dict[str, Any] = json.loads(raw)
    wrong = str(found["wrong"])
    if used.ru_maxrss > GIGABYTES * 2**20:
        wrong = wrong or f"held {used.ru_maxrss / 2**20:.1f} GB"
    return Answer(found["status"], found["stdout"], found["stderr"], wrong)


def _watch(broken: list[str], event: str, words: tuple[object, ...]) -> None:
    """``uname -p`` is Python's own, for the platform's name in the record."""
    if event in FORBIDDEN and words[:1] != ("uname",):
        broken.append(f"{event} {words}"[:200])


def _answer_and_leave(command: list[str], folder: Path, write: int) -> None:
    """In the child: the command, judged, as JSON into the pipe."""
    status, stdout, stderr, wrong = None, "", "", ""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        os.chdir(folder)
        broken: list[str] = []
        sys.addaudithook(partial(_watch, broken))
        from click.testing import CliRunner  # noqa: PLC0415

        from kerple_eval.cli.main import cli  # noqa: PLC0415

        result = CliRunner().invoke(cli, command)
        status, stdout, stderr = result.exit_code, result.stdout, result.stderr
        lines = stderr.splitlines()
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            wrong = "".join(traceback.format_exception(result.exception))
        elif status not in (0, 1, 2):
            wrong = f"status {status}"
        elif "Traceback (most recent call last)" in stdout + stderr:
            wrong = "a traceback"
        elif status == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
            wrong = f"not one line: {stderr[:2000]}"
        elif any(len(line) > 2000 for line in lines):
            wrong = f"a line of {max(map(len, lines))} characters"
        if broken:
            wrong = f"did what no reader does: {', '.join(sorted(set(broken)))}"
    except BaseException:
        wrong = traceback.format_exc()
    with os.fdopen(write, "wb") as pipe:
        pipe.write(
            json.dumps({"status": status, "stdout": stdout, "stderr": stderr, "wrong": wrong}).encode()
        )
    os._exit(0)
