"""Schemes that differ by layer: each layer is that of a decoder with its scheme alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from kerple_eval.cli.main import cli
from kerple_eval.models.decoder.attention import make_table
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.run import open_run
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError
from tests.helpers import tiny

#: The parts of a mix, and which of them each of four layers has.
MIXES: list[tuple[str, list[str]]] = [
    ("(rope,window=5)*3 (nope)", ["rope,window=5", "rope,window=5", "rope,window=5", "nope"]),
    ("(kerple-log) (rope)", ["kerple-log", "rope", "kerple-log", "rope"]),
    ("(kerple-log:per-layer=true) (fox) (kerple-log:per-layer=true) (alibi)",
     ["kerple-log", "fox", "kerple-log", "alibi"]),
    ("(rope,ssmax)*2 (fire)*2", ["rope,ssmax", "rope,ssmax", "fire", "fire"]),
]  # fmt: skip
every_mix = pytest.mark.parametrize(("parts", "names"), MIXES, ids=[parts for parts, _ in MIXES])
TOKENS = torch.from_numpy(tiny.tokens(24))[None]


def mixed(parts: str, layers: int = 4, **changes: object) -> DecoderConfig:
    return tiny.config("layers", layers=layers, scheme_options={"parts": parts}, **changes)


def logits(made: Decoder) -> Tensor:
    with torch.no_grad():
        out: Tensor = made.head(made(TOKENS))
    return out


def alone(made: Decoder, layer: int, name: str) -> Scheme:
    """The scheme ``name`` built for one layer by itself, with the parameters that layer has in ``made``."""
    base, _, modifier = name.partition(",")
    key, _, value = modifier.partition("=")
    given = {"width": int(value)} if value else {}
    scheme = scheme_of(tiny.config(base, layers=1, modifiers={key: given} if key else {})).double().at(0)
    values = [p.detach() for p in made.scheme.at(layer).parameters()]
    for parameter, value_ in zip(scheme.parameters(), values, strict=True):
        parameter.data = value_
    return scheme


@every_mix
def test_each_layer_is_its_own_scheme(parts: str, names: list[str]) -> None:
    made = tiny.decoder(mixed(parts))
    x = made.embedding(TOKENS)
    with torch.no_grad():
        for index, name in enumerate(names):
            scheme = alone(made, index, name)
            table = make_table(scheme, 24, torch.float64, torch.device("cpu"))
            x = made.layers[index](x, scheme, table, 24)
        expected = made.head(made.norm(x))
    torch.testing.assert_close(logits(made), expected, rtol=0, atol=1e-12)
    assert float(expected.std()) > 0.3


@every_mix
def test_it_is_kept_and_shown_with_its_counts(parts: str, names: list[str], tmp_path: Path) -> None:
    made = tiny.decoder(mixed(parts, vocab_size=256), dtype=torch.float32)
    write_checkpoint(tmp_path, made, seed=3)
    checkpoint = NativeCheckpoint(tmp_path)
    assert torch.equal(logits(checkpoint.decoder()), logits(made))
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    order = sorted(counts, key=lambda name: -counts[name])
    assert checkpoint.description.scheme == " + ".join(f"{name} {counts[name]}/4" for name in order)
    assert checkpoint.description.prefix_invariant
    assert len(checkpoint.scheme_parameters()) == len(list(made.scheme.parameters()))


@every_mix
def test_gradients_reach_every_parameter(parts: str, names: list[str]) -> None:
    """So that no layer has parameters which no layer uses."""
    made = tiny.decoder(mixed(parts))
    out = made.head(made(TOKENS[:, :-1]))
    nn.functional.cross_entropy(out.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().max()) > 1e-8 or key.endswith("out.bias"), key


def test_equal_parts_are_one_scheme_unless_each_layer_has_its_own() -> None:
    shared = Decoder(mixed("(kerple-log) (nope) (kerple-log) (alibi)")).scheme
    assert shared.at(0) is shared.at(2)
    assert sum(p.numel() for p in shared.parameters()) == 2 * 3
    own = Decoder(mixed("(kerple-log:per-layer=true) (nope) (kerple-log:per-layer=true) (alibi)")).scheme
    assert own.at(0) is not own.at(2)
    assert sum(p.numel() for p in own.parameters()) == 2 * 2 * 3


def test_a_mix_follows_the_window_if_a_part_does() -> None:
    assert scheme_of(mixed("(rope-dynamic) (nope)")).prefix_invariant is False


def test_a_modifier_is_applied_to_every_layer(tmp_path: Path) -> None:
    made = tiny.decoder(mixed("(kerple-log)*3 (nope)", vocab_size=256), dtype=torch.float32)
    write_checkpoint(tmp_path, made, seed=3)
    laid = open_model(parse_model(f"native:{tmp_path},window=5"))
    assert laid.description.scheme == "kerple-log,window=5 3/4 + nope,window=5 1/4"
    expected = tiny.decoder(mixed("(kerple-log,window=5)*3 (nope,window=5)"), dtype=torch.float32)
    for mine, theirs in zip(expected.parameters(), laid.decoder().parameters(), strict=True):
        if mine.shape == theirs.shape:
            mine.data = theirs.data
    expected.embedding, expected.head = laid.decoder().embedding, laid.decoder().head
    torch.testing.assert_close(logits(laid.decoder()), logits(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("(rope)*3", "its parts are for 3 layers, and the model's 4"),
        (
            "(rope) (sinusoidal)",
            "sinusoidal changes the embeddings, which come before all layers; it can",
        ),
        ("(rope:bas=3) (nope)", "unknown option of rope 'bas'"),
    ],
)
def test_what_cannot_be_mixed_is_refused(parts: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        scheme_of(mixed(parts))


def test_a_backend_is_chosen_for_all_layers() -> None:
    """Layer 0 is a function of distance, the last one is not."""
    scheme, cpu = scheme_of(mixed("(alibi)*3 (fire)")), torch.device("cpu")
    assert resolve_backend("auto", scheme, "a mix", cpu, torch.float32) == "chunks"
    with pytest.raises(UserError, match="a mix needs its scores in memory"):
        resolve_backend("sdpa", scheme, "a mix", cpu, torch.float32)


def test_trained_inspected_scored_and_drawn(tmp_path: Path) -> None:
    """The command line, from training to a figure of one layer's kernel."""
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text("".join(rng.choice(list("abcd \n"), size=4000)))
    runner = CliRunner()

    def call(*words: str, status: int = 0) -> str:
        done = runner.invoke(cli, words)
        assert done.exit_code == status, done.output
        return done.stdout if status == 0 else done.stderr

    text, out = str(tmp_path / "text.txt"), tmp_path / "mix"
    train = ["--text", text, "--length", "16", "--steps", "3", "--width", "12", "--heads", "3",
             "--batch", "2", "--seed", "1"]  # fmt: skip
    mix = "layers: (kerple-log,window=8)*3 (nope)"
    call("train", "--scheme", mix, *train, "--layers", "4", "--out", str(out))
    assert "`layers:parts=(kerple-log,window=8)*3 (nope)`" in (out / "README.md").read_text()
    facts = dict(line.split(maxsplit=1) for line in call("inspect", str(out)).splitlines())
    assert facts["scheme"] == "kerple-log,window=8 3/4 + nope 1/4"
    assert {"scheme.parts.0.base.r1", "scheme.parts.0.base.r2"} < set(facts)
    call("run", f"native:{out}", "--text", text, "--length", "16,32", "--max-tokens", "200",
         "--out", str(tmp_path / "run"))  # fmt: skip
    summary = open_run(tmp_path / "run").summary()
    assert set(summary["scheme"]) == {"kerple-log,window=8 3/4 + nope 1/4"}
    figure = ["plot", f"native:{out}", "--kind", "kernels", "--out", str(tmp_path / "kernels.png")]
    call(*figure, "--layer", "1")
    assert (tmp_path / "kernels.png").stat().st_size > 1000
    assert "differs by layer; choose one, --layer 0 to 3" in call(*figure, status=2)
    error = call(*figure, "--layer", "3", status=2)
    assert "layer 3 has no kernel or weight to draw; other layers have" in error
    error = call("train", "--scheme", mix, *train, "--layers", "6", "--out", str(tmp_path / "six"), status=2)
    assert "its parts are for 4 layers, and the model's 6 are no whole number" in error
    assert not (tmp_path / "six").exists()
