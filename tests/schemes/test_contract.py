"""What every line of the scheme catalogue promises, and that one file and one line add a scheme."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder import network as decoder_module
from kerple_eval.models.decoder.attention import attention, eager_attention, make_table
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.schemes.assembly import may_be_per_layer
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES, SchemeEntry
from kerple_eval.support.registry import Registry, load
from kerple_eval.types import Geometry, UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

NAMES = list(SCHEMES)
every_scheme = pytest.mark.parametrize("name", NAMES)


def logits(made: Decoder, tokens: np.ndarray) -> Tensor:
    """``[N, V]`` of one sequence."""
    with torch.no_grad():
        out: Tensor = made.head(made(torch.from_numpy(tokens)[None]))[0]
    return out


def test_the_seven_schemes_are_there() -> None:
    assert set(tiny.SCHEMES) <= set(NAMES)


@every_scheme
def test_the_line_names_a_scheme_with_a_source(name: str) -> None:
    entry = SCHEMES[name]
    cls = load(entry.target)
    assert issubclass(cls, Scheme)
    source = inspect.getmodule(cls).__doc__ or ""
    assert "Source:" in source
    assert entry.name == name
    years = [2000 + int(part[:2]) for part in entry.paper.split("arXiv ")[1:]]  # arXiv YYMM.NNNNN
    assert not years or entry.year == min(years)


@every_scheme
@each_case("heads", [1, 2, 3, 12])
def test_parameter_formula(name: str, heads: int) -> None:
    """``2 H``, ``R H``, ``P W`` or ``0``: the real count, the same for one layer and for three."""
    for layers in (1, 3):
        made = Decoder(tiny.config(name, layers=layers, heads=heads, width=4 * heads))
        part = made.scheme.at(0)
        letters = {
            "H": heads,
            "W": 4 * heads,
            "d": 4,
            "R": getattr(part, "buckets", None),
            "P": getattr(part, "positions", None) or part.max_positions,
            "M": getattr(part, "units", None),
            "C": getattr(part, "columns", None),
            "K": len(getattr(part, "ranges", ())),
        }
        formula, _, apart = SCHEMES[name].parameters.partition(" a ")
        assert apart in {"", "layer"}
        each = sum(
            math.prod(
                letters[factor] if factor in letters else int(factor)  # type: ignore[misc]
                for factor in term.split()
            )
            for term in formula.split("+")
        )
        expected = each * (layers if apart else 1)
        claimed = [p for n, p in made.named_parameters() if n.startswith("scheme.")]
        assert sum(p.numel() for p in claimed) == expected
        assert [p.shape for p in made.scheme.parameters()] == [p.shape for p in claimed]


PER_LAYER = [name for name in NAMES if may_be_per_layer(name)]


def test_per_layer_is_for_schemes_that_share_parameters() -> None:
    kerple = {name for name in NAMES if name.startswith("kerple-")}
    assert set(PER_LAYER) == kerple | {"t5", "fire"}
    for name in set(NAMES) - set(PER_LAYER):
        options = {**tiny.config(name).scheme_options, "per_layer": True}
        with pytest.raises(UserError, match=f"{name}: it takes no per_layer; these do: kerple-log, "):
            scheme_of(tiny.config(name, scheme_options=options))
    with pytest.raises(UserError, match="kerple-log: per_layer=2: expected true or false"):
        scheme_of(tiny.config("kerple-log", scheme_options={"per_layer": "2"}))


@pytest.mark.parametrize("name", PER_LAYER)
def test_per_layer_gives_each_layer_its_own(name: str, tmp_path: Path) -> None:
    """As many parameters a layer; equal ones are the shared scheme to the bit; all are kept."""
    shared = tiny.decoder(tiny.config(name, layers=3))
    model = tiny.config(name, layers=3, scheme_options={"per_layer": True})
    made = tiny.decoder(model)
    count = sum(p.numel() for p in shared.scheme.parameters())
    assert sum(p.numel() for p in made.scheme.parameters()) == 3 * count > 0
    made.load_state_dict(
        {k: v for k, v in shared.state_dict().items() if not k.startswith("scheme.")}
        | {f"scheme.layers.{i}.{k}": v for i in range(3) for k, v in shared.scheme.state_dict().items()}
    )
    tokens = tiny.tokens(20)
    assert torch.equal(logits(made, tokens), logits(shared, tokens))
    before = logits(made, tokens)
    with torch.no_grad():
        for parameter in made.scheme.at(1).parameters():
            parameter.mul_(1.25)
    assert float((logits(made, tokens) - before).abs().max()) > 1e-6
    write_checkpoint(tmp_path, made.float(), seed=1, tokenizer=None)
    checkpoint = NativeCheckpoint(tmp_path)
    assert checkpoint.config == model
    assert torch.equal(logits(checkpoint.decoder(), tokens), logits(made, tokens))
    assert len(checkpoint.scheme_parameters()) == 3 * len(list(shared.scheme.parameters()))


@every_scheme
def test_prefix_invariance_is_as_the_line_says(name: str) -> None:
    """Logits at a position do not depend on how many tokens follow, or they visibly do."""
    made = tiny.decoder(tiny.config(name))
    tokens = tiny.tokens(48)
    whole = logits(made, tokens)
    apart = [float((logits(made, tokens[:n]) - whole[:n]).abs().max()) for n in (1, 2, 7, 8, 9, 16, 31, 47)]
    if SCHEMES[name].prefix_invariant:
        assert max(apart) < 1e-11
    else:
        assert max(apart) > 1e-6


@every_scheme
def test_causality(name: str) -> None:
    """A changed token moves what follows, as far as a window lets one see, and nothing before."""
    made = tiny.decoder(tiny.config(name))
    sight = {"window": 8, "streaming-sink": 3}.get(name, 24)
    tokens = tiny.tokens(24)
    whole = logits(made, tokens)
    for at in (1, 5, 8, 22):
        changed = tokens.copy()
        changed[at] = (changed[at] + 1) % 11
        moved = (logits(made, changed) - whole).abs().amax(dim=1)
        assert float(moved[:at].max()) < 1e-12
        assert bool((moved[at : at + sight] > 1e-6).all())


@every_scheme
def test_batch_rows_do_not_meet(name: str) -> None:
    made = tiny.decoder(tiny.config(name))
    rows = np.stack([tiny.tokens(19, seed=seed) for seed in range(4)])
    with torch.no_grad():
        together = made.head(made(torch.from_numpy(rows)))
    for b in range(4):
        torch.testing.assert_close(together[b], logits(made, rows[b]), rtol=0, atol=1e-12)


@every_scheme
def test_float32_is_close_to_float64(name: str) -> None:
    """At four times the trained length, with weights at unit scale."""
    narrow, wide = (tiny.decoder(tiny.config(name), dtype=d) for d in (torch.float32, torch.float64))
    tokens = tiny.tokens(32)
    exact = logits(wide, tokens)
    torch.testing.assert_close(logits(narrow, tokens).double(), exact, rtol=0, atol=2e-5)
    assert float(exact.std()) > 0.3


@every_scheme
def test_chunks_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention some rows of queries at a time, and for the last rows alone, is the whole matrix's."""
    made = tiny.decoder(tiny.config(name))
    tokens = torch.from_numpy(np.stack([tiny.tokens(37, seed=seed) for seed in range(2)]))

    def found(rows: int) -> Tensor:
        with torch.no_grad():
            return made.head(made(tokens, rows))  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(decoder_module, "attention", _whole)
        expected = found(37)
    assert float(expected.std()) > 0.3
    for chunk in (1, 5, 37):
        monkeypatch.setattr(module, "QUERY_CHUNK", chunk)
        monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", 2 * 3 * 37 * chunk)
        for rows in (37, 9, 1):
            torch.testing.assert_close(found(rows), expected[:, -rows:], rtol=0, atol=1e-10)


def _whole(
    q: Tensor, k: Tensor, v: Tensor, scheme: Scheme, table: object, observed: object = None
) -> Tensor:  # fmt: skip
    return eager_attention(q, k, v, scheme, observed)


@every_scheme
def test_finite_at_four_times_the_trained_length(name: str) -> None:
    made = Decoder(tiny.config(name, train_length=64))
    made.reset_parameters(0)
    out = logits(made, tiny.tokens(256))
    assert bool(torch.isfinite(out).all())
    assert float(out.std()) > 0.01


#: A number a head added to all its scores: in the reference, and without effect under softmax.
CANCELS = {"fire": "scheme.out.bias", "dape": ".out.bias", "dape-v2": ".out.bias"}


@every_scheme
def test_gradients_reach_every_parameter(name: str) -> None:
    made = tiny.decoder(tiny.config(name))
    tokens = torch.from_numpy(np.stack([tiny.tokens(40, seed=s) for s in range(2)]))
    out = made.head(made(tokens[:, :-1]))
    nn.functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for key, parameter in made.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
        if key.startswith("scheme.") and key.endswith(CANCELS.get(name, "-")):
            assert float(parameter.grad.abs().max()) < 1e-8, key
            continue
        assert float(parameter.grad.abs().max()) > 1e-8, key
        if key.removeprefix("scheme.r").isdecimal():
            assert bool((parameter.grad != 0).all()), key


@every_scheme
def test_save_and_load(name: str, tmp_path: Path) -> None:
    made = tiny.decoder(tiny.config(name, vocab_size=256), dtype=torch.float32)
    write_checkpoint(tmp_path / name, made, seed=3)
    checkpoint = NativeCheckpoint(tmp_path / name)
    tokens = tiny.tokens(20, 256)
    assert torch.equal(logits(checkpoint.decoder(), tokens), logits(made, tokens))
    assert checkpoint.description.warnings == ()
    description = checkpoint.description
    assert (description.scheme, description.seed, description.train_length) == (name, 3, 8)
    assert description.prefix_invariant is SCHEMES[name].prefix_invariant
    assert description.parameters == sum(p.numel() for p in made.parameters())


@every_scheme
def test_a_scheme_draws_from_its_generator_alone(name: str) -> None:
    """The global generator changes nothing: equal seeds, equal values; another seed, other values."""
    found = []
    for noise, seed in ((0, 5), (1, 5), (0, 6)):
        torch.manual_seed(noise)
        made = Decoder(tiny.config(name))
        made.reset_parameters(seed)
        found.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@every_scheme
def test_projection_holds_the_declared_intervals(name: str) -> None:
    made = Decoder(tiny.config(name)).scheme.at(0)
    for key, (lowest, highest) in made.constraints.items():
        parameter = made.get_parameter(key)
        for edge, outside in ((lowest, -1e6), (highest, 1e6)):
            with torch.no_grad():
                parameter.fill_(outside)
            moved = made.project_()
            if edge is None:
                assert bool((parameter == outside).all())
            else:
                assert moved[key] == parameter.numel()
                assert bool((parameter == torch.tensor(edge)).all())


# --- One file and one line -------------------------------------------------------------------

TOY = '''
"""Toy: -D / (h + 1).

Source: this test.
"""

from kerple_eval.schemes.catalogue import SchemeEntry
from kerple_eval.schemes.base import Scheme


class Toy(Scheme):
    def __init__(self, geometry, *, steepness: float = 1.0):
        super().__init__(geometry)
        self.steepness = steepness

    def kernel(self, distance):
        heads = distance.new_tensor(range(1, self.geometry.heads + 1))
        return -self.steepness * distance / heads[:, None]


ENTRY = SchemeEntry("toy-outside", "toy_scheme:Toy", 2026, "arXiv 2601.00000", "kernel", "0", True)
'''
LINE = SchemeEntry("toy", "toy_scheme:Toy", 2026, "arXiv 2601.00000", "kernel", "0", True)


@pytest.fixture
def toy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path that holds the one file."""
    (tmp_path / "toy_scheme.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Registry("scheme", SCHEMES.group, SchemeEntry, list(SCHEMES.values()))
    for name in ("_entries", "_objects", "_read_entry_points"):
        monkeypatch.setattr(SCHEMES, name, getattr(fresh, name))
    yield tmp_path


def check_toy(name: str) -> None:
    made = tiny.decoder(tiny.config(name, scheme_options={"steepness": 0.5}))
    tokens = tiny.tokens(14)
    plain = tiny.weights(made)
    expected = oracles.decoder_logits(plain, tokens.tolist(), layers=2, heads=3, scheme="nope")
    assert float(np.abs(logits(made, tokens).numpy() - expected).max()) > 1e-3  # the toy does something
    q, k, v = (np.random.default_rng(s).normal(size=(3, 9, 4)) for s in range(3))
    out = attention(*(torch.from_numpy(x)[None] for x in (q, k, v)), made.scheme, table(made, 9))
    by_hand = oracles.attend(q, k, v, lambda h, i, j, score: score - 0.5 * (i - j) / (h + 1))
    np.testing.assert_allclose(out[0].detach().numpy(), by_hand, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="did you mean 'steepness'"):
        scheme_of(tiny.config(name, scheme_options={"stepness": 2}))


def table(made: Decoder, length: int) -> module.KernelTable | None:
    return make_table(made.scheme, length, torch.float64, torch.device("cpu"))


def test_a_toy_scheme_is_one_file_and_one_line(
    toy_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="unknown scheme 'toy'"):
        scheme_of(tiny.config("toy"))
    SCHEMES.register(LINE)
    check_toy("toy")
    made = tiny.decoder(tiny.config("toy", vocab_size=256), dtype=torch.float32)
    write_checkpoint(tmp_path / "out", made, seed=None)
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(made.state_dict())
    again = NativeCheckpoint(tmp_path / "out").decoder()
    tokens = tiny.tokens(20, 256)
    assert torch.equal(logits(again, tokens), logits(made, tokens))


def install(folder: Path, line: str) -> None:
    """What pip leaves behind of another package: a dist-info with an entry point."""
    info = folder / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kerple_eval.schemes]\n{line}\n")


def test_another_package_adds_a_scheme(toy_file: Path) -> None:
    install(toy_file, "toy-outside = toy_scheme:ENTRY")
    assert "toy-outside" in SCHEMES
    check_toy("toy-outside")


def test_an_entry_point_that_is_no_line_is_refused(toy_file: Path) -> None:
    install(toy_file, "good = toy_scheme:ENTRY\ntoy-outside = toy_scheme:Toy")
    for _ in range(2):  # the second call does not take the first entry for a repeated one
        with pytest.raises(UserError, match=r"entry point 'toy-outside' .* must be a .*SchemeEntry"):
            list(SCHEMES)


def test_an_entry_point_whose_import_fails_is_named(toy_file: Path) -> None:
    (toy_file / "toy_scheme_old.py").write_text("raise RuntimeError('built for another torch')\n")
    install(toy_file, "toy-outside = toy_scheme_old:ENTRY")
    with pytest.raises(UserError, match=r"'toy-outside' .* cannot be loaded: built for another torch"):
        list(SCHEMES)


def test_an_entry_point_of_a_broken_package_is_named(toy_file: Path) -> None:
    install(toy_file, "toy-outside = toy_scheme_gone:ENTRY")
    with pytest.raises(
        UserError, match=r"'toy-outside' .* cannot be loaded: No module named 'toy_scheme_gone'"
    ):
        list(SCHEMES)


def test_a_name_close_by_is_suggested() -> None:
    with pytest.raises(UserError, match="unknown scheme 'alibbi': did you mean 'alibi'"):
        scheme_of(tiny.config("alibbi"))


# --- The general hooks -----------------------------------------------------------------------


class _Toy(Scheme):
    """Learned numbers a, one a head, that each toy below uses in its own way."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.a = nn.Parameter(torch.tensor([0.3, 0.05, 1.1][: geometry.heads], dtype=torch.float64))


class Weighted(_Toy):
    """KERPLE's 1-para-wht: ``score * exp(-a D^2)``."""

    def weight(self, distance: Tensor) -> Tensor:
        return torch.exp(-self.a[:, None] * distance**2)


class WeightedAndBiased(_Toy):
    """KERPLE's bias+wht: ``score * exp(-a D) - a D``, the weight before the bias."""

    def weight(self, distance: Tensor) -> Tensor:
        return torch.exp(-self.a[:, None] * distance)

    def kernel(self, distance: Tensor) -> Tensor:
        return -self.a[:, None] * distance


class Absolute(_Toy):
    """A bias of absolute positions, as FIRE's: ``-a D / (i + 1)``."""

    def bias(self, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        i, j = positions_q[:, None].double(), positions_k.double()
        return -self.a[:, None, None] * (i - j) / (i + 1)


class Content(_Toy):
    """A score of content: a gate of the first components of q and k, and of absolute positions."""

    def score(self, scores: Tensor, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> Tensor:
        gate = torch.tanh(q[..., :1] + k[..., 0][:, :, None, :])
        place = (positions_q[:, None] + 2 * positions_k).double()
        return scores * (1 + self.a[:, None, None] * gate) + 0.01 * place


class Everything(WeightedAndBiased):
    """All four hooks, to fix their order: weight, kernel, bias, then score."""

    bias = Absolute.bias
    score = Content.score


Change = Callable[[int, int, int, float], float]


def oracle(kind: type[_Toy], a: list[float], q: np.ndarray, k: np.ndarray, offset: int) -> Change:
    def gated(h: int, i: int, j: int, score: float) -> float:
        gate = math.tanh(q[h, i - offset, 0] + k[h, j, 0])
        return score * (1 + a[h] * gate) + 0.01 * (i + 2 * j)

    def both(h: int, i: int, j: int, score: float) -> float:
        return score * math.exp(-a[h] * (i - j)) - a[h] * (i - j)

    def absolute(h: int, i: int, j: int, score: float) -> float:
        return score - a[h] * (i - j) / (i + 1)

    changes: dict[type[_Toy], Change] = {
        Weighted: lambda h, i, j, score: score * math.exp(-a[h] * (i - j) ** 2),
        WeightedAndBiased: both,
        Absolute: absolute,
        Content: gated,
        Everything: lambda h, i, j, score: gated(h, i, j, absolute(h, i, j, both(h, i, j, score))),
    }
    return changes[kind]


KINDS = (Weighted, WeightedAndBiased, Absolute, Content, Everything)


@each_case("kind", KINDS)
@each_case(("queries", "keys"), [(1, 1), (13, 13), (5, 13), (1, 9)])
@each_case("elements", [1, 3 * 2 * 13 * 4, 1 << 24])
def test_general_hooks(
    kind: type[_Toy], queries: int, keys: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every hook against float64 loops, whether a chunk holds one query row, four or all."""
    monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", elements)
    scheme = kind(Geometry(heads=3, head_dim=4, width=12, layers=1, train_length=8))
    rng = np.random.default_rng(queries * 100 + keys)
    q, k, v = (rng.normal(size=(2, 3, n, 4)) for n in (queries, keys, keys))
    assert make_table(scheme, keys, torch.float64, torch.device("cpu")) is None
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    for out in (attention(*tensors, scheme, None), eager_attention(*tensors, scheme)):
        assert out.shape == (2, 3, queries, 4)
        for b in range(2):
            change = oracle(kind, scheme.a.tolist(), q[b], k[b], keys - queries)
            expected = oracles.attend(q[b], k[b], v[b], change)
            np.testing.assert_allclose(out[b].detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_general_hooks(kind: type[_Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences of the loop oracle in each head's parameter."""
    monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", 3 * 7 * 2)
    scheme = kind(Geometry(heads=3, head_dim=4, width=12, layers=1, train_length=8))
    rng = np.random.default_rng(0)
    q, k, v, up = (rng.normal(size=(3, 7, 4)) for _ in range(4))
    out = attention(*(torch.from_numpy(x)[None] for x in (q, k, v)), scheme, None)
    (out[0] * torch.from_numpy(up)).sum().backward()
    a, step = scheme.a.tolist(), 1e-5
    assert scheme.a.grad is not None
    for h in range(3):
        sides = []
        for sign in (1, -1):
            shifted = [x + sign * step * (n == h) for n, x in enumerate(a)]
            sides.append((oracles.attend(q, k, v, oracle(kind, shifted, q, k, 0)) * up).sum())
        assert float(scheme.a.grad[h]) == pytest.approx(
            (sides[0] - sides[1]) / (2 * step), rel=1e-6, abs=1e-9
        )
