"""A training as it is asked for, by the command or from Python: checked, then read into a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kerple_eval.data.task import parse_task
from kerple_eval.data.tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.devices import DTYPES, precision_for, resolve_device
from kerple_eval.models.training.corpus import Corpus, training_corpus
from kerple_eval.models.training.ngram import LONGEST, bits_per_byte
from kerple_eval.models.training.start import Start, start_from
from kerple_eval.models.training.state import TrainingStep
from kerple_eval.models.training.train import Recipe, train
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.support.registry import unknown
from kerple_eval.support.typed_json import LARGEST
from kerple_eval.types import UserError

#: Sizes of a new model; one that goes on keeps its own.
SIZES = {"layers": 4, "width": 128, "heads": 4, "tie_embeddings": False}
_LEAST = {
    "length": 2, "seed": 0, "steps": 1, "layers": 1, "width": 1, "heads": 1, "batch": 1, "warmup": 0,
    "threads": 1, "ngram": 0,
}  # fmt: skip
_CHOICES = {
    "precision": ("auto", "float32", "bfloat16"),
    "store": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
}


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """The settings of :func:`kerple_eval.train`, and ``command``: what the card says it was made by."""

    length: int
    scheme: str | None = None
    start: str | None = None
    extend: str | None = None
    task: str | None = None
    text: tuple[str, ...] = ()
    seed: int = 1
    steps: int = 2000
    tokenizer: str | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    tie_embeddings: bool | None = None
    batch: int = 8
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "auto"
    store: str = "float32"
    ngram: int | None = None
    device: str = "auto"
    threads: int | None = None
    command: Sequence[str] = ()

    def prepared(self) -> Training:
        """Everything read and checked; nothing is written or computed.

        Raises:
            UserError: a setting that is wrong or does not go with another, or text that cannot be read.
        """
        self._check()
        device = resolve_device(self.device)
        start = None
        if self.start:
            start = start_from(self.start, self.extend, self.length, self.seed, self.tokenizer)
            tokenizer, model = start.tokenizer, start.decoder.config
        else:
            tokenizer = JsonTokenizer(Path(self.tokenizer)) if self.tokenizer else ByteTokenizer()
            model = self._new_model(tokenizer)
        scheme_of(model)  # refuses a wrong name or option before any text is read
        if self.ngram is not None and not isinstance(tokenizer, ByteTokenizer):
            raise UserError("--ngram counts bytes; it cannot be used with another tokeniser")
        recipe = Recipe(
            model=model, seed=self.seed, steps=self.steps, batch=self.batch, learning_rate=self.lr,
            warmup=self.warmup, weight_decay=self.weight_decay, beta1=0.9, beta2=0.95, clip=self.clip,
            precision=precision_for(self.precision, device), device=device.type,
            threads=self.threads or torch.get_num_threads(),
            start=start.record["weights_sha256"] if start else "",
        )  # fmt: skip
        corpus = training_corpus(parse_task(self.task) if self.task else None, self.text, tokenizer)
        record: dict[str, Any] = {"command": list(self.command)}
        if start is not None:
            record["from"] = start.record
        if self.ngram is not None:
            texts = ([d.ids for d in corpus.train], [d.ids for d in corpus.held_out])
            record["ngram"] = {"order": self.ngram, "bits_per_byte": bits_per_byte(*texts, self.ngram)}
        return Training(recipe, corpus, tokenizer, start, DTYPES[self.store], record)

    def _check(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"train: {name}={value!r} must be a whole number, at least {least}")
        if self.ngram is not None and self.ngram > LONGEST:
            raise UserError(f"train: ngram={self.ngram} must be at most {LONGEST}")
        if self.seed > LARGEST:
            raise UserError(f"train: seed={self.seed} must be at most {LARGEST}, which is 2^63 - 1")
        for name, above in (("lr", True), ("clip", True), ("weight_decay", False)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (above and value == 0):
                bound = "above 0" if above else "at least 0"
                raise UserError(f"train: {name}={value!r} must be a number {bound}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(f"{name} of train", str(getattr(self, name)), choices)
        if (self.task is None) == (not self.text):
            raise UserError("train needs text: either --task NAME or --text FILE")
        if (self.scheme is None) == (self.start is None):
            raise UserError(
                "train needs either --scheme SCHEME, for a new model, or --from MODEL, to go on from one"
            )
        if self.extend is not None and self.start is None:
            raise UserError("--extend changes the scheme of a trained model: it goes with --from MODEL")
        given = [name for name in SIZES if getattr(self, name) is not None]
        if self.start is not None and given:
            option = "--" + given[0].replace("_", "-")
            raise UserError(
                f"{option} is a size of a new model; --from {self.start} keeps its own: leave it out"
            )

    def _new_model(self, tokenizer: Tokenizer) -> DecoderConfig:
        spec = parse_scheme(self.scheme or "")
        own = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        sizes: dict[str, Any] = SIZES | own
        return DecoderConfig(
            vocab_size=tokenizer.vocab_size, mlp_width=4 * sizes["width"], train_length=self.length,
            scheme=spec.name, scheme_options=dict(spec.options), modifiers=dict(spec.modifier_options),
            **sizes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Training:
    """A training that can begin, or go on from the state that it was stopped in."""

    recipe: Recipe
    corpus: Corpus
    tokenizer: Tokenizer
    start: Start | None
    store: torch.dtype
    record: dict[str, Any]

    def run(
        self,
        out: Path,
        *,
        on_report: Callable[[TrainingStep], None] = lambda report: None,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
        watch: Callable[[Decoder, int], None] = lambda decoder, step: None,
        watch_every: int = 0,
    ) -> dict[str, Any]:
        """See :func:`kerple_eval.models.training.train.train`."""
        return train(
            self.recipe, self.corpus, out, weights_dtype=self.store, tokenizer=self.tokenizer,
            start=self.start.decoder if self.start else None, record=self.record, on_report=on_report,
            on_step=on_step, watch=watch, watch_every=watch_every,
        )  # fmt: skip
