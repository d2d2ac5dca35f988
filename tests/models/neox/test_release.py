"""numerics=release against the release's operations one by one, whole matrices, in bfloat16."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.models.neox import release as module
from kerple_eval.models.neox.checkpoint import NeoxCheckpoint
from kerple_eval.types import UserError
from tests.helpers import neox_writer as writer
from tests.helpers import oracles
from tests.helpers.neox_writer import Model, draw, variant, write

CPU = torch.device("cpu")
BF16 = torch.bfloat16


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(48, size=count)


def biased(scores: Tensor, t: dict[str, Tensor], p: str, model: Model) -> Tensor:
    """``[H, N, N]`` after the relative position module, a whole matrix of distances at a time."""
    length, dtype = scores.shape[-1], scores.dtype
    d = torch.tril(torch.arange(length)[:, None] - torch.arange(length)).to(dtype)
    if model.pos_emb == "alibi":
        return scores + (-d) * torch.tensor(oracles.alibi_slopes(model.heads)).to(dtype)[:, None, None]
    if model.pos_emb == "rpe":
        table = t[p + "attention.rpe.weight"]
        buckets = torch.tensor([oracles.t5_bucket(n) for n in range(length)])
        apart = torch.tril(torch.arange(length)[:, None] - torch.arange(length))
        return scores + table[buckets[apart]].movedim(2, 0) * math.sqrt(model.dim)
    low = {n: t[f"{p}attention.rpe.{n}"].clamp(min=0.01) for n in writer.KERPLE.get(model.pos_emb, ())}
    if model.pos_emb == "kerple_log":
        return scores + (-low["bias_p"] * torch.log(1 + low["bias_a"] * d))
    for name in ("bias", "wei"):
        if name + "_p" in low:
            low[name + "_p"] = low[name + "_p"].clamp(max=2)
    if "wei_a" in low:
        scores = scores * (-d.pow(low["wei_p"]) * low["wei_a"]).exp()
    if "bias_a" in low:
        power = d.pow(low["bias_p"]) if "bias_p" in low else d
        scores = scores + -power * low["bias_a"]
    return scores


def turned(x: Tensor, model: Model) -> Tensor:
    r = int(model.dim * model.rotary_pct)
    frequencies = (1.0 / model.rotary_base ** (torch.arange(0, r, 2).float() / r)).to(x.dtype)
    angles = torch.outer(torch.arange(x.shape[1]).to(x.dtype), frequencies)
    both = torch.cat([angles, angles], dim=-1).float()
    cos, sin = both.cos().to(x.dtype), both.sin().to(x.dtype)
    part = x[..., :r]
    half = torch.cat([-part[..., r // 2 :], part[..., : r // 2]], dim=-1)
    return torch.cat([part * cos + half * sin, x[..., r:]], dim=-1)


def forward(
    whole: dict[str, Any],
    model: Model,
    inputs: np.ndarray,
    dtype: torch.dtype = BF16,
    *,
    scaling: bool = False,
) -> Tensor:
    """Logits ``[N, V]`` as the release computes them, from GPT-NeoX's own tensors."""
    t = {name: torch.from_numpy(x).to(dtype) for name, x in whole.items()}
    length, w, f = len(inputs), model.width, torch.nn.functional
    x = t["0.word_embeddings.weight"][torch.from_numpy(inputs)]
    if model.pos_emb == "learned":
        x = x + t["0.position_embeddings.weight"][:length]
    if model.pos_emb == "sinusoidal":
        frequencies = (1.0 / 10000 ** (torch.arange(0, w, 2).float() / w)).to(dtype)
        angles = torch.outer(torch.arange(length).to(dtype), frequencies).float()
        x = x + torch.cat([angles.sin().to(dtype), angles.cos().to(dtype)], dim=-1)

    def norm(y: Tensor, name: str) -> Tensor:
        if model.norm == "rmsnorm":  # norms.py, RMSNorm
            rms = y.norm(2, dim=-1, keepdim=True) * w ** (-1.0 / 2)
            return t[name + ".scale"] * (y / (rms + model.epsilon))
        return f.layer_norm(y, (w,), t[name + ".weight"], t[name + ".bias"], model.epsilon)

    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for n in range(model.layers):
        p = f"{n + 2}."
        qkv = f.linear(norm(x, p + "input_layernorm"), t[p + "attention.query_key_value.weight"],
                       t[p + "attention.query_key_value.bias"])  # fmt: skip
        q, k, v = qkv.view(length, model.heads, 3, model.dim).permute(2, 1, 0, 3)
        if model.pos_emb == "rotary":
            q, k = turned(q, model), turned(k, model)
        coeff = max(1, n) if scaling else None  # ParallelSelfAttention.__init__, FusedScaleMaskSoftmax
        norm_factor = math.sqrt(model.dim) * (coeff or 1)
        scores = torch.baddbmm(torch.zeros(1, dtype=dtype), q, k.transpose(1, 2), beta=0,
                               alpha=1.0 / norm_factor)  # fmt: skip
        scores = biased(scores, t, p, model)
        scores = scores if coeff is None else scores.float() * coeff
        scores = scores.masked_fill(future, -10000.0)
        context = torch.bmm(scores.softmax(-1).to(dtype), v).transpose(0, 1).reshape(length, w)
        attended = f.linear(context, t[p + "attention.dense.weight"]) + t[p + "attention.dense.bias"]
        attended = attended if model.gpt_j_residual else x + attended
        y = norm(x if model.gpt_j_residual else attended, p + "post_attention_layernorm")
        y = f.linear(y, t[p + "mlp.dense_h_to_4h.weight"]) + t[p + "mlp.dense_h_to_4h.bias"]
        y = f.linear(f.gelu(y), t[p + "mlp.dense_4h_to_h.weight"]) + t[p + "mlp.dense_4h_to_h.bias"]
        x = x + (attended + y) if model.gpt_j_residual else attended + y
    x = norm(x, f"{model.layers + 3}.norm")
    return f.linear(x, t[f"{model.layers + 4}.final_linear.weight"])


def logits(folder: Path, inputs: np.ndarray, rows: int | None = None, **options: str) -> Tensor:
    model = NeoxCheckpoint.open(str(folder), options).load(CPU, torch.float32)
    with torch.no_grad():
        parts = list(model.logits(torch.from_numpy(inputs)[None], rows or len(inputs)))
    return torch.cat(parts, dim=1)[0]


@pytest.mark.parametrize(
    "pos_emb", [*writer.KERPLE, "rpe", "alibi", "rotary", "learned", "sinusoidal", "none"]
)
@pytest.mark.parametrize("gpt_j", [False, True])
def test_the_releases_operations(pos_emb: str, gpt_j: bool, tmp_path: Path) -> None:
    """To the bit but for the order of sums inside a product; far closer than to the exact numbers."""
    model = variant(pos_emb=pos_emb, gpt_j_residual=gpt_j, values={"bias_a": [0.001, 0.5, 0.3, 0.1]})
    folder = write(tmp_path, model)
    inputs = tokens(600)
    found = logits(folder, inputs, numerics="release")
    assert found.dtype == BF16
    expected = forward(draw(model), model, inputs)
    exact = logits(folder, inputs)
    ours = float((found.float() - expected.float()).abs().mean())
    rounding = float((expected.float() - exact).abs().mean())
    assert rounding > 1e-3
    assert ours < 0.05 * rounding, (ours, rounding)


@pytest.mark.parametrize("pos_emb", ["kerple_log", "kerple_power__ap", "alibi", "rpe", "rotary"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_layer_scaling(pos_emb: str, precision: str, tmp_path: Path) -> None:
    """Divided by the layer's number in half precision, multiplied back, bias included, in float32."""
    model = variant(pos_emb=pos_emb, layers=4)
    kind = {"fp16": {"enabled": True, "type": precision}}
    folder = write(tmp_path, model, apply_query_key_layer_scaling=True, **kind)
    inputs, dtype = tokens(64), getattr(torch, precision)
    found = logits(folder, inputs, numerics="release")
    expected = forward(draw(model), model, inputs, dtype, scaling=True)
    plain = forward(draw(model), model, inputs, dtype)
    ours = float((found.float() - expected.float()).abs().mean())
    assert ours < 0.1 * float((plain.float() - expected.float()).abs().mean())
    if pos_emb in ("rotary", "kerple_power__ap"):  # exact numbers do not change
        logits(folder, inputs)
    else:
        with pytest.raises(UserError, match="multiplies the bias by the layer's number; only numerics=rel"):
            NeoxCheckpoint.open(str(folder), {})


def test_rmsnorm_rounds_as_the_release(tmp_path: Path) -> None:
    """|x| is rounded, then its product with W^(-1/2), and epsilon is added to what came out."""
    model = variant(pos_emb="kerple_log", norm="rmsnorm", epsilon=1e-3, layers=4)
    folder = write(tmp_path, model)
    inputs = tokens(64)
    found = logits(folder, inputs, numerics="release")
    expected = forward(draw(model), model, inputs)
    ours = float((found.float() - expected.float()).abs().mean())
    assert ours < 0.05 * float((expected.float() - logits(folder, inputs)).abs().mean())


def test_a_loss_in_float16_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(), **{"fp16-lm-cross-entropy": True})
    NeoxCheckpoint.open(str(folder), {})
    with pytest.raises(UserError, match="fp16-lm-cross-entropy takes the loss in float16"):
        NeoxCheckpoint.open(str(folder), {"numerics": "release"})


def test_query_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, variant(pos_emb="kerple_power_ap_ap"))
    inputs = tokens(70)
    whole = logits(folder, inputs, numerics="release")
    monkeypatch.setattr(module, "SCORE_ELEMENTS", 4 * 70 * 16)
    chunked = logits(folder, inputs, numerics="release")
    assert float((chunked.float() - whole.float()).abs().mean()) < 1e-3
    torch.testing.assert_close(logits(folder, inputs, 9, numerics="release"), chunked[-9:], rtol=0, atol=0)


def test_distances_above_256_collide(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(pos_emb="kerple_log"))
    made = NeoxCheckpoint.open(str(folder), {"numerics": "release"}).load(CPU, torch.float32)
    assert isinstance(made, module.ReleaseModel)
    kernel, weight = made._by_distance(520)
    assert weight is None
    assert kernel is not None
    assert torch.equal(kernel[:, 257], kernel[:, 256])
    assert torch.equal(kernel[:, 513:515], kernel[:, [512, 512]])
    assert not torch.equal(kernel[:, 100], kernel[:, 50])


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        # calculate_derived of the release: (fp16 or {}).get("type", precision) == "bfloat16", else
        # (fp16 or {}).get("enabled"), else fp32
        ({}, "bfloat16"),
        ({"fp16": {"enabled": True}}, "float16"),
        ({"fp16": {"enabled": True, "type": "fp16"}, "precision": "bfloat16"}, "float16"),
        ({"fp16": {"enabled": False, "type": "bfloat16"}}, "bfloat16"),
        ({"fp16": {"enabled": True}, "precision": "bfloat16"}, "bfloat16"),
        ({"fp16": {"enabled": True}, "precision": "fp32"}, "float16"),
        ({"fp16": None, "precision": "fp32"}, "float32"),
        ({"fp16": None, "precision": "fp16"}, "float32"),
        ({"fp16": None, "bf16": {"enabled": True}}, "float32"),
        ({"fp16": {"enabled": False}}, "float32"),
        ({"fp16": None}, "float32"),
    ],
    ids=str,
)
def test_the_precision_is_the_configurations(changes: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder = write(tmp_path, variant(pos_emb="kerple_log"), dtype=torch.bfloat16, **changes)
    opened = NeoxCheckpoint.open(str(folder), {"numerics": "release"})
    assert opened.description.details["numerics"] == f"release in {dtype}"
    assert any(dtype in line for line in opened.description.warnings)
    assert opened.load(CPU, torch.float32).dtype == getattr(torch, dtype)
    assert NeoxCheckpoint.open(str(folder), {}).description.details["numerics"] == "exact"


def test_in_float32_it_is_the_exact_computation(tmp_path: Path) -> None:
    """Only rounding differs: without it, both paths give the same numbers."""
    for pos_emb in ("kerple_power_ap_ap", "rotary", "rpe", "sinusoidal"):
        folder = write(
            tmp_path / pos_emb, variant(pos_emb=pos_emb, rotary_pct=0.5), fp16=None, precision="fp32"
        )
        inputs = tokens(64)
        torch.testing.assert_close(
            logits(folder, inputs, numerics="release"), logits(folder, inputs), rtol=1e-4, atol=1e-4
        )


def test_an_unknown_precision(tmp_path: Path) -> None:
    folder = write(tmp_path, variant(), precision="fp8")
    with pytest.raises(
        UserError, match="numerics=release knows bfloat16, fp16, fp32, the configuration 'fp8'"
    ):
        NeoxCheckpoint.open(str(folder), {"numerics": "release"})
