"""Models in memory: their losses against a plain loop, and that they are left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.in_memory import InMemoryCheckpoint
from kerple_eval.models.scoring import score
from kerple_eval.models.user_code import load_file
from kerple_eval.types import UserError, Window

V = 19


class Recurrent(nn.Module):
    """A GRU with dropout, which only eval mode switches off, and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(V, 8)
        self.dropout = nn.Dropout(0.5)
        self.gru = nn.GRU(8, 12, batch_first=True)
        self.head = nn.Linear(12, V)
        self.register_buffer("shift", torch.zeros(V))

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.gru(self.dropout(self.embedding(ids)))
        logits: Tensor = self.head(hidden) + self.shift
        return logits


def plain_loop(model: nn.Module, tokens: np.ndarray, window: Window) -> list[float]:
    """Losses of the window's targets, one forward pass each, in float64."""
    model.eval()
    losses = []
    for target in range(window.first_target, window.stop + 1):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens[window.start : target])[None])[0, -1].double()
        losses.append(float(logits.logsumexp(-1) - logits[int(tokens[target])]))
    return losses


def losses(checkpoint: InMemoryCheckpoint, tokens: np.ndarray, window: Window) -> np.ndarray:
    with checkpoint.borrowed():
        _ = checkpoint.description
        model = checkpoint.load(torch.device("cpu"), torch.float32)
        ((_, (found,)),) = score(model, [tokens], [(0, window)])
    return found


TOKENS = np.random.default_rng(0).integers(V, size=40)
WINDOW = Window(3, 30, 10)


def wrapped(model: nn.Module) -> dict[str, Any]:
    """The ways a user's own forward may answer."""

    class Own(LanguageModel):
        device, dtype = torch.device("cpu"), torch.float32

        def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
            yield from model.eval()(inputs)[:, -rows:].split(4, dim=1)

    return {
        "a module": model,
        "a function": model.eval().forward,
        "a tuple": lambda ids: (model.eval()(ids), "cache"),
        "an object": lambda ids: SimpleNamespace(logits=model.eval()(ids)),
        "a LanguageModel": Own(),
    }


def test_losses_are_those_of_a_plain_loop_whatever_the_model_is() -> None:
    expected = plain_loop(Recurrent(), TOKENS, WINDOW)
    for kind, model in wrapped(Recurrent()).items():
        found = losses(InMemoryCheckpoint(model, identity="test"), TOKENS, WINDOW)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=kind)


def test_a_module_is_left_as_it_was() -> None:
    model = Recurrent()
    model.dropout.eval()  # a mode of its own inside a training model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses(InMemoryCheckpoint(model), TOKENS, WINDOW)
    assert (model.training, model.gru.training, model.dropout.training) == (True, True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None and not p.is_inference() for p in model.parameters())
    model(torch.from_numpy(TOKENS)[None]).sum().backward()  # and it still trains
    with pytest.raises(RuntimeError, match="boom"), InMemoryCheckpoint(model).borrowed():
        assert not model.training
        raise RuntimeError("boom")
    assert model.training


def test_identity_is_that_of_the_state() -> None:
    def identity(model: nn.Module) -> str:
        with InMemoryCheckpoint(model).borrowed():
            return InMemoryCheckpoint(model).description.weights_sha256

    assert identity(Recurrent()) == identity(Recurrent())
    assert identity(Recurrent()) != identity(Recurrent(seed=1))
    moved = Recurrent()
    moved.shift += 1.0
    assert identity(moved) != identity(Recurrent())


class Scaled(nn.Module):
    """A module whose losses depend on more than its tensors."""

    def __init__(self, scale: float = 1.0, window: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, V)
        self.scale = scale
        self.options = SimpleNamespace(window=window)
        self._calls = 0  # of its own bookkeeping
        self.helper = object()

    def forward(self, ids: Tensor) -> Tensor:
        self._calls += 1
        return torch.mul(self.embedding(ids), self.scale)


SCALED = """
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, V)

    def forward(self, ids):  # COMMENT
        return BODY
"""


def test_identity_is_also_that_of_code_and_settings(tmp_path: Path) -> None:
    """What a notebook changes between two calls; ``identity`` stands in its place, tensors always count."""

    def identity(model: nn.Module, version: str | None = None) -> str:
        return InMemoryCheckpoint(model, identity=version).description.weights_sha256

    plain = identity(Scaled().eval())
    assert plain == identity(Scaled().train())
    assert len({plain, identity(Scaled(9.0)), identity(Scaled(window=5))}) == 3
    assert identity(Scaled(), "1") == identity(Scaled(9.0), "1") != identity(Scaled(), "2")
    moved = Scaled()
    with torch.no_grad():
        moved.embedding.weight += 1
    assert identity(moved, "1") != identity(Scaled(), "1")

    def written(body: str, comment: str = "") -> str:
        file = tmp_path / "mine.py"
        file.write_text(
            "import torch\nfrom torch import nn\nV = 19\n"
            + SCALED.replace("BODY", body).replace("COMMENT", comment)
            + "\ndef model():\n    return Scaled()\n"
        )
        return identity(load_file(file).model())

    once = written("self.embedding(ids)")
    assert once == written("self.embedding(ids)", "said better")
    assert once != written("self.embedding(ids) * 2")


@pytest.mark.parametrize("mask", [-float("inf"), -1e4, torch.finfo(torch.float32).min])
def test_masked_entries_hide_nothing(mask: float) -> None:
    """Models of a padded vocabulary mask what never occurs."""

    def masked(function: Any) -> Any:
        def answer(ids: Tensor) -> Tensor:
            logits: Tensor = function(ids)
            logits[..., V - 3 :] = mask
            return logits

        return answer

    with pytest.raises(UserError, match="sees tokens after the one it predicts from"):
        _ = InMemoryCheckpoint(masked(bidirectional), identity="x").description
    claimed = InMemoryCheckpoint(masked(follows_length), identity="x", prefix_invariant=True)
    assert not claimed.description.prefix_invariant
    causal = InMemoryCheckpoint(masked(Recurrent().eval()), identity="x", prefix_invariant=True)
    assert causal.description.prefix_invariant


def test_a_small_leak_of_small_logits_is_seen() -> None:
    """An untrained model's logits are small, and so is what it sees of later tokens."""
    causal = Recurrent().eval()
    for share, refused in ((1e-3, True), (0.0, False)):

        def leaking(ids: Tensor, share: float = share) -> Tensor:
            logits: Tensor = causal(ids) * 1e-2 + share * 1e-2 * bidirectional(ids)
            return logits

        if refused:
            with pytest.raises(UserError, match="sees tokens after"):
                _ = InMemoryCheckpoint(leaking, identity="x").description
        else:
            _ = InMemoryCheckpoint(leaking, identity="x").description


def test_a_call_that_the_model_refuses_is_its_own() -> None:
    class Needy(nn.Module):
        def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
            return ids

    with pytest.raises(UserError, match=r"Needy: its own code fails: TypeError: .*'positions'"):
        _ = InMemoryCheckpoint(Needy(), identity="x").description
    small = nn.Sequential(nn.Embedding(4, V))

    def fails(ids: Tensor) -> Tensor:
        return small(ids + 9)  # type: ignore[no-any-return]

    with pytest.raises(UserError, match=r"IndexError: index out of range in self \(at tests.models.test_in_"):
        _ = InMemoryCheckpoint(fails, identity="x").description


def test_a_transformers_model_without_a_head_is_named() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=V, **sizes))
    with pytest.raises(UserError, match=r"LlamaModel: gives no logits .* by AutoModelForCausalLM"):
        _ = InMemoryCheckpoint(model).description


def test_a_function_needs_a_name_for_its_version() -> None:
    function = Recurrent().eval().forward
    with pytest.raises(UserError, match="no state whose sha256"):
        _ = InMemoryCheckpoint(function).description
    named = InMemoryCheckpoint(function, identity="gru-v1").description
    assert named.details["identity"] == "the caller's word"
    assert (named.scheme, named.train_length, named.vocab_size) == ("unknown", None, V)


def test_what_the_caller_says_is_recorded() -> None:
    checkpoint = InMemoryCheckpoint(
        Recurrent().eval(), scheme="none", train_length=64, prefix_invariant=True, seed=3
    )
    description = checkpoint.description
    assert (description.scheme, description.train_length, description.seed) == ("none", 64, 3)
    assert description.prefix_invariant


def bidirectional(ids: Tensor) -> Tensor:
    """Logits that know the next token."""
    return torch.nn.functional.one_hot(ids.roll(-1, dims=1), V).float() * 9


def follows_length(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, V).float() * ids.shape[1]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (bidirectional, "sees tokens after the one it predicts from"),
        (lambda ids: torch.zeros(len(ids), ids.shape[1] - 1, V), r"logits of shape \(1, 1, 19\)"),
        (
            lambda ids: torch.zeros(1, *ids.shape[1:], V),
            r"logits of shape \(1, 48, 19\) for ids of shape \(3, 48\)",
        ),
        (lambda ids: torch.zeros(*ids.shape, V + ids.shape[1]), "expected .*21"),
        (lambda ids: torch.zeros(ids.shape), "expected .batch, tokens, vocabulary"),
        (lambda ids: None, "returned NoneType"),
        (lambda ids: {"logits": 1}, "returned dict"),
    ],
)
def test_what_is_no_language_model_is_refused(function: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = InMemoryCheckpoint(function, identity="x").description


def test_a_claim_of_prefix_invariance_is_measured() -> None:
    assert not InMemoryCheckpoint(
        follows_length, identity="x", prefix_invariant=True
    ).description.prefix_invariant


def test_a_model_on_two_devices_is_refused() -> None:
    model = Recurrent()
    model.head = nn.Linear(12, V, device="meta")
    with pytest.raises(UserError, match=r"several devices \(cpu, meta\)"):
        _ = InMemoryCheckpoint(model).description
    with pytest.raises(UserError, match=r"must be a torch\.nn\.Module, a function"):
        InMemoryCheckpoint("alibi")  # type: ignore[arg-type]
