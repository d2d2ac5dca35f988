"""What a run of 2,000 cells does outside its forward passes: plans, reuses, records, resumes, reports.

The run is the zoo's in its texts (8 addresses of 16,385 bytes), with 5 protocols at 20 lengths. Its forward
passes give made-up losses at once, and whatever they take is left out, so that what remains is the run's
own work in full. Forward passes are timed in a real run of one document and scaled by tokens alone, which
leaves out that attention takes more a token at greater lengths: the true share is smaller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from click.testing import CliRunner
from torch import Tensor

from kerple_eval.cli.main import cli
from kerple_eval.models.scoring import _Passes
from tests.benchmarks.harness import Row, clock

SCHEMES = ("kerple-log", "alibi", "rope", "t5")
MODELS, FEW, DOCUMENTS = 20, 2, 8  # a model has 100 cells
LENGTHS = [512 * i for i in range(1, 21)]
PROTOCOLS = ["full-context", "last:k=128", "aligned:k=128", "sliding-window:stride=512", "prefix"]
NAMES = {
    "run": "run without its forward passes",
    "resume": "the same command again",
    "table": "table",
    "report": "report",
}
TEXT = ["--task", "sotu", "--max-tokens", "16385"]


@dataclass
class Passes:
    """Seconds inside forward passes, and the input tokens of the windows."""

    seconds: float = 0.0
    tokens: int = 0
    noise: Tensor = field(default_factory=lambda: torch.rand(1 << 20, generator=torch.Generator()) + 0.5)


@contextmanager
def passes(*, real: bool) -> Iterator[Passes]:
    """Forward passes timed; without ``real`` their losses are noise."""
    told = Passes()
    true: Callable[..., Tensor] = _Passes._losses

    def losses(self: Any, members: list[int]) -> Tensor:
        began = clock()
        rows = self.windows[members[0]][1].targets
        shape = (len(members), rows)
        found = true(self, members) if real else told.noise[: len(members) * rows].reshape(shape).clone()
        told.tokens += sum(self.windows[index][1].inputs for index in members)
        told.seconds += clock() - began
        return found

    with mock.patch.object(_Passes, "_losses", losses):
        yield told


def command(*words: str) -> float:
    """Seconds of a command in this process."""
    began = clock()
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return clock() - began


def run_words(models: int, documents: int, lengths: list[int], protocols: list[str]) -> list[str]:
    named = [f"m{i}=zoo:{SCHEMES[i % len(SCHEMES)]}" for i in range(models)]
    asked = [word for protocol in protocols for word in ("--protocol", protocol)]
    words = ["--documents", str(documents), "--length", ",".join(map(str, lengths)), *asked]
    return ["run", *named, *TEXT, *words]


def own_seconds(models: int, folder: Path) -> Iterator[tuple[str, float, int]]:
    """Of each step: its name, seconds a cell outside forward passes, input tokens of the passes so far."""
    words = [*run_words(models, DOCUMENTS, LENGTHS, PROTOCOLS), "--out", str(folder)]
    cells = models * len(LENGTHS) * len(PROTOCOLS)
    with passes(real=False) as told:
        seconds = command(*words)
        tokens = told.tokens
        yield "run", (seconds - told.seconds) / cells, tokens
        yield "resume", command(*words) / cells, tokens
    assert told.tokens == tokens, "a finished run was computed again"
    assert len((folder / "summary.csv").read_text().splitlines()) == cells + 1
    for name in ("table", "report"):
        yield name, command(name, str(folder)) / cells, tokens


def token_seconds(folder: Path) -> float:
    """Of one input token in a real forward pass at 512, the mean over the four schemes."""
    with passes(real=True) as told:
        command(*run_words(len(SCHEMES), 1, [512], ["full-context"]), "--out", str(folder))
    return told.seconds / told.tokens


def upkeep_rows() -> Iterator[Row]:
    cells = MODELS * len(LENGTHS) * len(PROTOCOLS)
    with tempfile.TemporaryDirectory() as scratch:
        a_token = token_seconds(Path(scratch) / "real")
        few = {name: seconds for name, seconds, _ in own_seconds(FEW, Path(scratch) / "few")}
        for name, seconds, tokens in own_seconds(MODELS, Path(scratch) / "many"):
            if name == "run":
                forward, own = tokens * a_token, seconds * cells
                yield Row(
                    f"run of {cells:,} cells at zoo size: time outside forward passes",
                    "all of its time",
                    own / (own + forward),
                    at_most=0.05,
                    note=f"{own:.0f} s; {tokens:,} tokens take {forward:.0f} s at the speed at 512",
                )
            yield Row(
                f"{NAMES[name]}, {cells:,} cells: time a cell",
                f"{cells * FEW // MODELS} cells",
                seconds / few[name],
                at_most=1.2,
                note=f"{1000 * seconds:.1f} ms a cell",
            )
