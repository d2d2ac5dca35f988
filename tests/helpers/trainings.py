"""A toy corpus, a recipe of eight steps, and a kill after one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerple_eval.data.documents import Document, text_hash, tokenize
from kerple_eval.data.tokenizer import ByteTokenizer
from kerple_eval.models.training.corpus import Corpus
from kerple_eval.models.training.train import Recipe, train
from tests.helpers import tiny

LENGTH = 8


RECORD = {"command": ["kerple-eval", "train"]}


def corpus(salt: str = "") -> Corpus:
    parts = {
        "train": [Document(f"{n}{salt}", "abcabdabe" * (8 + n)) for n in range(3)],
        "held_out": [Document("held", "abcabdabe" * 4)],
    }
    record: dict[str, Any] = {"task": "toy", "split": "by hand", "tokenizer": "bytes"}
    for name, part in parts.items():
        size = sum(len(d.text) for d in part)
        record[name] = {"documents": len(part), "bytes": size, "text_sha256": text_hash(part)}
    train_part, held_out = ([tokenize(d, ByteTokenizer()) for d in parts[n]] for n in ("train", "held_out"))
    return Corpus(train_part, held_out, 0, record)


def recipe(scheme: str = "kerple-log", **changes: Any) -> Recipe:
    model = tiny.config(scheme, vocab_size=256, train_length=LENGTH, **changes.pop("model", {}))
    values: dict[str, Any] = {
        "seed": 1, "steps": 8, "batch": 2, "learning_rate": 1e-2, "warmup": 3, "weight_decay": 0.1,
        "beta1": 0.9, "beta2": 0.95, "clip": 1.0, "precision": "float32", "device": "cpu", "threads": 1,
    }  # fmt: skip
    return Recipe(model=model, **(values | changes))


def run(made: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    return train(made, corpus(), out, record=RECORD, reports=4, **options)


class Killed(BaseException):
    """Stands for a kill: nothing of the package runs after it."""


def kill_at(step: int) -> Any:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Killed

    return on_step
