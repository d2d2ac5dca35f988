"""Architectures of transformers through every door: ``hf:``, in memory, ``score``; against a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kerple_eval
from kerple_eval.types import UserError
from tests.helpers import architectures
from tests.helpers.architectures import NAMES, NO_TINY, V

LENGTH = 24
#: Architectures that are no causal models as they are built here, or that take no text alone: refused.
REFUSED = {
    "cpmant": "sees tokens after the one it predicts from",
    "xlm": "sees tokens after the one it predicts from",
    "xlnet": "sees tokens after the one it predicts from",
    "emu3": "no causal language model of type emu3_text_model",
    "mllama": "no causal language model of type mllama_text_model",
}
FAST = ("olmo2", "falcon_h1", "gpt_neo")


def documents() -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(3, V, size=60).tolist() for _ in range(2)]


def plain_losses(model: Any) -> list[float]:
    """Losses of windows of LENGTH tokens, one call of the model each, in float64 from the logits on."""
    losses: list[float] = []
    for tokens in documents():
        for start in range(0, len(tokens) - 1, LENGTH):
            window = torch.tensor([tokens[start : start + LENGTH + 1]])
            with torch.no_grad():
                logits = model(input_ids=window[:, :-1], use_cache=False).logits[0].double()
            chosen = logits.log_softmax(-1).gather(1, window[0, 1:, None])
            losses += (-chosen[:, 0]).tolist()
    return losses


def check(name: str, folder: Path) -> None:
    model = architectures.model(architectures.config(name), noise=0.1)
    model.save_pretrained(folder)
    expected = plain_losses(model)
    model.train()
    frame = kerple_eval.score(model, documents(), length=LENGTH)
    np.testing.assert_allclose(frame["loss"], expected, rtol=0, atol=2e-5, err_msg="in memory")
    assert all(part.training for part in model.modules())
    run = kerple_eval.evaluate([f"m=hf:{folder}"], tokens=documents(), lengths=[LENGTH])
    assert run.summary()["status"].tolist() == ["ok"], run.summary()["error"].tolist()
    np.testing.assert_allclose(run.losses()["loss"], expected, rtol=0, atol=2e-5, err_msg="hf:")


@pytest.mark.parametrize("name", FAST)
def test_losses_are_those_of_a_plain_loop(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*NO_TINY, *FAST)])
def test_every_architecture(name: str, tmp_path: Path) -> None:
    if name not in REFUSED:
        check(name, tmp_path)
        return
    with pytest.raises(UserError, match=REFUSED[name]):
        check(name, tmp_path)
