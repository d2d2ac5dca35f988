"""The DAPE authors' fork: its modules transcribed (torch, float64), its tensors in every layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.models.neox.checkpoint import NeoxCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.types import UserError, Window
from tests.helpers import oracles
from tests.helpers.neox_writer import Array, Model, draw, losses, variant, write

M, C, P, T = 6, 3, 5, 9  # mlp_width, dapev2_kernel, CoPE's positions, FIRE's threshold
CPU = torch.device("cpu")
#: pos-emb -> (module in the attention, native scheme)
FORK = {
    "kerple": ("kerple", "kerple-log"), "kerple_c": ("kerple_c", "dape"),
    "kerple_dapev2": ("kerple_dapev2", "dape-v2"), "alibi_c": ("alibi_c_embed", "dape"),
    "alibi_dapev2": ("alibi_dapev2", "dape-v2"), "nope_c": ("nope_c", "dape"), "fire": ("fire", "fire"),
    "cope": ("cope", "cope"),
}  # fmt: skip


def module_tensors(pos_emb: str, model: Model, rng: np.random.Generator) -> dict[str, Array]:
    """One layer's, by name inside the module, as ``positional_embeddings.py`` builds them."""
    h = model.heads
    out: dict[str, Array] = {}

    def put(name: str, *shape: int) -> None:
        out[name] = rng.normal(scale=0.4, size=shape).astype(np.float32).astype(np.float64)

    if pos_emb.startswith("kerple"):
        out["bias_p"] = np.float32(rng.uniform(0.1, 1.9, (h, 1, 1))).astype(np.float64)
        out["bias_a"] = np.float32(rng.uniform(0.1, 0.9, (h, 1, 1))).astype(np.float64)
    if pos_emb.startswith("alibi"):
        out["slopes"] = np.array(oracles.alibi_slopes(h))
    if pos_emb == "cope":
        put("pos_emb", 1, model.dim, P)
    if pos_emb == "fire":
        out |= {"c": np.array(0.25), "L_multiplier": np.array(1.25), "init_L": np.array(float(T))}
        for name, shape in (("0.weight", (M, 1)), ("0.bias", (M,)), ("2.weight", (h, M)), ("2.bias", (h,))):
            put(f"mlp.{name}", *shape)
    columns = (1, C) if pos_emb.endswith("v2") else ()
    if columns or pos_emb.endswith("_c"):
        put("mlp2.0.weight", M, h if pos_emb == "nope_c" else 2 * h, *columns)
        put("mlp2.0.bias", M)
        put("mlp2.2.weight", h, M, *columns)
        put("mlp2.2.bias", h)
    return out


def forward(pos_emb: str, x: Tensor, q: Tensor, t: dict[str, Tensor], heads: int) -> Tensor:
    """The fork's ``forward`` of each module: scores x ``[H, N, N]``, queries q ``[H, N, d]``."""
    f, n = torch.nn.functional, x.shape[-1]
    diff = torch.tril(torch.arange(n)[:, None] - torch.arange(n)).double()
    if pos_emb == "cope":  # CoPE
        pos = torch.tril(torch.sigmoid(x)).flip(-1).cumsum(dim=-1).flip(-1).clamp(max=P - 1)
        logits_int = torch.matmul(q, t["pos_emb"])
        ceil, floor = (logits_int.gather(-1, part.long()) for part in (pos.ceil(), pos.floor()))
        w = pos - pos.floor()
        return x + ceil * w + floor * (1 - w)
    if pos_emb == "fire":  # FIRE
        threshold = torch.abs(t["L_multiplier"] * t["init_L"])
        normalizer = torch.max(torch.max(diff, dim=-1)[0], threshold)[:, None]
        relative = torch.log(torch.abs(t["c"] * diff) + 1)
        relative = relative / (torch.log(torch.abs(t["c"] * normalizer) + 1) + 1e-6)
        hidden = f.relu(f.linear(relative[..., None], t["mlp.0.weight"], t["mlp.0.bias"]))
        return x + f.linear(hidden, t["mlp.2.weight"], t["mlp.2.bias"]).permute(2, 0, 1)
    bias = torch.zeros(heads, n, n, dtype=torch.float64)
    if pos_emb.startswith("kerple"):
        bias = -t["bias_p"] * torch.log(1 + t["bias_a"] * diff)
    if pos_emb.startswith("alibi"):
        bias = -diff * t["slopes"][:, None, None]
    if pos_emb == "kerple":
        return x + bias
    both = x if pos_emb == "nope_c" else torch.cat([x, bias])
    into, out = ((t[f"mlp2.{i}.weight"], t[f"mlp2.{i}.bias"]) for i in (0, 2))
    if pos_emb.endswith("v2"):
        hidden = f.leaky_relu(f.conv2d(torch.tril(both)[None], *into, padding=(0, C // 2)))
        return x + bias + f.conv2d(hidden, *out, padding=(0, C // 2))[0]
    hidden = f.leaky_relu(f.linear(both.permute(1, 2, 0), *into))
    return x + bias + f.linear(hidden, *out).permute(2, 0, 1)


def checkpoint(folder: Path, pos_emb: str, /, **changes: Any) -> tuple[Path, dict[str, Array], Model]:
    model = variant(pos_emb="none")
    rng = np.random.default_rng(len(pos_emb))
    tensors = draw(model)
    for layer in range(model.layers):
        for name, value in module_tensors(pos_emb, model, rng).items():
            tensors[f"{layer + 2}.attention.{FORK[pos_emb][0]}.{name}"] = value
    changes = {"pos_emb": pos_emb, "mlp_width": M, "dapev2_kernel": C, **changes}
    write(folder, model, tensors, **changes)
    if pos_emb == "fire":  # scalars, one of them a whole number
        for path in folder.glob("global_step*/layer_0[23]*"):
            state = torch.load(path)
            for name in ("c", "L_multiplier", "init_L"):
                state[f"attention.fire.{name}"] = state[f"attention.fire.{name}"].reshape(())
            state["attention.fire.init_L"] = state["attention.fire.init_L"].long()
            torch.save(state, path)
    return folder, tensors, model


@pytest.mark.parametrize("pos_emb", FORK)
def test_losses(pos_emb: str, tmp_path: Path) -> None:
    folder, tensors, model = checkpoint(tmp_path, pos_emb)
    tokens = np.random.default_rng(0).integers(model.vocabulary, size=41)

    def change(scores: Array, q: Array, prefix: str) -> Array:
        start = f"{prefix}attention.{FORK[pos_emb][0]}."
        t = {n.removeprefix(start): torch.from_numpy(x) for n, x in tensors.items() if n.startswith(start)}
        x, queries = torch.from_numpy(scores), torch.from_numpy(np.ascontiguousarray(q))
        changed: Array = forward(pos_emb, x, queries, t, model.heads).numpy()
        return changed

    expected = losses(tensors, model, tokens, change=change)
    opened = NeoxCheckpoint.open(str(folder), {})
    assert opened.description.scheme == FORK[pos_emb][1]
    assert not math.isclose(expected[-1], losses(tensors, model, tokens)[-1], abs_tol=1e-3)
    loaded = opened.load(CPU, torch.float32)
    found = next(iter(score(loaded, [tokens], [(0, Window(0, 40, 1))])))[1][0]
    # Native dape-v2 treats the window's last C // 2 rows as followed by others, in each layer.
    rows = slice(None, -model.layers * (C // 2)) if pos_emb.endswith("v2") else slice(None)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=0, atol=2e-5)


def test_named_by_its_tensors(tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path, "kerple_c", pos_emb=None)
    opened = NeoxCheckpoint.open(str(folder), {})
    assert opened.description.scheme == "dape"
    assert any("the tensors are kerple_c's" in line for line in opened.description.warnings)


def test_refused(tmp_path: Path) -> None:
    folder, _, _ = checkpoint(tmp_path / "a", "fire")
    with pytest.raises(UserError, match="the release's own schemes alone"):
        NeoxCheckpoint.open(str(folder), {"numerics": "release"})
    path = next(folder.glob("global_step*/layer_03*"))
    state = torch.load(path)
    torch.save(state | {"attention.fire.init_L": torch.tensor(8)}, path)
    with pytest.raises(UserError, match="init_L of layer 1 differs"):
        NeoxCheckpoint.open(str(folder), {})
    folder, _, _ = checkpoint(tmp_path / "b", "cope", pos_emb="fire")
    with pytest.raises(UserError, match=r"missing tensor attention\.fire\.c, which pos-emb fire has"):
        NeoxCheckpoint.open(str(folder), {})
