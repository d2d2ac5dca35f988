"""The command in processes forked from one that has torch imported: a tenth of what new ones would take."""

from __future__ import annotations

import os
import runpy
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.victim import CONTEXT


@dataclass(frozen=True)
class Done:
    returncode: int | None
    stdout: str
    stderr: str


def _command(words: list[str], script: Path | None, environment: dict[str, str], out: str, err: str) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(environment)
    sys.argv = [str(script or "kerple-eval"), *words]
    if script is not None:
        runpy.run_path(str(script), run_name="__main__")
        return

    from kerple_eval.cli.main import main  # noqa: PLC0415

    main()


def in_processes(
    folder: Path, words: list[str], *environments: dict[str, str], script: Path | None = None
) -> list[Done]:
    """``kerple-eval WORDS`` once for each environment, at the same time; output is kept under ``folder``.

    ``script``: ``python SCRIPT WORDS`` in its place.
    """
    folder.mkdir()
    started = []
    for n, environment in enumerate(environments):
        files = str(folder / f"{n}.out"), str(folder / f"{n}.err")
        process = CONTEXT.Process(target=_command, args=(words, script, environment, *files))
        process.start()
        started.append((process, files))
    for process, _ in started:
        process.join(120)
    return [Done(process.exitcode, *(Path(f).read_text() for f in files)) for process, files in started]


def rank_environments(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of ``count`` processes on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [common | sizes | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]


def as_ranks(folder: Path, count: int, words: list[str], script: Path | None = None) -> list[Done]:
    """As torchrun starts ``count`` processes on one machine."""
    return in_processes(folder, words, *rank_environments(count), script=script)
