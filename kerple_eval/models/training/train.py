"""Training of the native decoder: ``kerple-eval train``.

AdamW, linear warm-up then cosine to zero, gradient clipping, bfloat16 autocast where the device has
the instructions. Training text is packed: documents in an order drawn from the seed, each followed by
the end-of-document token, cut into sequences of L inputs and L targets that share one token with the
next; each epoch draws a new offset and order. Batch s is a function of (seed, s) alone, so a run
killed at any moment and started again gives the same weights (on the CPU to the bit; CUDA adds up a
kernel's gradient in no fixed order).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kerple_eval.data.tokenizer import BYTE_TOKENIZER, Tokenizer
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.decoder.scored import DecoderModel, check_scheme
from kerple_eval.models.native import CONFIG, write_checkpoint
from kerple_eval.models.scoring import NotFiniteError, score
from kerple_eval.models.training.batches import PackedBatches
from kerple_eval.models.training.card import card
from kerple_eval.models.training.corpus import Corpus
from kerple_eval.models.training.state import TrainingState, TrainingStep, read_state, write_state
from kerple_eval.protocols.full_context import FullContext
from kerple_eval.records.reductions import total_loss
from kerple_eval.support.files import LOCK, is_file, is_folder, locked, write_atomically
from kerple_eval.support.interrupts import interrupt_flag
from kerple_eval.types import UserError

STATE = "training-state.pt"
SAVE_SECONDS = 60.0
HELD_OUT_SAMPLE = 65536  # tokens of the periodic held-out figure; the final one reads everything


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, beside the data. Lengths in tokens."""

    model: DecoderConfig
    seed: int
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    precision: str  # float32 | bfloat16 (autocast)
    device: str
    threads: int
    start: str = ""  # sha256 of the weights that training goes on from


def train(
    recipe: Recipe,
    corpus: Corpus,
    out: Path,
    *,
    weights_dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = BYTE_TOKENIZER,
    start: Decoder | None = None,
    record: dict[str, Any] | None = None,
    reports: int = 20,
    on_report: Callable[[TrainingStep], None] = lambda report: None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    watch: Callable[[Decoder, int], None] = lambda decoder, step: None,
    watch_every: int = 0,
) -> dict[str, Any]:
    """Train to the end (or on from a saved state) and write the checkpoint to ``out``.

    ``start`` is the model to go on from, of the recipe's configuration; it is trained in place. AdamW begins
    without moments, and learning rate and order of the text are those of a new training.

    ``watch`` is called after every ``watch_every``-th step (0: never) and leaves the decoder as it was. The
    state is saved before, and ``watch`` called again where a training goes on from it: what was watched is
    of these weights even where the same steps do not repeat to the bit.

    Returns the training record that ``config.json`` carries.

    Raises:
        UserError: ``out`` holds a finished checkpoint, another run's state, or foreign files.
        KeyboardInterrupt: Ctrl-C; the state is saved, the same command goes on from it.
    """
    most, length = scheme_of(recipe.model).max_positions, recipe.model.train_length
    if most is not None and length > most:
        raise UserError(f"{recipe.model.scheme_name} has {most} positions: too few for {length} tokens")
    state_file = out / STATE
    if not is_file(state_file):  # it is there until all files are written
        if is_file(out / CONFIG):
            raise UserError(f"{out}: holds a finished checkpoint; choose another --out")
        if is_folder(out) and any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"{out}: is not empty and holds no training state to continue from")
    described = {key: value for key, value in asdict(recipe).items() if value != "" or key != "start"}
    identity = {"recipe": described, "data": corpus.record}
    with _threads(recipe.threads), locked(out):
        run = _Run(recipe, corpus, start)
        if state_file.exists():
            run.restore(state_file, identity)
        every = max(1, recipe.steps // reports)
        with interrupt_flag() as interrupted:
            if run.step and watch_every and run.step % watch_every == 0:
                watch(run.decoder, run.step)
            while run.step < recipe.steps:
                loss = run.advance()
                on_step(run.step, loss)
                if run.step % every == 0 or run.step == recipe.steps:
                    on_report(run.report())
                done = run.step == recipe.steps
                watched = watch_every and run.step % watch_every == 0
                if done or watched or interrupted() or time.monotonic() - run.saved > SAVE_SECONDS:
                    run.save(state_file, identity)
                if interrupted():
                    raise KeyboardInterrupt
                if watched:
                    watch(run.decoder, run.step)
        # All is saved: a signal may end what follows at once, which takes minutes on long held-out text.
        final = run.finish(weights_dtype)
        training = {
            **(record or {}),
            "recipe": {k: v for k, v in described.items() if k not in ("model", "start")},
            "data": corpus.record,
            "attention": run.backend,
            "parameters": sum(p.numel() for p in run.decoder.parameters()),
            "tokens_seen": recipe.steps * recipe.batch * recipe.model.train_length,
            "hours": round(run.seconds / 3600, 4),
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
            "held_out": final,
            "curve": [asdict(report) for report in run.reports],
        }
        text = card(out.name, recipe.model.to_json(), recipe.seed, training)
        write_atomically(out / "README.md", text.encode())
        write_checkpoint(
            out,
            run.decoder,
            seed=recipe.seed,
            dtype=weights_dtype,
            tokenizer=tokenizer,
            training=training,
        )
        (out / LOCK).unlink(missing_ok=True)  # before the state, with which the same command would end this
        state_file.unlink(missing_ok=True)
    return training


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's CPU threads inside; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """Model, optimiser and position in the data: what a saved state holds."""

    def __init__(self, recipe: Recipe, corpus: Corpus, start: Decoder | None = None) -> None:
        self.recipe = recipe
        self.corpus = corpus
        self.device = torch.device(recipe.device)
        self.decoder = Decoder(recipe.model) if start is None else start
        if start is None:
            self.decoder.reset_parameters(recipe.seed)
        check_scheme(self.decoder)
        self.decoder.to(self.device).train()
        narrow = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
        self.backend = resolve_backend(
            "auto", self.decoder.scheme, recipe.model.scheme_name, self.device, narrow
        )
        self.optimizer = _optimizer(self.decoder, recipe)
        self.batches = PackedBatches(corpus, recipe.model.train_length, recipe.batch, recipe.seed)
        self.step = 0
        self.losses: list[float] = []
        self.reports: list[TrainingStep] = []
        self.seconds = 0.0
        self.saved = time.monotonic()

    def advance(self) -> float:
        """One optimiser step; the batch's mean loss in nats per token."""
        began = time.monotonic()
        recipe = self.recipe
        tokens = torch.from_numpy(self.batches(self.step)).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(self.step, recipe.warmup, recipe.steps)
        self.decoder.scheme.begin_step(
            torch.Generator().manual_seed((recipe.seed * 1_000_003 + self.step) % 2**64)
        )
        narrow = recipe.precision == "bfloat16"
        self.decoder.backend = self.backend  # held-out losses between steps may be computed by another
        with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
            logits = self.decoder.head(self.decoder(tokens[:, :-1]))
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.decoder.scheme.project_()
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"training diverged: loss {value} at step {self.step}; lower --lr")
        self.losses.append(value)
        self.seconds += time.monotonic() - began
        return value

    def report(self) -> TrainingStep:
        began = time.monotonic()
        nats, _, targets = self.held_out(self.decoder, HELD_OUT_SAMPLE)
        self.seconds += time.monotonic() - began
        mean = float(np.mean(self.losses))
        self.losses = []
        report = TrainingStep(self.step, mean, nats / targets, round(self.seconds, 1))
        self.reports.append(report)
        return report

    def held_out(self, decoder: Decoder, tokens: int | None) -> tuple[float, int | None, int]:
        """Summed loss (nats), bytes and number of targets, full-context at the trained length.

        About ``tokens`` targets in whole windows spread evenly, or all where None.
        """
        length = self.recipe.model.train_length
        documents = self.corpus.held_out
        windows = [
            (index, window)
            for index, document in enumerate(documents)
            for window in FullContext().plan(len(document), length, length)
        ]
        if tokens is not None and len(windows) * length > tokens:
            step = -(-len(windows) * length // tokens)
            windows = windows[::step]
        model = DecoderModel(decoder, self.device, torch.float32)
        ids = [document.ids for document in documents]
        try:
            total = sum(total_loss(losses) for _, losses in score(model, ids, windows))
        except NotFiniteError as error:
            raise UserError(f"training diverged: held-out {error} at step {self.step}; lower --lr") from None
        decoder.train()
        counts = [documents[index].byte_count(window) for index, window in windows]
        byte_count = None if None in counts else sum(count or 0 for count in counts)
        return total, byte_count, sum(window.targets for _, window in windows)

    def finish(self, dtype: torch.dtype) -> dict[str, Any]:
        """The figure of the weights as they will be stored, on all held-out text."""
        stored = Decoder(self.recipe.model)
        stored.load_state_dict(self.decoder.state_dict())
        if dtype != torch.float32:
            for name, parameter in stored.named_parameters():
                if not name.startswith("scheme."):
                    parameter.data = parameter.data.to(dtype).to(torch.float32)
        nats, byte_count, targets = self.held_out(stored, None)
        bits = None if byte_count is None else nats / (math.log(2) * byte_count)
        gain = None
        before = [r for r in self.reports if r.step <= 0.9 * self.recipe.steps]
        if before:
            gain = 1 - self.reports[-1].held_out_loss / before[-1].held_out_loss
        return {
            "protocol": "full-context",
            "length": self.recipe.model.train_length,
            "documents": len(self.corpus.held_out),
            "targets": targets,
            "nll": nats / targets,
            "bits_per_byte": bits,
            "gain_of_last_tenth": gain,
        }

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        write_state(
            path,
            identity,
            TrainingState(
                self.step, self.seconds, self.losses, self.reports,
                self.decoder.state_dict(), self.optimizer.state_dict()["state"],
            ),
        )  # fmt: skip
        self.saved = time.monotonic()

    def restore(self, path: Path, identity: dict[str, Any]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = read_state(path, identity, self.recipe.steps, self.decoder.state_dict(), parameters)
        self.decoder.load_state_dict(state.decoder)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})
        self.step, self.seconds = state.step, state.seconds
        self.losses, self.reports = state.losses, state.reports


def schedule(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine to zero at ``steps``."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizer(decoder: Decoder, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; biases, norms and the scheme's parameters do not decay."""
    decay: list[torch.nn.Parameter] = []
    keep: list[torch.nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        matrix = parameter.ndim >= 2 and not name.startswith("scheme.")
        (decay if matrix else keep).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": recipe.weight_decay},
            {"params": keep, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        fused=True,
    )
