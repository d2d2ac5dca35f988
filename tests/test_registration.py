"""Schemes, protocols, formats, tasks and reports of one's own, added at run time and used by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import kerple_eval
from kerple_eval.data.task import TASKS
from kerple_eval.models.catalogue import CHECKPOINT_FORMATS
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.protocols.base import Protocol
from kerple_eval.protocols.catalogue import PROTOCOLS
from kerple_eval.reports.catalogue import REPORTS
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.types import UserError, Window
from tests.helpers.command import Cli, make_model


class Steep(Scheme):
    """-D times one more than the head's number."""

    def kernel(self, distance: torch.Tensor) -> torch.Tensor:
        heads = torch.arange(1, self.geometry.heads + 1, device=distance.device, dtype=distance.dtype)
        return -distance * heads[:, None]


class FirstHalf(Protocol):
    """The targets of a document's first window, whatever follows."""

    def __init__(self, *, skip: int = 0) -> None:
        self.skip = skip

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        return [Window(0, min(length, n - 1), 1 + self.skip)]


class Renamed(NativeCheckpoint):
    """A native checkpoint under another name."""

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False


def count_cells(folders: Sequence[str], style: str = "text") -> str:
    return f"{sum(len(list(kerple_eval.open_run(folder).cells())) for folder in folders)} cells\n"


TASK = """
name: my-own-text
version: 1
description: a file beside this one
licence: none
source:
  kind: files
  path: .
  files: "*.txt"
split:
  test: 1.0
"""


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[None]:
    """All five, and taken out again."""
    (tmp_path / "my-own-text.yaml").write_text(TASK)
    (tmp_path / "a.txt").write_text("A line of text, and a longer one after it. " * 4)
    kerple_eval.register_scheme("steep", Steep, parameters="0", prefix_invariant=True, kind="distance kernel")
    kerple_eval.register_protocol("first-half", FirstHalf, "skip=N: the first window")
    kerple_eval.register_format("renamed", Renamed, "renamed:DIR")
    kerple_eval.register_task(tmp_path / "my-own-text.yaml")
    kerple_eval.register_report("count", count_cells, "how many cells", output="text")
    yield
    for family, name in (
        (SCHEMES, "steep"), (PROTOCOLS, "first-half"), (CHECKPOINT_FORMATS, "renamed"),
        (TASKS, "my-own-text"), (REPORTS, "count"),
    ):  # fmt: skip
        family.unregister(name)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("registered")
def test_each_is_used_by_its_name(tmp_path: Path, invoke: Cli) -> None:
    folder = make_model(tmp_path / "model", "steep")
    run = kerple_eval.evaluate(
        f"mine=renamed:{folder}", tasks="my-own-text", protocols="first-half:skip=2", lengths=[16],
        out=tmp_path / "run",
    )  # fmt: skip
    (row,) = run.summary().to_dict("records")
    assert (row["scheme"], row["task"], row["protocol"]) == ("steep", "my-own-text", "first-half:skip=2")
    assert (row["targets"], row["status"]) == (14, "ok")
    assert REPORTS.load("count")([run.folder]) == "1 cells\n"
    for what, name in (
        ("schemes", "steep"), ("protocols", "first-half"), ("formats", "renamed"), ("tasks", "my-own-text"),
        ("reports", "count"),
    ):  # fmt: skip
        assert any(line.split()[0] == name for line in invoke("list", what).stdout.splitlines()), what


class SameConvolution(Scheme):
    """Mixes each embedding with its neighbours, the next one too: a mistake that is soon made."""

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
        return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


class ByLength(Scheme):
    """Scales by the window's length, and says nothing of it."""

    def embed(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return x * (1 + torch.arange(x.shape[-1]) * len(positions))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (SameConvolution, "scheme own: it sees tokens after the one it predicts from"),
        (ByLength, "scheme own: its logits change with the number of tokens that follow"),
    ],
)
def test_a_scheme_that_sees_what_follows_is_refused(
    scheme: type[Scheme], message: str, tmp_path: Path
) -> None:
    """Before its training and where it is loaded: such a model predicts random letters without loss."""
    kerple_eval.register_scheme("own", scheme, parameters="0", prefix_invariant=True)
    text = tmp_path / "a.txt"
    text.write_text("A line of text, and a longer one after it. " * 20)
    try:
        with pytest.raises(UserError, match=message):
            kerple_eval.train(
                tmp_path / "new", scheme="own", text=text, length=16, steps=2, layers=1, width=16, heads=2
            )
        folder = make_model(tmp_path / "model", "own")
        run = kerple_eval.evaluate(str(folder), text=text, lengths=[16], out=tmp_path / "run")
        (row,) = run.summary().to_dict("records")
        assert row["status"] == "failed"
        assert message in row["error"]
    finally:
        SCHEMES.unregister("own")


@pytest.mark.usefixtures("registered")
def test_a_name_that_exists_is_refused(tmp_path: Path) -> None:
    again: list[Any] = [
        lambda: kerple_eval.register_scheme("alibi", Steep, parameters="0", prefix_invariant=True),
        lambda: kerple_eval.register_scheme("steep", Steep, parameters="0", prefix_invariant=True),
        lambda: kerple_eval.register_protocol("aligned", FirstHalf),
        lambda: kerple_eval.register_format("hf", Renamed),
        lambda: kerple_eval.register_task(tmp_path / "my-own-text.yaml"),
        lambda: kerple_eval.register_report("table", count_cells),
    ]
    for register in again:
        with pytest.raises(UserError, match="exists already"):
            register()


def test_a_task_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match=r"none\.yaml"):
        kerple_eval.register_task(tmp_path / "none.yaml")
