"""Models that train on after they were scored: nothing is left in them, and ranks may hold parts of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kerple_eval
from kerple_eval.types import UserError
from tests.helpers.ranks import as_ranks

TEXT = ["The union is strong, and the people are many. " * 6, "We the people hold these truths. " * 8]


class Tabled(torch.nn.Module):
    """Keeps a table of positions from its first call, in no buffer, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(256, 8)
        self.head = torch.nn.Linear(8, 256)
        self.table: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.table is None or len(self.table) < ids.shape[1]:
            self.table = torch.arange(ids.shape[1]).float().cos()[:, None]
        logits: torch.Tensor = self.head(self.embedding(ids) * self.table[: ids.shape[1]])
        return logits


class Counting(Tabled):
    """Counts in a buffer what it has seen, as mixtures of experts do."""

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(size))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.seen += 1
        return super().forward(ids)


def test_buffers_changed_in_place_are_put_back(tmp_path: Path) -> None:
    model = Counting()
    seen = model.seen
    kerple_eval.Watch(TEXT, [32], every=1, tokenizer="bytes")(model, 0)
    assert model.seen is seen
    assert not seen.any()
    runs = [
        kerple_eval.evaluate({"m": model}, tokenizer="bytes", text=TEXT, lengths=[32], out=tmp_path / "run")
        for _ in range(2)
    ]
    assert runs[0].summary().equals(runs[1].summary())
    with pytest.warns(UserWarning, match="buffer seen: changed in place by a pass, and too large"):
        kerple_eval.score(Counting(2 << 20), TEXT[0], length=32, tokenizer="bytes")


@pytest.mark.parametrize("inference", [False, True])
def test_what_a_model_keeps_serves_its_training(inference: bool) -> None:
    model, ids = Tabled(), torch.zeros(1, 16, dtype=torch.int64)
    watch = kerple_eval.Watch(TEXT, [32], every=1, tokenizer="bytes")
    with torch.inference_mode(inference):
        watch(model, 0)
    model(ids).sum().backward()
    assert model.embedding.weight.grad is not None


def scored_dtype(model: object) -> tuple[str, float]:
    frame = kerple_eval.evaluate({"m": model}, text=TEXT, lengths=[32], tokenizer="bytes").summary()
    return str(frame.dtype[0]), float(frame.nll[0])


def test_the_dtype_of_a_model_is_that_of_its_products() -> None:
    """Its parameters are float32 in all of these."""
    model = plain()
    dtype, loss = scored_dtype(model)
    assert dtype == "float32"

    def mixed(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: torch.Tensor = model(ids)
        return logits.float()

    found = scored_dtype(mixed)
    assert found[0] == "bfloat16"
    assert found[1] != loss
    with torch.autocast("cpu", torch.bfloat16):
        assert scored_dtype(model) == found
    assert scored_dtype(plain().double())[0] == "float64"
    assert scored_dtype(torch.nn.Embedding(256, 256))[0] == "float32"  # no product at all
    with pytest.raises(UserError, match=r"dtype float32: model m is in memory in torch\.bfloat16"):
        kerple_eval.evaluate({"m": mixed}, text=TEXT, lengths=[32], tokenizer="bytes", dtype="float32")


class Small(torch.nn.Module):
    """Of a class of its own: torch.compile passes over torch's."""

    def __init__(self, layers: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.layers = layers or plain()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(ids)
        return logits


@pytest.mark.parametrize("how", ["wrapped", "in place", "a layer"])
def test_a_compiled_model_is_not_compiled_for_scoring(how: str) -> None:
    programs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        programs.append(graph)
        return graph.forward

    model = Small()
    if how == "a layer":
        model.layers = Small(model.layers)
    watch = kerple_eval.Watch(TEXT, [32, 48, 64], every=1, tokenizer="bytes")
    first = watch(model, 0)
    assert first is not None
    compiled: object = model
    if how == "wrapped":
        compiled = torch.compile(model, backend=backend)
    elif how == "in place":
        model.compile(backend=backend)
    else:
        model.layers = torch.compile(model.layers, backend=backend)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    assert callable(compiled)
    compiled(ids)
    before = len(programs)
    assert before
    again = watch(compiled, 1)
    assert again is not None
    compiled(ids)
    assert len(programs) == before
    frame = again.summary()
    assert frame[frame.step == 0].nll.tolist() == frame[frame.step == 1].nll.tolist()
    sha256 = {model.weights_sha256 for model in again.specification.models}
    assert len(sha256) == 1  # the same model, compiled or not


SCRIPT = """
import sys, torch, torch.distributed as dist, kerple_eval
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from tests.models.test_lent import TEXT, llama, plain

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = lambda model: {n: getattr(v, "full_tensor", v.clone)() for n, v in model.state_dict().items()}

def sharded(model, **policy):
    for layer in getattr(getattr(model, "model", None), "layers", []):
        fully_shard(layer, mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, **policy)
    return model

def trained(watch):
    model = sharded(llama())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        if watch is not None:
            watch(model, step)
        ids = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(9 * step + dist.get_rank()))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(model)

out = sys.argv[1]
watched = trained(kerple_eval.Watch(TEXT, [32, 64], every=2, tokenizer="bytes", out=out + "/watch"))
assert all(torch.equal(tensor, watched[name]) for name, tensor in trained(None).items())
tensors = parallelize_module(plain(), mesh, {"1": ColwiseParallel(output_layouts=Replicate())})
for name, length, model in (
    ("plain", 32, sharded(plain())),
    ("tensor", 32, tensors),
    ("copies", 32, torch.nn.parallel.DistributedDataParallel(plain())),
    ("half", 32, sharded(plain(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))),
    ("far", 64, kerple_eval.from_module(sharded(llama()), extend="self-extend,window=16,group=4")),
):
    kerple_eval.evaluate({name: model}, text=TEXT, lengths=[length], tokenizer="bytes", out=out + "/" + name)
print("done", flush=True)
"""


def llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def plain() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(256, 8), torch.nn.Linear(8, 256))


def test_ranks_that_hold_parts_score_together(tmp_path: Path) -> None:
    """The training does not notice (``fully_shard``), and the numbers are the whole model's."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = as_ranks(tmp_path / "o", 2, [str(tmp_path)], script)
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-1500:] for one in done]
    extended = kerple_eval.from_module(llama(), extend="self-extend,window=16,group=4")
    for name, model, lengths, rows in (
        ("watch", llama(), [32, 64], 2), ("far", extended, [64], 1),
        ("plain", plain(), [32], 1), ("tensor", plain(), [32], 1), ("copies", plain(), [32], 1),
    ):  # fmt: skip
        run = kerple_eval.open_run(tmp_path / name)
        alone = kerple_eval.evaluate({"alone": model}, text=TEXT, lengths=lengths, tokenizer="bytes")
        found, wanted = run.specification.models[0], alone.specification.models[0]
        assert found.weights_sha256 == wanted.weights_sha256
        assert (found.parameters, found.scheme, found.other) == (
            wanted.parameters, wanted.scheme, wanted.other,
        )  # fmt: skip
        mean = run.summary()["nll"].iloc[:rows].tolist()
        assert mean == pytest.approx(alone.summary()["nll"].tolist(), rel=1e-6)
    assert kerple_eval.open_run(tmp_path / "watch").summary().step.unique().tolist() == [0, 2]
    half, full = (kerple_eval.open_run(tmp_path / name).summary() for name in ("half", "plain"))
    assert (half.dtype[0], full.dtype[0]) == ("bfloat16", "float32")
    assert half["nll"].tolist() == pytest.approx(full["nll"].tolist(), rel=1e-2)


class FullyShardedDataParallel(torch.nn.Sequential):
    """Named as the older wrapper."""


def test_parts_of_another_kind_are_refused() -> None:
    partial = plain()
    next(partial.parameters()).ds_id = 0  # type: ignore[attr-defined]
    for model, words in (
        (FullyShardedDataParallel(plain()), "Sharded.*: is in parts by FSDP 1, .*fully_shard"),
        (partial, "Sequential: is in parts by DeepSpeed ZeRO-3, .*fully_shard"),
    ):
        with pytest.raises(UserError, match=words):
            kerple_eval.evaluate({"m": model}, text=TEXT, lengths=[32], tokenizer="bytes")
