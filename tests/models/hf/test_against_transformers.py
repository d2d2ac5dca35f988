"""Losses against transformers' own loading of the same files: merged experts, and many architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import CPU, transformers

FAST = ("mixtral", "gemma2", "mamba")  # merged experts, two kinds of layers, no attention


def check(place: Path) -> None:
    own = transformers.AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.float32).eval()
    window = Window(0, 30, 1)
    found = folders.scored(place, [window])[0]
    for document, row in zip(folders.documents(), found, strict=True):
        np.testing.assert_allclose(row, folders.expected(own, document, window), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAST)
def test_a_few(name: str, tmp_path: Path) -> None:
    check(folders.save(tmp_path, folders.model(name)))


def built(config_class: Any) -> Any:
    """A tiny model of that class; None where such sizes make none."""
    try:
        config = config_class(**folders.sized(head_dim=8))
        text = config.get_text_config(decoder=True)
        if max(text.hidden_size, text.num_hidden_layers * 16) > 64:
            return None
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config)
        return folders.model(config) if sum(p.numel() for p in empty.parameters()) < 2_000_000 else None
    except Exception:  # constructors raise what such sizes lead them to
        return None


@pytest.mark.slow
def test_every_architecture_that_such_sizes_make(tmp_path: Path) -> None:
    """Equal losses, or one line that says why not; no architecture ends in a traceback."""
    equal, refused = [], {}
    for number, config_class in enumerate(transformers.AutoModelForCausalLM._model_mapping):
        made = built(config_class)
        if made is None:
            continue
        place = folders.save(tmp_path / str(number), made)
        try:
            HfCheckpoint.open(str(place), {}).load(CPU, torch.float32)
        except UserError as error:
            assert "\n" not in str(error)
            refused[config_class.__name__] = str(error)
            continue
        check(place)
        equal.append(config_class.__name__)
    assert len(equal) > 60, (len(equal), refused)
