"""PaTH, FoX, Wall and CoPE beside the reference libraries' own forms."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder.attention import attention
from tests.helpers.one_layer import DIM, HEADS, KEYS, drawn, made

FLA = find_spec("fla")


def fla_naive(kind: str) -> Any:
    """A reference form of flash-linear-attention, from its file: the package itself imports Triton."""
    if FLA is None or not FLA.submodule_search_locations:
        pytest.skip("flash-linear-attention (fla-core) is not installed")
    place = Path(FLA.submodule_search_locations[0]) / "ops" / kind / "naive.py"
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


def test_wall_is_fla_s_naive_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two helpers, a constant and a cumulative sum, are stated here: their modules import Triton."""
    constant, cumsum = ModuleType("fla.ops.utils.constant"), ModuleType("fla.ops.utils.cumsum")
    vars(constant)["RCP_LN2"] = 1 / math.log(2)
    vars(cumsum)["chunk_global_cumsum"] = lambda g, cu_seqlens, scale: g.cumsum(1) * scale
    for module in (*map(ModuleType, ("fla", "fla.ops", "fla.ops.utils")), constant, cumsum):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    naive = fla_naive("wall_attn")
    scheme = made("wall")
    for length, queries in ((KEYS, KEYS), (KEYS, 5), (KEYS, 1)):
        q, k, v, x = (torch.from_numpy(part)[None] for part in drawn(length))
        with torch.no_grad():
            observed = scheme.observe(x)
            found = attention(q[:, :, -queries:], k, v, scheme, None, observed)
            gates = observed.diff(dim=2, prepend=torch.zeros(1, HEADS, 1, DIM))
            assert float(gates.max()) < 0
            theirs = naive(*(z.transpose(1, 2) for z in (q, k, v, gates)), scale=DIM**-0.5)
        np.testing.assert_allclose(
            found.numpy(), theirs.transpose(1, 2)[:, :, -queries:].numpy(), rtol=0, atol=2e-5
        )


def test_wall_does_not_overflow_where_it_forgets_fast() -> None:
    """Decays of e^-1000 over a window, in float32: each score is finite, and float64's."""
    scheme = made("wall").float()
    with torch.no_grad():
        scheme.get_parameter("gate.bias").fill_(-20.0)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, 300, DIM, generator=generator) for _ in range(3))
    x = torch.randn(1, 300, HEADS * DIM, generator=generator)
    with torch.no_grad():
        observed = scheme.observe(x)
        found = attention(q, k, v, scheme, None, observed)
        exact = attention(*(z.double() for z in (q, k, v)), scheme.double(), None, observed)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)


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
