"""``--attention`` of transformers models: their own implementation of that name, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint, set_attention
from kerple_eval.models.hf.opened import Opened
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import hf_folders as folders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("llama"), folders.model("llama"))


def losses(folder: Path, attention: str) -> tuple[str, np.ndarray]:
    checkpoint = HfCheckpoint.open(str(folder), {})
    checkpoint.set_attention(attention, CPU, torch.float32)
    model = checkpoint.load(CPU, torch.float32)
    assert attention == "auto" or checkpoint.description.details["attention"] == attention
    ((_, (row,)),) = score(model, [folders.documents()[0]], [(0, Window(0, 40, 1))])
    return model.attention, row


def test_each_way_is_used_and_gives_the_losses(llama: Path) -> None:
    found = {attention: losses(llama, attention) for attention in ("auto", "sdpa", "eager")}
    assert [used for used, _ in found.values()] == ["sdpa", "sdpa", "eager"]
    for _, row in found.values():
        np.testing.assert_allclose(row, found["eager"][1], rtol=0, atol=1e-5)


def test_flex_needs_cuda(llama: Path) -> None:
    with pytest.raises(UserError, match="attention flex: is compiled for CUDA, the device is cpu"):
        losses(llama, "flex")


def test_what_a_model_cannot_do_is_refused(llama: Path) -> None:
    made = Opened(str(llama), {}).empty
    with pytest.raises(UserError, match=r"model\.safetensors: attention nonsense: "):
        set_attention(made, "nonsense", "model.safetensors")
