"""A model watched while it trains: same weights with and without, same targets, steps in the records."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import kerple_eval
from kerple_eval.cli.main import cli
from kerple_eval.evaluation.watch import Watch
from kerple_eval.models.training.train import _Run
from kerple_eval.records import run as records_run
from kerple_eval.records.cell import COLUMNS
from kerple_eval.records.run import write_summary
from kerple_eval.stats.groups import stem
from kerple_eval.types import CellKey, UserError
from tests.helpers.ranks import as_ranks

TEXT = ["The union is strong, and the people are many. " * 6, "We the people hold these truths. " * 8]
FAST: dict[str, Any] = {"tokenizer": "bytes", "lengths": [32, 64], "every": 2}


class Careless(torch.nn.Module):
    """Draws from every generator whenever it is called, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 8)
        self.dropout = torch.nn.Dropout(0.3)
        self.head = torch.nn.Linear(8, 256)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        torch.rand(1), np.random.rand(), random.random()
        self.calls = self.calls + 1
        logits: torch.Tensor = self.head(self.dropout(self.embedding(ids)))
        return logits


def trained(watch: Any, steps: int = 6) -> tuple[Careless, list[Any]]:
    """Weights and random states after a few steps on random bytes."""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    model = Careless()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(1, steps + 1):
        ids = torch.randint(256, (2, 9))
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch(model, step)
        optimizer.zero_grad()
    states = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index,union-attr]
    return model, states


def test_training_does_not_notice(tmp_path: Path) -> None:
    watch = kerple_eval.Watch(TEXT, out=tmp_path / "r", share=1.0, **FAST)
    with pytest.raises(UserError, match="no step has been scored yet"):
        _ = watch.run
    (plain, states), (watched, again) = trained(None), trained(watch)
    assert states == again
    assert watched.training
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    run = watch.run
    frame = run.summary()
    assert frame.model.tolist() == [f"model@{n}" for n in (2, 4, 6) for _ in range(2)]
    assert frame.step.tolist() == [2, 2, 4, 4, 6, 6]
    assert frame.targets_hash.nunique() == 1
    assert frame.nll.nunique() == 3  # a model without memory: length changes nothing
    assert run.losses(model="model@4").step.unique().tolist() == [4]
    with (tmp_path / "r" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6
    alone = kerple_eval.evaluate({"m": watched}, text=TEXT, tokenizer="bytes", lengths=[32, 64]).summary()
    assert frame.nll.tolist()[-2:] == alone.nll.tolist()
    assert "step" not in alone


def test_a_run_goes_on_with_the_same_training_alone(tmp_path: Path) -> None:
    out = tmp_path / "r"
    trained(kerple_eval.Watch(TEXT, out=out, **FAST), 2)
    before = (out / "summary.csv").read_bytes()
    trained(kerple_eval.Watch(TEXT, out=out, **FAST), 2)
    assert (out / "summary.csv").read_bytes() == before
    trained(kerple_eval.Watch(TEXT, out=out, **FAST), 4)
    assert (out / "summary.csv").read_bytes().startswith(before)
    with pytest.raises(UserError, match="model@2 with other weights"):
        kerple_eval.Watch(TEXT, out=out, **FAST)(Careless(), 2)
    with pytest.raises(UserError, match="cannot join"):
        kerple_eval.Watch(TEXT[:1], out=out, **FAST)(Careless(), 8)


def test_a_step_reads_its_own_cells_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = records_run.read_cell

    def counted(folder: Path, key: CellKey) -> Any:
        reads.append(key.model)
        return read(folder, key)

    monkeypatch.setattr(records_run, "read_cell", counted)
    model, watch = Careless(), kerple_eval.Watch(TEXT, out=tmp_path, **FAST)
    for step in (2, 4, 6):
        reads.clear()
        watch(model, step)
        assert set(reads) == {f"model@{step}"}
    begun = (tmp_path / "summary.csv").read_text()
    reads.clear()
    kerple_eval.Watch(TEXT, out=tmp_path, **FAST)(model, 8)
    assert set(reads) == {f"model@{step}" for step in (2, 4, 6, 8)}  # what another process has scored
    ended = (tmp_path / "summary.csv").read_text()
    assert ended.startswith(begun)
    write_summary(tmp_path / "anew", [cell.summary() for cell in kerple_eval.open_run(tmp_path).cells()])
    assert ended == (tmp_path / "anew" / "summary.csv").read_text()


def test_a_generator_of_texts_is_there_at_every_step() -> None:
    watch = kerple_eval.Watch((text for text in TEXT), share=1.0, **FAST)
    for step in (0, 2):
        run = watch(Careless(), step)
    assert run is not None
    assert run.losses().groupby("model")["document"].nunique().to_dict() == {"model@0": 2, "model@2": 2}


def test_scoring_keeps_to_its_share() -> None:
    watch = kerple_eval.Watch(TEXT, share=1e-9, **FAST)
    trained(watch)
    assert watch.skipped == [4, 6]
    assert watch.run.summary().step.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every 0"),
        ({"share": 5}, "share 5"),
        ({"name": "a@b"}, "without @"),
        ({"document": 2}, "unknown option 'document': did you mean 'documents'"),
        ({"precision": "1%"}, "precision: steps would be scored on different documents"),
    ],
)
def test_what_is_wrong_is_said_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        kerple_eval.Watch(TEXT, **{**FAST, **options})


def test_steps_are_no_seeds() -> None:
    assert [stem(x) for x in ("m@100", "m@2", "log-s12", "log12", "v1.5")] == [
        "m@100",
        "m@2",
        "log",
        "log",
        "v1",
    ]


def test_the_figure_of_a_training(tmp_path: Path) -> None:
    out = tmp_path / "r"
    trained(kerple_eval.Watch(TEXT, out=out, **FAST))
    figure = tmp_path / "t.svg"
    done = CliRunner().invoke(cli, ["plot", str(out), "--kind", "training", "--out", str(figure)])
    assert done.exit_code == 0, done.stderr
    drawn = figure.read_text()
    assert "model at 32" in drawn
    assert "training step" in drawn
    other = kerple_eval.evaluate({"m": Careless()}, text=TEXT, tokenizer="bytes", lengths=[32])
    with pytest.raises(UserError, match="no finished cell is of a step"):
        other.plot("training", tmp_path / "x.png")


def test_in_a_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: PLC0415

    def weights(callbacks: list[Any]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=256, n_positions=64, n_embd=8, n_layer=1, n_head=2)
        rows = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(8)]
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "t"), max_steps=4, per_device_train_batch_size=2, report_to=[],
            save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
        )  # fmt: skip
        trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows, callbacks=callbacks)
        trainer.train()
        return trainer.model.state_dict()

    watch = kerple_eval.Watch(TEXT, **FAST)
    with_watch, without = weights([watch]), weights([])
    assert watch.run.summary().step.unique().tolist() == [2, 4]
    assert all(torch.equal(with_watch[name], tensor) for name, tensor in without.items())


SCRIPT = """
import os, sys, time, torch, torch.distributed as dist
import kerple_eval, kerple_eval.evaluation.watch as module
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(256, 4), torch.nn.Linear(4, 256))
watch = kerple_eval.Watch({text!r}, [32], every=1, tokenizer="bytes", out={out!r})
run = watch(model, 1)
assert (run is None) == (dist.get_rank() != 0)
module.MEET = 4.0
if dist.get_rank() == 0:
    began = time.monotonic()
    try:
        watch(model, 2)
    except kerple_eval.UserError as error:
        print("alone:", error, time.monotonic() - began < 30, flush=True)
else:
    time.sleep(8)
os._exit(0)
"""


def test_on_all_ranks_or_not_at_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(text=TEXT, out=str(tmp_path / "r")))
    done = as_ranks(tmp_path / "o", 2, [], script)
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-800:] for one in done]
    assert "alone: watch at step 2: the other ranks did not come within 4 s" in done[0].stdout
    assert "True" in done[0].stdout
    assert kerple_eval.open_run(tmp_path / "r").summary().step.tolist() == [1]


def test_a_training_that_does_not_repeat_to_the_bit_is_watched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: killed right after a step was watched, it goes on from weights that were watched."""
    text = tmp_path / "book.txt"
    text.write_text("The union is strong, and the people are many. " * 400)
    shape = "--length 16 --steps 8 --layers 1 --width 8 --heads 2 --batch 2 --device cpu --threads 1"
    words = ["train", "--scheme", "alibi", "--text", str(text), *shape.split(), "--out", str(tmp_path / "c")]
    words += ["--watch", "16,32", "--watch-every", "2"]
    real, scored = _Run.advance, Watch.__call__

    def advance(run: _Run, noise: float) -> float:
        loss = real(run)
        with torch.no_grad():
            next(run.decoder.parameters()).view(-1)[0] += noise
        return loss

    def killed(watch: Any, model: Any, step: int) -> Any:
        scored(watch, model, step)
        if step == 4:
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "advance", lambda run: advance(run, 1e-6))
        patched.setattr(Watch, "__call__", killed)
        assert CliRunner().invoke(cli, words).exit_code == 137
    monkeypatch.setattr(_Run, "advance", lambda run: advance(run, 2e-6))
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert kerple_eval.open_run(tmp_path / "c-watch").summary().step.unique().tolist() == [2, 4, 6, 8]


def test_train_watches_without_a_trace(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    text = tmp_path / "book.txt"
    text.write_text("The union is strong, and the people are many. " * 400)
    shape = "--length 16 --steps 4 --layers 1 --width 8 --heads 2 --batch 2 --device cpu --threads 1"
    words = ["train", "--scheme", "alibi", "--text", str(text), *shape.split()]
    for out, more in (
        ("a", []),
        ("b", ["--watch", "16,32", "--watch-every", "2", "--log-to", "tensorboard"]),
    ):
        done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / out), *more])
        assert done.exit_code == 0, done.output
    plain, watched = ((tmp_path / out / "model.safetensors").read_bytes() for out in "ab")
    assert plain == watched
    frame = kerple_eval.open_run(tmp_path / "b-watch").summary()
    assert frame.model.tolist() == ["b@2", "b@2", "b@4", "b@4"]
    assert frame.status.tolist() == ["ok"] * 4
    assert len(list((tmp_path / "b-watch" / "tensorboard").iterdir())) == 1
    for option, value in (("--watch-every", "2"), ("--log-to", "wandb")):
        refused = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "c"), option, value])
        assert refused.exit_code == 2
        assert f"{option} goes with --watch" in refused.stderr
