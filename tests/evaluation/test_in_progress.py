"""A cell that ends every process that computes it is recorded as failed; one kill changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kerple_eval
from kerple_eval.evaluation import in_progress
from kerple_eval.evaluation.in_progress import FILE, Deaths, KillCount, kill_count
from kerple_eval.evaluation.pulse import RankLostError
from kerple_eval.models.devices import DeviceLostError
from kerple_eval.types import CellKey, UserError
from tests.helpers.victim import killed_at

KEY, OTHER = CellKey("m", "text", "full-context", 16), CellKey("m", "text", "full-context", 32)


def die(folder: Path, key: CellKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends while it computes a cell: the file stays."""
    with monkeypatch.context() as patched, Deaths(folder).computing(key):
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        left = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(left)


def test_only_two_deaths_in_a_row_in_one_cell_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_progress, "kill_count", lambda: None)
    assert Deaths(tmp_path).reason() is None
    twice = "two processes in a row ended while they computed this cell"
    deaths = [(KEY, None), (OTHER, None), (KEY, None), (KEY, twice), (KEY, twice), (OTHER, None)]
    for key, expected in deaths:
        die(tmp_path, key, monkeypatch)
        assert Deaths(tmp_path).reason() == expected
    with Deaths(tmp_path).computing(OTHER):
        assert (tmp_path / FILE).exists()
    assert not (tmp_path / FILE).exists()
    with pytest.raises(KeyboardInterrupt), Deaths(tmp_path).computing(OTHER):
        raise KeyboardInterrupt
    assert Deaths(tmp_path).left is None


def test_cells_that_end_before_do_not_hide_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that fails each time is tried again before the one that kills; both deaths count."""
    monkeypatch.setattr(in_progress, "kill_count", lambda: None)
    for expected in (None, "two processes in a row ended while they computed this cell"):
        deaths = Deaths(tmp_path)
        assert deaths.reason() is None
        with deaths.computing(OTHER):  # ends, failed or not
            pass
        with pytest.raises(KeyboardInterrupt), deaths.computing(OTHER):
            raise KeyboardInterrupt
        with monkeypatch.context() as patched, deaths.computing(KEY):
            patched.setattr(Path, "unlink", lambda *_, **__: None)
            left = (tmp_path / FILE).read_bytes()
        (tmp_path / FILE).write_bytes(left)
        assert Deaths(tmp_path).reason() == expected
    assert Deaths(tmp_path).left is not None


def test_the_kernels_count_of_out_of_memory_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = KillCount("group", 3)
    monkeypatch.setattr(in_progress, "kill_count", lambda: count)
    die(tmp_path, KEY, monkeypatch)
    later = [(count, False), (KillCount("another", 9), False), (None, False), (KillCount("group", 4), True)]
    for now, counts in later:
        monkeypatch.setattr(in_progress, "kill_count", lambda now=now: now)
        assert (Deaths(tmp_path).reason() is not None) == counts
    assert "out-of-memory killer" in str(Deaths(tmp_path).reason())


def test_the_count_is_read_of_this_processs_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    events = tmp_path / "a.slice" / "b" / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("low 0\nhigh 0\nmax 12\noom 4\noom_kill 2\n")
    own.write_text("0::/a.slice/b\n")
    monkeypatch.setattr(in_progress, "CGROUPS", tmp_path)
    monkeypatch.setattr(in_progress, "OWN_CGROUP", own)
    first = kill_count()
    assert first is not None and first.kills == 2
    events.write_text("oom_kill 3\n")
    second = kill_count()
    assert second is not None and (second.group, second.kills) == (first.group, 3)
    for text in ("", "oom_kill many\n", "oom 3\n"):
        events.write_text(text)
        assert kill_count() is None
    own.write_text("1:memory:/a\n")
    assert kill_count() is None


def test_a_file_that_is_not_ours(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"cell": 3, "deaths": 0}', '{"cell": {}, "deaths": 0}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match=rf"{FILE}.*; delete the file"):
            Deaths(tmp_path)


@pytest.mark.parametrize("error", [RankLostError(), DeviceLostError("the card answers no more")])
def test_a_lost_rank_or_card_is_a_death(tmp_path: Path, error: Exception) -> None:
    """The kernel may kill another rank, whose loss this process survives to report."""
    key = CellKey("m", "t", "full-context", 16)
    for deaths in (0, 1):
        with pytest.raises(type(error)), Deaths(tmp_path).computing(key):
            raise error
        left = Deaths(tmp_path).left
        assert left is not None and (left.cell, left.deaths) == (key, deaths)
    assert Deaths(tmp_path).reason() == "two processes in a row ended while they computed this cell"
    for other in (KeyboardInterrupt(), UserError("a full disk"), ValueError()):
        with pytest.raises(type(other)), Deaths(tmp_path).computing(key):
            raise other
        assert not (tmp_path / FILE).exists()


def test_killed_twice_in_one_cell_then_tried_again(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third file of a run is in_progress.json: killed right after it, twice, in the first cell."""
    arguments: dict[str, Any] = {"models": models["alibi"], "text": text, "lengths": [16, 32]}
    whole = kerple_eval.evaluate(**arguments, out=tmp_path / "whole")
    out = tmp_path / "run"
    assert killed_at(arguments | {"out": out}, 3, "after")
    assert killed_at(arguments | {"out": out}, 3, "after")
    run = kerple_eval.evaluate(**arguments, out=out)
    assert run.summary()["status"].tolist() == ["failed", "ok"]
    error = run.summary()["error"][0]
    assert error == (
        "killed: two processes in a row ended while they computed this cell; --retry tries again"
    )
    assert not (out / FILE).exists()
    assert kerple_eval.evaluate(**arguments, out=out).summary()["error"][0] == error  # not tried again
    kerple_eval.evaluate(**arguments, out=out, retry=True)
    assert (out / "summary.csv").read_bytes() == (whole.folder / "summary.csv").read_bytes()
