"""bfloat16 on a CPU: said where it gains, and never chosen.

What the CPU can is told by torch's own tests of it, which are replaced here. That losses of bfloat16 logits
are computed in float32 stands in ``tests/models/decoder/test_half_precision.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kerple_eval.models.devices import BFLOAT16_TESTS
from tests.helpers.command import Cli, rows

NONE = "no instructions for it: slower than float32, and mean losses move by up to 0.006 nats"
AMX = "by AMX: some 2 x as fast, and mean losses move by up to 0.006 nats"
BOTH = AMX.replace("AMX", "AMX and avx512_bf16")


@pytest.fixture(params=[(), ("AMX",), ("AMX", "avx512_bf16")], ids=["none", "amx", "both"])
def found(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The instructions of the CPU at hand."""
    for name, test in BFLOAT16_TESTS.items():
        monkeypatch.setattr(torch.cpu, test, lambda there=name in request.param: there)
    there: tuple[str, ...] = request.param
    return there


def test_it_is_said_and_not_chosen(
    found: tuple[str, ...], models: dict[str, str], text: str, tmp_path: Path, invoke: Cli
) -> None:
    said = {(): NONE, ("AMX",): AMX}.get(found, BOTH)
    inspected = invoke("inspect", models["rope"]).stdout
    assert [line for line in inspected.splitlines() if line == f"bfloat16 on the CPU      {said}"]

    words = ["run", models["rope"], "--text", text, "--length", "8", "--device", "cpu"]
    line = f"--dtype bfloat16 on this CPU: {said}\n"
    asked = [*words, "--out", str(tmp_path / "auto")]
    assert (line in invoke(*asked, "--dry-run").stdout) == bool(found)  # it is taken, or would gain nothing
    assert invoke(*asked).exit_code == 0
    assert rows(tmp_path / "auto")[0]["dtype"] == "float32"
    narrow = [*words, "--dtype", "bfloat16", "--out", str(tmp_path / "narrow")]
    assert (line in invoke(*narrow, "--dry-run").stdout) == (not found)
