"""Devices and precisions: chosen openly, whatever torch still has."""

from __future__ import annotations

import pytest
import torch

from kerple_eval.models.devices import precision_for

CPU = torch.device("cpu")


def test_auto_precision_is_bfloat16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests for it are private to torch; where they are gone it is float32, without an error."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for answers in ((False, False), (True, False), (False, True)):
        for test, answer in zip(tests, answers, strict=True):
            monkeypatch.setattr(torch.cpu, test, lambda answer=answer: answer)
        assert precision_for("auto", CPU) == ("bfloat16" if any(answers) else "float32")
    for test in tests:
        monkeypatch.delattr(torch.cpu, test)
    assert precision_for("auto", CPU) == "float32"
    assert precision_for("bfloat16", CPU) == "bfloat16"
