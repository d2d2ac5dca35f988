"""Training on a tiny repetitive text: resume to the bit, refusals, schedule, projection, figures."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

from kerple_eval.cli.main import cli
from kerple_eval.data.documents import TokenDocument
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.native import NativeCheckpoint
from kerple_eval.models.training import train as training
from kerple_eval.models.training.batches import PackedBatches
from kerple_eval.models.training.corpus import Corpus
from kerple_eval.models.training.train import schedule, train
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.support.files import locked
from kerple_eval.types import UserError
from tests.helpers import oracles, tiny
from tests.helpers.trainings import LENGTH, RECORD, Killed, corpus, kill_at, recipe, run

EDGE = float(torch.tensor(0.01))  # the constraint's edge as float32 holds it


# --- Resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["kerple-log", "t5", "rope"])
@pytest.mark.parametrize("stops", [(1,), (2,), (5,), (8,), (2, 3, 7)], ids=str)
def test_a_killed_run_ends_with_the_same_weights(
    scheme: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed during a step after a save, started again: weights and curve to the bit."""
    whole = run(recipe(scheme), tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    steps_done = []
    for stop in stops:
        with pytest.raises(Killed):
            run(recipe(scheme), tmp_path / "killed", on_step=kill_at(stop))
        assert not (tmp_path / "killed" / "config.json").exists()
    resumed = run(recipe(scheme), tmp_path / "killed", on_step=lambda step, loss: steps_done.append(step))
    assert steps_done == list(range(stops[-1], 9))  # the state was saved one step before the kill
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert [{**r, "seconds": 0} for r in resumed["curve"]] == [{**r, "seconds": 0} for r in whole["curve"]]
    for key in ("recipe", "data", "held_out", "parameters", "tokens_seen"):
        assert resumed[key] == whole[key]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_kernels_of_each_layer_are_trained_apart(tmp_path: Path) -> None:
    options = dict(parse_scheme("kerple-log:per-layer=true").options)
    run(recipe(model={"scheme_options": options}), tmp_path / "out")
    trained = NativeCheckpoint(tmp_path / "out").scheme_parameters()
    assert set(trained) == {f"layers.{layer}.{name}" for layer in (0, 1) for name in ("r1", "r2")}
    assert trained["layers.0.r1"] != trained["layers.1.r1"]
    assert "`kerple-log:per_layer=true`" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "text.txt").write_text("abcabdabe" * 9)
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "out")], catch_exceptions=False).output
    assert "scheme.layers.1.r2" in shown
    assert "model.scheme_options.per_layer" in shown


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    """What the test above would miss if training did nothing."""
    for seed in (1, 2):
        run(recipe(seed=seed), tmp_path / str(seed))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "12")
    assert all(not np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_same_call_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    run(recipe(), tmp_path / "whole")
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(step: int, loss: float) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path / "stopped", on_step=interrupt)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    steps: list[int] = []
    run(recipe(), tmp_path / "stopped", on_step=lambda step, loss: steps.append(step))
    assert steps == [5, 6, 7, 8]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_an_interrupt_of_the_last_evaluation_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(), tmp_path / "whole")

    def interrupted(self: object, dtype: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        raise AssertionError("the signal was kept for later")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training._Run, "finish", interrupted)
            run(recipe(), tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    steps: list[int] = []
    run(recipe(), tmp_path / "stopped", on_step=lambda step, loss: steps.append(step))
    assert steps == []
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


# --- Refusals ------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_a_finished_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    run(recipe(), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="holds a finished checkpoint"):
        run(recipe(), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_foreign_files_are_not_joined(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no training"):
        run(recipe(), tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 2e-2}, "recipe.learning_rate was 0.01 there and is 0.02 now"),
        ({"seed": 2}, "recipe.seed was 1 there and is 2 now"),
        ({"steps": 9}, "recipe.steps was 8 there and is 9 now"),
        ({"model": {"layers": 1}}, "recipe.model.layers was 2 there and is 1 now"),
    ],
    ids=str,
)
def test_another_recipe_is_refused(
    changes: dict[str, Any], difference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        run(recipe(), tmp_path, on_step=kill_at(3))
    before = contents(tmp_path)
    with pytest.raises(UserError) as caught:
        run(recipe(**changes), tmp_path)
    assert difference in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def test_another_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        run(recipe(), tmp_path, on_step=kill_at(3))
    with pytest.raises(UserError, match=r"data\.train\.text_sha256 was"):
        train(recipe(), corpus("renamed"), tmp_path, record=RECORD)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another kerple-eval is writing here"):
        run(recipe(), tmp_path)


def test_a_text_too_short_is_refused(tmp_path: Path) -> None:
    short = corpus()
    short = Corpus([TokenDocument("a", short.train[0].ids[:10])], short.held_out, 0, short.record)
    with pytest.raises(UserError, match="training text has 11 tokens; length 8 needs at least 16"):
        train(recipe(), short, tmp_path / "out", record=RECORD)


def test_divergence_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training diverged: loss (nan|inf) at step 2; lower --lr"):
        run(recipe(learning_rate=1e30, warmup=1), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_divergence_that_shows_on_held_out_text_first_is_said(tmp_path: Path) -> None:
    """The weights break in step 1, whose own loss was still finite; the report after it finds out."""
    with pytest.raises(UserError, match=r"training diverged: .*held-out .* step 1; lower --lr"):
        train(recipe(learning_rate=1e30, warmup=1), corpus(), tmp_path, record=RECORD, reports=8)
    assert not (tmp_path / "config.json").exists()


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(recipe(), tmp_path / "file" / "out")


# --- What a step does ----------------------------------------------------------------------------


def test_schedule() -> None:
    """Linear to 1 over 4 warm-up steps, then half a cosine to 0 at step 12."""
    pinned = {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 6: 0.5 + math.sqrt(0.125), 8: 0.5, 12: 0.0}
    for step, share in pinned.items():
        assert schedule(step, 4, 12) == pytest.approx(share, abs=1e-15)
    after = [schedule(step, 4, 12) for step in range(4, 13)]
    assert after == sorted(after, reverse=True)
    for step in range(4, 13):  # the cosine's symmetry about its middle
        assert after[step - 4] + after[12 - step] == pytest.approx(1.0)
    assert schedule(0, 0, 10) == 1.0


def test_each_step_uses_the_schedules_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak 0.01, 3 warm-up steps of 8: the optimiser's rate at every step, for every group."""
    going = training._Run(recipe(), corpus())
    used: list[set[float]] = []
    plain = going.optimizer.step

    def step() -> None:
        used.append({group["lr"] for group in going.optimizer.param_groups})
        plain()

    monkeypatch.setattr(going.optimizer, "step", step)
    for _ in range(8):
        going.advance()
    shares = [1 / 3, 2 / 3, 1.0] + [(1 + math.cos(math.pi * n / 5)) / 2 for n in range(5)]
    for rates, share in zip(used, shares, strict=True):
        assert len(rates) == 1
        assert next(iter(rates)) == pytest.approx(0.01 * share)


def test_each_step_draws_from_a_generator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scheme draws in training: the same again for a seed and step, other numbers for others."""
    drawn: list[int] = []
    monkeypatch.setattr(Scheme, "begin_step", lambda _, rng: drawn.append(rng.initial_seed()))
    for seed in (1, 2, 1):
        going = training._Run(recipe("rope", seed=seed), corpus())
        for _ in range(4):
            going.advance()
    assert drawn[8:] == drawn[:4]
    assert len(set(drawn[:8])) == 8


@pytest.mark.parametrize("scheme", ["kerple-log", "t5"])
def test_one_step_is_adamw_by_hand(scheme: str) -> None:
    """First step: p - lr (wd p + g / (|g| + eps)), decay for matrices outside the scheme only."""
    made = recipe(scheme, warmup=1, clip=1e9, weight_decay=50.0)
    going = training._Run(made, corpus())
    before = {n: p.detach().double().clone() for n, p in going.decoder.named_parameters()}
    twin = Decoder(made.model)
    twin.reset_parameters(made.seed)
    batch = torch.from_numpy(PackedBatches(corpus(), LENGTH, 2, 1)(0))
    logits = twin.head(twin(batch[:, :-1]))
    picked = logits.log_softmax(-1).gather(-1, batch[:, 1:, None])
    (-picked.mean()).backward()
    loss = going.advance()
    assert loss == pytest.approx(-picked.mean().item(), rel=1e-5)
    checked = 0
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        g = parameter.grad.double()
        decay = 50.0 if parameter.ndim == 2 and not name.startswith("scheme.") else 0.0
        expected = before[name] - 0.01 * (decay * before[name] + g / (g.abs() + 1e-8))
        if name in ("scheme.r1", "scheme.r2"):
            expected = expected.clamp(min=0.01)
        clear = g.abs() > 1e-5  # where rounding cannot turn the sign
        now = going.decoder.get_parameter(name).detach().double()
        torch.testing.assert_close(now[clear], expected[clear], rtol=0, atol=2e-5)
        checked += int(clear.sum())
    assert checked > 1000


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """With clip c the norm of all gradients together is c at the optimiser's step."""
    norms = []
    for clip in (0.01, 1e9):
        going = training._Run(recipe(clip=clip), corpus())

        def step(going: Any = going) -> None:
            squares = [float((p.grad.double() ** 2).sum()) for p in going.decoder.parameters()]
            norms.append(math.sqrt(sum(squares)))

        monkeypatch.setattr(going.optimizer, "step", step)
        going.advance()
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert norms[1] > 0.02


@pytest.mark.parametrize("scheme", ["kerple-log", "kerple-power"])
def test_every_step_ends_inside_the_constraints(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of 0.5 Adam throws r1, r2 far outside; the projection puts them back each time."""
    moved = []
    plain = Scheme.project_

    def project(self: Scheme) -> dict[str, int]:
        moved.append(plain(self))
        return moved[-1]

    going = training._Run(recipe(scheme, learning_rate=0.5, warmup=1, steps=20), corpus())
    monkeypatch.setattr(Scheme, "project_", project)
    for _ in range(20):
        going.advance()
        for name in ("r1", "r2"):
            values = going.decoder.scheme.get_parameter(name)
            assert float(values.detach().min()) >= EDGE
        if scheme == "kerple-power":
            assert float(going.decoder.scheme.get_parameter("r2").detach().max()) <= 2.0
    assert len(moved) == 20
    assert sum(bool(each) for each in moved) >= 2


def test_a_bfloat16_run_keeps_float32_weights(tmp_path: Path) -> None:
    result = run(recipe(precision="bfloat16"), tmp_path)
    assert {x.dtype for x in load_file(tmp_path / "model.safetensors").values()} == {np.dtype(np.float32)}
    assert math.isfinite(result["held_out"]["nll"])


# --- Data order ----------------------------------------------------------------------------------


def test_batches_are_slices_of_the_packed_text() -> None:
    """In each epoch every sample is L + 1 tokens of the stream and no input is read twice."""
    made = PackedBatches(corpus(), LENGTH, 2, 5)
    documents = [d.ids.tolist() for d in corpus().train]
    stream: list[int] = []
    rest = made.stream.tolist()
    while rest:  # the documents in some order, each once, each closed by token 0
        (first,) = [d for d in documents if rest[: len(d) + 1] == [*d, 0]]
        documents.remove(first)
        stream += [*first, 0]
        rest = rest[len(first) + 1 :]
    assert documents == []
    numbered = PackedBatches(corpus(), LENGTH, 1, 5)
    numbered.stream = np.arange(len(stream), dtype=np.int32)  # samples of positions, to see where from
    offsets = set()
    for epoch in range(6):
        samples = [numbered(epoch * made.samples + n)[0].tolist() for n in range(made.samples)]
        assert all(s == list(range(s[0], s[0] + LENGTH + 1)) for s in samples)
        inputs = sorted(position for s in samples for position in s[:-1])
        assert inputs == list(range(inputs[0], inputs[0] + made.samples * LENGTH))
        assert inputs[-1] + 1 < len(stream)
        assert len(stream) - 2 * LENGTH <= len(inputs) + inputs[0] <= len(stream)
        offsets.add(inputs[0])
    assert len(offsets) > 1
    assert max(offsets) < LENGTH


def test_batches_are_a_pure_function_of_the_step() -> None:
    forward, backward = (PackedBatches(corpus(), LENGTH, 3, 5) for _ in range(2))
    there = [forward(step) for step in range(40)]
    back = [backward(step) for step in reversed(range(40))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(there, back, strict=True))
    assert there[0].shape == (3, LENGTH + 1)
    assert there[0].dtype == np.int64
    other = PackedBatches(corpus(), LENGTH, 3, 6)
    assert any(not np.array_equal(other(step), batch) for step, batch in enumerate(there))


def test_every_scheme_reads_the_same_tokens_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    plain = Decoder.forward

    def forward(self: Decoder, tokens: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(tokens.clone())
        return plain(self, tokens, rows)

    monkeypatch.setattr(Decoder, "forward", forward)
    orders = {}
    for scheme in tiny.SCHEMES:
        seen.clear()
        run(recipe(scheme), tmp_path / scheme)
        orders[scheme] = torch.stack(seen)
    assert orders["nope"].shape == (8, 2, LENGTH)
    for scheme in tiny.SCHEMES:
        assert torch.equal(orders[scheme], orders["nope"]), scheme


# --- What comes out ------------------------------------------------------------------------------


def test_the_loss_falls_on_a_repetitive_text(tmp_path: Path) -> None:
    """The text uses 6 of 256 bytes: log 256 = 5.5 nats before, below 1 after."""
    result = run(recipe(steps=60, warmup=5, batch=4), tmp_path)
    losses = [report["held_out_loss"] for report in result["curve"]]
    assert [report["step"] for report in result["curve"]] == [15, 30, 45, 60]
    assert losses[-1] < 1.0 < losses[0]
    assert [report["train_loss"] for report in result["curve"]][-1] < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scheme", ["kerple-log", "rope"])
def test_the_held_out_figure_is_that_of_the_stored_weights(
    scheme: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Recomputed from the file in float64, one target at a time, full-context at the trained length."""
    result = run(recipe(scheme), tmp_path, weights_dtype=dtype)
    weights = load_file(tmp_path / "model.safetensors")
    tokens = corpus().held_out[0].ids.tolist()
    losses = []
    for k in range(1, len(tokens)):
        start = (k - 1) // LENGTH * LENGTH
        last = oracles.decoder_logits(weights, tokens[start:k], layers=2, heads=3, scheme=scheme)[-1]
        losses.append(oracles.negative_log_softmax(last, tokens[k]))
    figure = result["held_out"]
    assert figure["targets"] == len(losses) == 35
    assert figure["nll"] == pytest.approx(math.fsum(losses) / 35, rel=1e-6)
    assert figure["bits_per_byte"] == pytest.approx(math.fsum(losses) / 35 / math.log(2), rel=1e-6)
    curve = result["curve"]
    assert [r["step"] for r in curve] == [2, 4, 6, 8]
    # The last report at or before nine tenths of 8 steps is that of step 6.
    gain = 1 - curve[3]["held_out_loss"] / curve[2]["held_out_loss"]
    assert figure["gain_of_last_tenth"] == pytest.approx(gain)
    if dtype == torch.float32:
        assert curve[3]["held_out_loss"] == pytest.approx(figure["nll"], rel=1e-6)


def test_the_checkpoint_carries_its_record(tmp_path: Path) -> None:
    made = recipe()
    result = run(made, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["training"] == json.loads(json.dumps(result))
    assert data["seed"] == 1
    assert data["model"] == made.model.to_json()
    assert result["tokens_seen"] == 8 * 2 * LENGTH
    assert result["recipe"]["learning_rate"] == 1e-2
    assert result["data"] == corpus().record
    checkpoint = NativeCheckpoint(tmp_path)
    assert checkpoint.description.parameters == result["parameters"]
    card = (tmp_path / "README.md").read_text()
    for part in ("`kerple-log`", "kerple-eval train", corpus().record["train"]["text_sha256"], "by hand"):
        assert part in card


def test_every_step_attends_by_the_chosen_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses between the steps choose one of their own."""
    backends: dict[bool, set[str]] = {True: set(), False: set()}
    forward = Decoder.forward

    def spied(self: Decoder, *args: Any) -> torch.Tensor:
        backends[torch.is_grad_enabled()].add(self.backend)
        return forward(self, *args)

    monkeypatch.setattr(Decoder, "forward", spied)
    monkeypatch.setattr("kerple_eval.models.training.train.resolve_backend", lambda *_: "eager")
    made = run(recipe(), tmp_path / "out")
    assert backends == {True: {"eager"}, False: {"sdpa"}}
    assert made["attention"] == "eager"


def test_a_record_is_not_required(tmp_path: Path) -> None:
    """From Python there is no command line to put on the card."""
    train(recipe(steps=1), corpus(), tmp_path)
    assert (tmp_path / "README.md").exists()
    assert not (tmp_path / training.STATE).exists()


def test_the_recipe_decides_the_weights_not_the_threads_or_reports(tmp_path: Path) -> None:
    """How often it reports, or what ran before in the process, changes nothing."""
    train(recipe(), corpus(), tmp_path / "a", record=RECORD, reports=1)
    torch.manual_seed(99)
    torch.rand(5)
    train(replace(recipe()), corpus(), tmp_path / "b", record=RECORD, reports=8)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_threads_are_the_caller_s_again(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    try:
        run(
            recipe(threads=before + 1),
            tmp_path / "whole",
            on_step=lambda *_: inside.append(torch.get_num_threads()),
        )
        with pytest.raises(Killed):
            run(recipe(threads=before + 1), tmp_path / "killed", on_step=kill_at(2))
        assert set(inside) == {before + 1}
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
