"""A benchmark that is killed keeps its rows, and the one for a card is planned without one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import cuda_rows, parts, split_tf32
from tests.benchmarks.__main__ import main
from tests.benchmarks.harness import Row


def rows(*names: str, low: float | None = None) -> tuple[Row, ...]:
    return tuple(Row(name, "-", None, at_least=low) for name in names)


def made(folder: Path, deed: str = "", checked: float = 2.0) -> parts.Kept:
    """Three parts, of which the second kills its process after its first row."""

    def second() -> Iterator[parts.Found]:
        yield 1.5, "first"
        if deed == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        yield 2.5, "second"

    every = {
        "checks": parts.Part("", 1, rows("right", low=1), lambda: iter([(checked, "")]), check=True),
        "second": parts.Part("", 1, rows("a", "b", low=1), second),
        "third": parts.Part("", 1, rows("c"), lambda: iter([(3.5, "third")])),
    }
    return parts.Kept(folder, "card", "# a card", every)


def test_a_killed_run_keeps_its_rows_and_goes_on(tmp_path: Path) -> None:
    if not (child := os.fork()):
        parts.run(made(tmp_path, "killed"), ["checks", "second", "third"], lambda line: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    page = (tmp_path / "card.md").read_text()
    assert "| a | - | >= 1 | 1.50 | yes | first |" in page
    assert page.count("unmeasured") == 2
    with (tmp_path / "card.jsonl").open("a") as file:
        file.write('{"head": "# a ca')  # killed while it wrote a line
    told: list[str] = []
    assert parts.run(made(tmp_path), ["checks", "second", "third"], told.append)
    assert [line.split()[0] for line in told] == ["a", "b", "second:", "c", "third:"]  # the checks are there
    assert "unmeasured" not in (tmp_path / "card.md").read_text()
    assert parts.run(made(tmp_path), ["third"], told.append)
    assert "| a |" in (tmp_path / "card.md").read_text()  # rows of other parts stay in the table
    with pytest.raises(SystemExit, match="of another machine or torch"):
        parts.Kept(tmp_path, "card", "# another card", {})


def test_nothing_is_timed_where_a_check_is_not_met(tmp_path: Path) -> None:
    told: list[str] = []
    assert not parts.run(made(tmp_path, checked=0.5), ["checks", "second"], told.append)
    assert told[-1] == "checks: not met, so nothing is timed"
    assert (tmp_path / "card.md").read_text().count("unmeasured") == 3


def test_a_dry_run_needs_no_card_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = ["--cuda", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*out, "--dry-run"])
    assert done.exit_code == 0, done.output
    for name, part in cuda_rows.PARTS.items():
        assert f"{name}: {part.about}; at most {part.seconds} s; 0 of {len(part.rows)} rows" in done.output
        assert part.seconds < 600
        assert all(f"    {row.work} | {row.against} | " in done.output for row in part.rows)
    assert not (tmp_path / "out").exists()
    one = CliRunner().invoke(main, [*out, "--dry-run", "--part", "memory"])
    assert [line.partition(":")[0] for line in one.output.splitlines() if line[0] != " "] == [
        "checks",
        "memory",
    ]
    refused = CliRunner().invoke(main, out)
    assert refused.exit_code == 1
    assert "no CUDA device here; --dry-run says what would be done" in refused.output
    assert "goes with --cuda" in CliRunner().invoke(main, ["--part", "memory"]).output


def test_rows_are_named_once() -> None:
    names = [(row.work, row.against) for part in cuda_rows.PARTS.values() for row in part.rows]
    assert len(set(names)) == len(names)


def test_split_tf32_is_nearly_float32() -> None:
    """Products of two factors: what is left out is at most three times 2^-22 of them."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, 1, 1, generator=generator).unbind(0)
    exact = (a.double() * b.double()).flatten().numpy()
    for split, least, most in ((True, 0.0, 3 * 2.0**-22), (False, 2.0**-13, 2.0**-10)):
        with split_tf32.TensorCores(split=split):
            found = torch.bmm(a, b).double().flatten().numpy()
        assert least <= np.abs(found / exact - 1).max() <= most


def test_the_checks_of_a_card_are_met_by_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_rows, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(cuda_rows, "BACKENDS", ("sdpa", "eager"))
    sizes = {"vocab_size": 97, "layers": 2, "width": 64, "heads": 2, "mlp_width": 64}
    monkeypatch.setattr(cuda_rows, "CONFIG", replace(cuda_rows.CONFIG, **sizes))
    for drawn in (cuda_rows._drawn, cuda_rows.tokens):
        drawn.cache_clear()
    found = [error for error, _ in cuda_rows._checks()]
    assert len(found) == 4
    assert all(0 < error <= limit for error, limit in zip(found, (1e-5, 1e-5, 0.2, 0.2), strict=True))
    for drawn in (cuda_rows._drawn, cuda_rows.tokens):
        drawn.cache_clear()


def test_a_cpu_part_is_in_the_table_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "cpu.md"

    def fails() -> list[Row]:
        assert "| a | - | - | 1.00 | - |  |" in page.read_text()
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(benchmarks, "PARTS", {"first": lambda: [Row("a", "-", 1.0)], "second": fails})
    done = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert str(done.exception) == "the machine went away"
    assert "unmeasured" in page.read_text()
