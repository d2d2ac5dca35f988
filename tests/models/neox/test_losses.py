"""neox: losses against a float64 forward pass straight from GPT-NeoX's own tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.neox.checkpoint import NeoxCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.types import Window
from tests.helpers import neox_writer as writer
from tests.helpers.neox_writer import Model, draw, variant, write

CPU = torch.device("cpu")
LENGTHS = (64, 200, 400)  # trained at 128
POS_EMBS = (*writer.KERPLE, "rpe", "alibi", "rotary", "learned", "sinusoidal", "none")


def tokens(count: int, vocabulary: int = 48) -> np.ndarray:
    return np.random.default_rng(count).integers(vocabulary, size=count)


def scored(folder: Path, length: int, dtype: torch.dtype = torch.float32, **options: str) -> np.ndarray:
    model = NeoxCheckpoint.open(str(folder), options).load(CPU, dtype)
    ((_, (found,)),) = score(model, [tokens(length + 1)], [(0, Window(0, length, 1))])
    return found


def agree(
    folder: Path, model: Model, lengths: tuple[int, ...] = LENGTHS, ranks: int = 1, **options: str
) -> None:
    """Every loss to 1e-6 of itself and 2e-6 nats, their sum to 2e-7 of itself, in float32."""
    tensors = draw(model)
    for length in lengths:
        expected = writer.losses(tensors, model, tokens(length + 1), ranks=ranks)
        found = scored(folder, length, **options)
        assert float(expected.std()) > 0.3
        assert float(found.astype(np.float64).sum()) == pytest.approx(expected.sum(), rel=2e-7)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("pos_emb", POS_EMBS)
def test_every_pos_emb_at_three_lengths(pos_emb: str, tmp_path: Path) -> None:
    model = variant(pos_emb=pos_emb)
    agree(write(tmp_path, model), model)


def test_a_long_window(tmp_path: Path) -> None:
    model = variant(pos_emb="kerple_power_ap_ap")
    agree(write(tmp_path, model), model, (1200,))


@pytest.mark.parametrize("pos_emb", POS_EMBS)
def test_position_matters(pos_emb: str, tmp_path: Path) -> None:
    """Without its scheme the same tensors lose visibly other amounts: the test above tests it."""
    model = variant(pos_emb=pos_emb)
    plain = writer.losses(draw(model), variant(pos_emb="none"), tokens(201))
    apart = np.abs(plain - writer.losses(draw(model), model, tokens(201))).max()
    assert apart > 0.01 if pos_emb != "none" else apart == 0


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("pos_emb", POS_EMBS)
def test_shards_are_merged(pos_emb: str, shards: int, tmp_path: Path) -> None:
    model = variant(pos_emb=pos_emb, tied=pos_emb in ("rpe", "kerple_log"))
    agree(write(tmp_path, model, shards=shards), model, (200,))


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True},
        {"gpt_j_residual": True},
        {"gpt_j_residual": True, "gpt_j_tied": True},
        {"gpt_j_tied": True},
        {"rotary_pct": 0.25, "gpt_j_residual": True},
        {"rotary_pct": 0.5, "rotary_base": 500},
        {"fused": True},
        {"activation": "geglu"},
        {"activation": "relu"},
        {"activation": "softsign"},
        {"activation": "swish"},
        {"activation": "mish"},
        {"norm": "rmsnorm", "epsilon": 0.01},
        {"norm": "rmsnorm", "gpt_j_residual": True, "gpt_j_tied": True},
        {"epsilon": 0.1},
        {"pos_emb": "rpe", "buckets": 16, "farthest": 60},
        {"pos_emb": "alibi", "heads": 8},
        {"layers": 1},
        {"layers": 3, "width": 24, "heads": 2},
    ],
    ids=str,
)
def test_every_setting_counts(changes: dict[str, Any], tmp_path: Path) -> None:
    model = variant(**changes)
    agree(write(tmp_path, model), model, (200,))


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("changes", [{"activation": "geglu"}, {"norm": "rmsnorm"}, {"fused": True}], ids=str)
def test_settings_that_meet_shards(changes: dict[str, Any], shards: int, tmp_path: Path) -> None:
    model = variant(pos_emb="kerple_log", **changes)
    agree(write(tmp_path, model, shards=shards), model, (64,))


@pytest.mark.parametrize("shards", [2, 4])
def test_a_head_split_along_the_hidden_size(shards: int, tmp_path: Path) -> None:
    model = variant(pos_emb="none")
    agree(write(tmp_path, model, shards=shards, row_head=True), model, (64,))


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_gpt_j_residual_adds_every_ranks_bias(shards: int, tied: bool, tmp_path: Path) -> None:
    """Each rank adds its copy of a row-parallel bias before the one reduction over ranks."""
    model = variant(gpt_j_residual=True, gpt_j_tied=tied, rotary_pct=0.5)
    folder = write(tmp_path, model, shards=shards)
    agree(folder, model, (64,), ranks=shards)
    assert any("summed" in line for line in NeoxCheckpoint.open(str(folder), {}).description.warnings)


def test_exact_and_fused_gelu_differ() -> None:
    exact, fused = (writer.losses(draw(variant()), variant(fused=f), tokens(65)) for f in (False, True))
    assert float(np.abs(exact - fused).max()) > 1e-5


# --- Clamps --------------------------------------------------------------------------------------

LOW, HIGH = [0.001, -0.5, 0.3, 1.5], [0.005, 2.7, 1.9, 2.0001]


@pytest.mark.parametrize(
    ("pos_emb", "values", "moved"),
    [
        ("kerple_log", {"bias_a": LOW, "bias_p": [0.0, 3.5, 1.0, 0.009]}, {"r2": 2, "r1": 2}),
        ("kerple_power_ap_", {"bias_a": LOW, "bias_p": HIGH}, {"r1": 2, "r2": 3}),
        ("kerple_power__ap", {"wei_a": LOW, "wei_p": HIGH}, {"r1": 2, "r2": 3}),
        ("kerple_power_ap_ap", {"bias_a": LOW, "bias_p": HIGH, "wei_a": [0.5, 0.4, 0.009, 0.1],
                                "wei_p": [0.2, 0.001, 5.0, 1.0]}, {"r1": 2, "r2": 3, "r3": 1, "r4": 2}),
        ("kerple_power_original", {}, {"r1": 1}),  # 2^-8, the last of four slopes, is below 0.01
    ],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 2])
def test_parameters_outside_the_clamps(
    pos_emb: str, values: dict[str, list[float]], moved: dict[str, int], shards: int, tmp_path: Path
) -> None:
    model = variant(pos_emb=pos_emb, values=values)
    folder = write(tmp_path, model, shards=shards)
    agree(folder, model, LENGTHS if shards == 1 else (200,))
    opened = NeoxCheckpoint.open(str(folder), {})
    told = [line for line in opened.description.warnings if "clamped" in line]
    assert len(told) == len(moved)
    for name, count in moved.items():
        assert any(f"{count} of 4 values of {name} (" in line for line in told), told
    for name, numbers in opened.scheme_parameters().items():
        assert len(numbers) == 4
        assert min(numbers) >= 0.01 - 1e-9, name


def test_no_clamp_no_warning(tmp_path: Path) -> None:
    opened = NeoxCheckpoint.open(str(write(tmp_path, variant(pos_emb="kerple_log"))), {})
    assert not [line for line in opened.description.warnings if "clamped" in line]


# --- Dtypes and layouts --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model = variant(pos_emb="kerple_power_ap_")
    rounded = {name: torch.from_numpy(x).to(dtype).double().numpy() for name, x in draw(model).items()}
    folder = write(tmp_path, model, dtype=dtype)
    found = scored(folder, 200)
    expected = writer.losses(rounded, model, tokens(201))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)
    stored = NeoxCheckpoint.open(str(folder), {}).description.stored_dtypes
    assert stored == ({torch.bfloat16: "BF16", torch.float16: "F16"}[dtype],)


def test_float64_to_the_last_digits(tmp_path: Path) -> None:
    model = variant(pos_emb="kerple_power_ap_ap", gpt_j_residual=True)
    tensors = {name: x + 1e-9 for name, x in draw(model).items()}
    folder = write(tmp_path, model, tensors, dtype=torch.float64)
    found = NeoxCheckpoint.open(str(folder), {}).load(CPU, torch.float64)
    inputs = torch.from_numpy(tokens(201))
    with torch.no_grad():
        (logits,) = found.logits(inputs[None, :-1], 200)
    got = torch.nn.functional.cross_entropy(logits[0], inputs[1:], reduction="none").numpy()
    np.testing.assert_allclose(got, writer.losses(tensors, model, tokens(201)), rtol=0, atol=1e-11)


def test_the_older_layout_of_torch_save(tmp_path: Path) -> None:
    model = variant(pos_emb="kerple_log")
    agree(write(tmp_path, model, shards=2, zipped=False), model, (64,))
