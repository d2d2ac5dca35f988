"""``kerple-eval demo``, made small: a table, two figures and a page from models that the package ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerple_eval.cli import demo
from tests.helpers.command import Cli, rows


def test_demo(invoke: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_PROTOCOLS", ("sliding-window:stride=512@512",))
    monkeypatch.setattr(demo, "DOCUMENTS", 1)
    monkeypatch.setattr(demo, "first_seeds", lambda: ["alibi", "nope"])
    out = tmp_path / "demo"
    done = invoke("demo", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 decoders trained at 512 bytes")
    found = rows(out)
    assert [(row["model"], row["status"]) for row in found] == [("alibi", "ok"), ("nope", "ok")]
    for kind in ("curve", "position"):
        assert f"figure: {out / kind}.png" in done.stdout
        assert (out / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    (page,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("report: ")]
    assert "alibi" in Path(page).read_text()
