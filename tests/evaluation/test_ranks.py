"""Several processes on one run, by the command a user types: the same bytes, whoever shares the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.evaluation.ranks import RankGroup, ScoreRequest
from kerple_eval.models.devices import DeviceLostError, device_lost
from kerple_eval.models.scoring import Batch, Budget
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError, Window
from tests.helpers.command import make_model
from tests.helpers.ranks import Done, as_ranks, in_processes

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(folder: Path, out: str, *more: str, device: str = "cpu") -> list[str]:
    return [
        "run", str(folder / "kerple-log"), str(folder / "rope"), "--text", str(folder / "text.txt"),
        "--length", "16,48", "--protocol", "full-context", "--protocol", "sliding-window:stride=8",
        "--device", device, "--out", str(folder / out), *more,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("kerple-log", "rope"):
        make_model(tmp_path / name, name)
    (tmp_path / "text.txt").write_text("A line of text, and a longer one after it. " * 120)
    return tmp_path


def torchrun(folder: Path, ranks: int, out: str) -> list[str]:
    """The words that a user types."""
    python = sys.executable
    launcher = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python"]
    return [*launcher, python, "-m", "kerple_eval", *command(folder, out)]


def losses(folder: Path) -> list[bytes]:
    return [
        b"".join(row.tobytes() for row in cell.losses)
        for cell in open_run(folder).cells()
        if isinstance(cell, Cell)
    ]


def alone(folder: Path, out: str) -> Done:
    (done,) = in_processes(folder / f"{out}-output", command(folder, out), {})
    assert done.returncode == 0, done.stderr
    return done


def test_two_ranks_give_the_same_bytes(folder: Path) -> None:
    one, (first, second) = alone(folder, "one"), as_ranks(folder / "ranks", 2, command(folder, "many"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert (folder / "one" / "summary.csv").read_bytes() == (folder / "many" / "summary.csv").read_bytes()
    assert losses(folder / "one") == losses(folder / "many")
    assert len(losses(folder / "many")) == 8
    assert first.stdout.replace("/many", "/one") == one.stdout
    assert second.stdout == ""  # rank 0 alone talks
    assert open_run(folder / "many").provenance.sessions[0].ranks == 2
    again = as_ranks(folder / "again", 2, command(folder, "many"))  # nothing left to do
    assert [done.returncode for done in again] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_torchrun_as_a_user_types_it(folder: Path, ranks: int) -> None:
    one = alone(folder, "one")
    done = subprocess.run(
        torchrun(folder, ranks, "many"), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "one" / "summary.csv").read_bytes() == (folder / "many" / "summary.csv").read_bytes()
    assert losses(folder / "one") == losses(folder / "many")
    assert done.stdout.replace("/many", "/one") == one.stdout
    assert open_run(folder / "many").provenance.sessions[0].ranks == ranks


def test_a_cluster_s_own_rank_means_nothing(folder: Path) -> None:
    """Some schedulers set RANK and WORLD_SIZE for jobs that stand alone."""
    (done,) = in_processes(folder / "alone", command(folder, "out"), {"RANK": "3", "WORLD_SIZE": "8"})
    assert done.returncode == 0, done.stderr
    assert "8 cells in" in done.stdout


WRONG = [
    ("cpu", ["--protocol", "fullcontext"], "did you mean 'full-context'"),
    pytest.param(
        "cuda", [], "no CUDA device is visible",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("device", "words", "message"), WRONG)
def test_a_wrong_command_is_one_line_of_rank_0(
    folder: Path, device: str, words: list[str], message: str
) -> None:
    first, second = as_ranks(folder / "ranks", 2, command(folder, "out", *words, device=device))
    (line,) = first.stderr.splitlines()
    assert line.startswith("error:")
    assert message in line
    assert second.stderr == ""
    assert (first.returncode, second.returncode) == (2, 2)
    assert not (folder / "out").exists()


def test_the_budget_is_the_smallest_of_any_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of three: another rank found less memory, and its losses come after rank 0's own."""
    scored: list[tuple[int, tuple[int, int]]] = []

    class Fixed(ScoreRequest):
        def run(self, model: Any, budget: Budget, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
            scored.append((budget.tokens, share))
            yield [0], [np.zeros(1, dtype=np.float32)]

    others: list[Any] = [None, ([([1], [])], 16), ([([2], [])], 48)]
    monkeypatch.setattr(RankGroup, "_broadcast", lambda self, message: message)
    monkeypatch.setattr(RankGroup, "_gather", lambda self, error: others)
    budget = Budget(64)
    found = RankGroup(0, 3).score(SimpleNamespace(together=False), Fixed([], [], [], None, False), budget)  # type: ignore[arg-type]
    assert [members for members, _ in found] == [[0], [1], [2]]
    assert scored == [(64, (0, 3))]
    assert budget.tokens == 16


def test_a_document_travels_once_and_only_where_it_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(RankGroup, "_broadcast", lambda self, message: sent.append(message))
    monkeypatch.setattr(RankGroup, "_gather", lambda self, error: [None])
    documents = [np.arange(n, n + 9) for n in range(3)]
    received: list[ScoreRequest] = []
    first, other = RankGroup(0, 2), RankGroup(1, 2)
    monkeypatch.setattr(ScoreRequest, "run", lambda self, *_: received.append(self) or iter(()))  # type: ignore[func-returns-value]
    for scored in ([0], [0, 2], [2, 2, 0]):
        windows = [(index, Window(0, 8, 1)) for index in scored]
        request = ScoreRequest(documents, ["a", "b", "c"], windows, None, False)
        assert list(first.score(SimpleNamespace(together=False), request, Budget(64))) == []  # type: ignore[arg-type]
        other._score_share(SimpleNamespace(together=False), *sent[-1][1])  # type: ignore[arg-type]
        assert all(np.array_equal(received[-1].documents[i], documents[i]) for i in scored)
    assert [[len(ids) for ids in request.documents] for _, (request, _) in sent] == [
        [9, 0, 0],
        [0, 0, 9],
        [0, 0, 0],
    ]


def test_a_card_s_sticky_error_is_told_from_one_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passing = ValueError("this cell's own")
    assert device_lost(passing) is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert device_lost(passing) is None

    def fails() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore lines")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    lost = device_lost(passing)
    assert "an illegal memory access was encountered)" in str(lost)
    assert lost is not None
    assert device_lost(lost) is lost
    assert isinstance(RankGroup(1, 2)._attempt(fails)[1], DeviceLostError)


def test_a_lost_card_ends_the_run_and_not_the_cells(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kerple_eval.cli.main import cli  # noqa: PLC0415
    from kerple_eval.evaluation import worker  # noqa: PLC0415

    asked = []

    def third_is_lost(error: Exception) -> DeviceLostError | None:
        asked.append(error)
        return DeviceLostError("the card answers no more") if len(asked) == 3 else None

    monkeypatch.setattr(worker, "device_lost", third_is_lost)
    monkeypatch.setattr(ScoreRequest, "run", lambda *_: 1 / 0)
    with pytest.raises(SystemExit) as stopped:
        cli(command(folder, "lost"))
    assert stopped.value.code == 1
    assert "the card answers no more; finished cells are kept" in capsys.readouterr().err
    assert len(open_run(folder / "lost").summary()) == 2


GUEST = """
import sys, torch, torch.distributed as dist, kerple_eval
from pathlib import Path
model, text, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo")
rank = dist.get_rank()

def evaluate(name, **options):
    try:
        out = f"{folder}/{name}"
        run = kerple_eval.evaluate(model, text=text, lengths=[16, 48], out=out, device="cpu", **options)
        print(name, rank, len(run.summary()), flush=True)
    except BaseException as error:
        print(name, rank, type(error).__name__, str(error)[:28], flush=True)

def interrupt(progress):
    if progress.work_done:
        raise KeyboardInterrupt

def guess(ids):  # each token again
    return torch.nn.functional.one_hot(ids, 256).float()

evaluate("interrupted", on_progress=interrupt)
evaluate("refused", protocols="fullcontext")
evaluate("whole")
frame = kerple_eval.score(guess, list(range(40)) * 2, length=8)
print("in memory", rank, len(frame), round(frame["loss"].sum(), 2), flush=True)
total = torch.ones(1)
dist.all_reduce(total)
print("after", rank, int(total), flush=True)
dist.destroy_process_group()
"""


def test_a_script_s_own_process_group_is_joined_and_left(folder: Path) -> None:
    """It works after a run that was interrupted, one that was refused and one that went well."""
    (folder / "guest.py").write_text(GUEST)
    words = [str(folder / name) for name in ("rope", "text.txt", "out")]
    ranks = as_ranks(folder / "ranks", 2, words, folder / "guest.py")
    assert sorted(line for done in ranks for line in done.stdout.splitlines()) == [
        "after 0 2",
        "after 1 2",
        "in memory 0 79 438.6",
        "in memory 1 79 438.6",
        "interrupted 0 KeyboardInterrupt ",
        "interrupted 1 RankLostError another process of this run ",
        "refused 0 UserError unknown protocol 'fullcontex",
        "refused 1 UserError unknown protocol 'fullcontex",
        "whole 0 2",
        "whole 1 2",
    ], [done.stderr for done in ranks]
    assert [done.returncode for done in ranks] == [0, 0]
    single = kerple_eval.evaluate(
        folder / "rope", text=folder / "text.txt", lengths=[16, 48], device="cpu", out=folder / "alone"
    )
    assert losses(folder / "out" / "whole") == losses(single.folder)


def test_errors_travel_with_their_traceback() -> None:
    """As themselves where they can be pickled, by name and message where not; gloo is not asked."""

    class OwnError(Exception):  # no module can name it
        pass

    def fails(error: BaseException) -> None:
        raise error

    ranks = RankGroup(3, 4)
    for error, kind, line in (
        (UserError("no such thing"), UserError, "no such thing"),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError, "full"),
        (OwnError("odd"), RuntimeError, "OwnError: odd"),
        (SystemExit("a model's own code leaves"), SystemExit, "a model's own code leaves"),
    ):
        result, portable = ranks._attempt(partial(fails, error))
        assert result is None
        assert type(portable) is kind
        assert str(portable) == line
        (note,) = portable.__notes__
        assert note.startswith("on rank 3:\nTraceback")
        assert "in fails" in note


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_model_that_leaves_the_program_is_a_failed_cell(folder: Path, rank: str) -> None:
    """On whichever rank: the others do not wait for it."""
    (folder / "own.py").write_text(
        "import os, sys, torch\n"
        "def model():\n"
        "    table = torch.nn.Embedding(256, 256)\n"
        "    def forward(ids):\n"
        f"        if ids.shape[1] == 32 and os.environ['RANK'] == '{rank}':\n"
        "            sys.exit('no')\n"
        "        return table(ids)\n"
        "    return forward, 'bytes'\n"
    )
    words = torchrun(folder, 2, "out")
    words[words.index(str(folder / "kerple-log"))] = f"own=python:{folder}/own.py:model"
    words.remove(str(folder / "rope"))
    words[words.index("16,48")] = "16,32,48"
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    summary = open_run(folder / "out").summary()
    failed = summary[summary.status == "failed"]
    assert set(failed.length) == {32}
    assert set(summary.length) == {16, 32, 48}
    assert failed.error.str.contains("SystemExit: no").all()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_no_finished_cell(folder: Path, rank: int) -> None:
    (folder / "text.txt").write_text("A line of text, and a longer one after it. " * 1500)
    alone(folder, "whole")
    began = subprocess.Popen(
        torchrun(folder, 2, "killed"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((folder / "killed").glob("cells/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            facts = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            f"RANK={rank}".encode() in facts
            and str(folder).encode() in (entry.parent / "cmdline").read_bytes()
        ):
            os.kill(int(entry.parent.name), signal.SIGKILL)
    _, errors = began.communicate(timeout=120)
    assert began.returncode != 0
    assert "kerple_eval/" not in errors  # no traceback of this package; torchrun's own stays
    # The other rank's line, unless torchrun ended it first.
    assert errors.count("finished cells are kept, the same command continues") <= 1
    for done in as_ranks(folder / "again", 2, command(folder, "killed")):
        assert done.returncode == 0, done.stderr
    assert (folder / "killed" / "summary.csv").read_bytes() == (folder / "whole" / "summary.csv").read_bytes()
