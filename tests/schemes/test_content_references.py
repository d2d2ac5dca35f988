"""PaTH, FoX and CoPE beside the reference libraries' own forms."""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.attention import attention
from tests.helpers.one_layer import DIM, HEADS, KEYS, drawn, made


def fla_naive(kind: str) -> Any:
    """A reference form of flash-linear-attention, from its file: the package itself imports Triton."""
    found = find_spec("fla")
    if found is None or not found.submodule_search_locations:
        pytest.skip("flash-linear-attention (fla-core) is not installed")
    place = Path(found.submodule_search_locations[0]) / "ops" / kind / "naive.py"
    spec = spec_from_file_location(f"fla_{kind}", place)
    assert spec is not None
    assert spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, f"naive_{kind}")


def test_path_is_fla_s_naive_form() -> None:
    naive = fla_naive("path_attn")
    scheme = made("path", units=5)
    q, k, v, x = (torch.from_numpy(part)[None] for part in drawn(KEYS))
    with torch.no_grad():
        steps = scheme.observe(x)
        found = attention(q, k, v, scheme, None, steps)
        theirs = naive(
            *(z.transpose(1, 2) for z in (q, k, v, steps.w)), steps.beta.transpose(1, 2),
            torch.zeros(1, KEYS, HEADS), DIM**-0.5, chunk_size=8,
        )  # fmt: skip
    np.testing.assert_allclose(found.numpy(), theirs.transpose(1, 2).numpy(), rtol=0, atol=2e-5)


def test_fox_is_fla_s_naive_form() -> None:
    naive = fla_naive("forgetting_attn")
    scheme = made("fox")
    q, k, v, x = (torch.from_numpy(part)[None] for part in drawn(KEYS))
    with torch.no_grad():
        observed = scheme.observe(x)
        found = attention(q, k, v, scheme, None, observed)
        gates = observed.diff(dim=-1, prepend=torch.zeros(1, HEADS, 1))
        theirs = naive(*(z.transpose(1, 2) for z in (q, k, v)), gates.transpose(1, 2))
    np.testing.assert_allclose(found.numpy(), theirs.transpose(1, 2).numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("positions", [64, 4])
def test_cope_is_x_transformers_form(positions: int) -> None:
    """Theirs adds q e to the scaled scores as it is; the query here is scaled, as in the paper's release."""
    reason = "x-transformers is not installed"
    theirs = pytest.importorskip("x_transformers.x_transformers", reason=reason)
    scheme = made("cope", positions=positions)
    table = scheme.get_parameter("table")
    cope = theirs.CoPE(DIM, HEADS, positions).double()
    q, k, v, _ = (torch.from_numpy(part)[None] for part in drawn(KEYS))
    with torch.no_grad():
        cope.pos_emb.copy_(table.T)
        future = torch.ones(KEYS, KEYS).triu(1).bool()
        logits = (q @ k.transpose(-1, -2) / DIM**0.5).masked_fill(future, -torch.inf)
        expected = (logits + cope(q / DIM**0.5, logits)).softmax(-1) @ v
        found = attention(q, k, v, scheme, None)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-12)
