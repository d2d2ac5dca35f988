"""What speed rests on, in counts that do not depend on the machine: bytes, products, passes.

A regression here is one that ``python -m tests.benchmarks`` would show as seconds on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import kerple_eval
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.scoring import score
from kerple_eval.protocols.sliding_window import SlidingWindow
from tests.helpers import tiny

CPU = torch.device("cpu")
LENGTH, WIDTH, HEADS, LAYERS = 2048, 32, 2, 2


def decoder(scheme: str) -> Decoder:
    shape = tiny.config(scheme, width=WIDTH, heads=HEADS, layers=LAYERS, mlp_width=64)
    return tiny.decoder(shape, dtype=torch.float32)


class Bytes(TorchDispatchMode):
    """Adds up the storage of everything that operations make; views of what is there are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.seen: set[int] = set()
        self.held: list[Tensor] = []  # an address counts once, so nothing may be freed meanwhile

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for x in (*args, *(kwargs or {}).values()):
            if isinstance(x, Tensor):
                self.seen.add(x.untyped_storage().data_ptr())
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.seen:
                self.seen.add(x.untyped_storage().data_ptr())
                self.held.append(x)
                self.total += x.untyped_storage().nbytes()
        return out


@torch.inference_mode()
def made(call: Callable[[], Any]) -> int:
    with Bytes() as counter:
        call()
    return counter.total


def test_a_kernel_costs_copies_of_queries_and_one_vector() -> None:
    """Beside nope's: queries turned round, output turned back, joined and laid out, a layer; one table."""
    tokens = torch.from_numpy(tiny.tokens(LENGTH))[None]
    plain, kernel = decoder("nope"), decoder("kerple-log")
    extra = made(lambda: kernel(tokens)) - made(lambda: plain(tokens))
    vectors = LAYERS * 4 * LENGTH * WIDTH * 4
    table = 16 * HEADS * (LENGTH + 1024) * 4
    assert 0 < extra < vectors + table
    kernel.backend = "eager"
    assert made(lambda: kernel(tokens)) > LAYERS * HEADS * LENGTH**2 * 4  # the counter sees score matrices


def test_bytes_of_a_pass_grow_with_its_length_alone() -> None:
    model = decoder("kerple-log")
    tokens = [torch.from_numpy(tiny.tokens(n))[None] for n in (2048, 4096)]
    sizes = [made(partial(model, ids)) for ids in tokens]
    assert sizes[1] < 2.05 * sizes[0]


@torch.inference_mode()
def products(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_a_sliding_window_multiplies_scored_rows_alone() -> None:
    """In the last layer's queries, output and MLP and in the head; torch counts no fused CPU attention."""
    model = DecoderModel(decoder("kerple-log"), CPU, torch.float32)
    length, stride = 256, 16
    ids = tiny.tokens(length + 5 * stride + 1)
    windows = [(0, w) for w in SlidingWindow(stride=stride).plan(len(ids), length, length)[1:]]
    assert {w.targets for _, w in windows} == {stride}
    found = products(lambda: list(score(model, [ids], windows)))
    keys = 2 * WIDTH * WIDTH
    rest = 2 * WIDTH * WIDTH + 2 * WIDTH * 64
    every = 2 * length * ((LAYERS - 1) * (keys + rest) + keys)
    last = 2 * stride * (rest + WIDTH * 11)
    assert found == len(windows) * (every + last)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the inputs of every forward pass."""
    shapes: list[tuple[int, int]] = []
    real = DecoderModel.logits

    def counted(self: DecoderModel, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        shapes.append((int(inputs.shape[0]), int(inputs.shape[1])))
        return real(self, inputs, rows)

    monkeypatch.setattr(DecoderModel, "logits", counted)
    return shapes


def test_six_prefix_lengths_are_one_pass_a_start(
    models: dict[str, str], tmp_path: Path, passes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes((32 + np.arange(3 * 512 + 1) % 90).astype(np.uint8).tobytes())
    lengths = [16, 32, 64, 128, 256, 512]
    words: dict[str, Any] = {"text": path, "protocols": "prefix", "lengths": lengths, "device": "cpu"}
    kerple_eval.evaluate(models["kerple-log"], out=tmp_path / "out", **words)
    assert passes == [(3, 512)]


def test_short_windows_share_passes_of_2048_tokens(
    models: dict[str, str], tmp_path: Path, passes: list[tuple[int, int]]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes((32 + np.arange(4096 + 1) % 90).astype(np.uint8).tobytes())
    words: dict[str, Any] = {"text": path, "lengths": [64, 512, 4096], "device": "cpu"}
    kerple_eval.evaluate(models["rope"], out=tmp_path / "out", **words)
    assert passes == [(32, 64), (32, 64), (4, 512), (4, 512), (1, 4096)]
    kerple_eval.evaluate(models["rope"], out=tmp_path / "out", **words)
    assert len(passes) == 5  # nothing is computed twice
