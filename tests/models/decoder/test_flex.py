"""FlexAttention against the eager oracle, for every scheme that it serves; on the CPU it runs uncompiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder import flex as module
from kerple_eval.models.decoder.attention import EagerScores, attention, eager_attention, make_table
from kerple_eval.models.decoder.flex import (
    BLOCK,
    GROUP,
    FlexScores,
    _blocks,
    flex_serves,
    groups,
    programs,
    rung,
)
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from tests.helpers import tiny
from tests.helpers.cases import each_case

CPU = torch.device("cpu")
SERVED = [
    name
    for name, entry in SCHEMES.items()
    if not entry.stands_on and flex_serves(scheme_of(tiny.config(name)).at(0))
]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain operations: tracing them anew for every size would take seconds each."""
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def made(name: str, modifiers: dict[str, dict[str, int]] | None = None) -> Scheme:
    return tiny.decoder(tiny.config(name, modifiers=modifiers or {})).scheme.at(0)


def drawn(rows: int, keys: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + 1000 * keys)
    return [torch.randn(batch, 3, n, 4, generator=generator, dtype=dtype) for n in (rows, keys, keys)]


def both(scheme: Scheme, rows: int, keys: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    tensors = drawn(rows, keys, batch)
    with torch.no_grad():
        table = make_table(scheme, keys, torch.float64, CPU, "flex")
        assert isinstance(table, FlexScores)
        return attention(*tensors, scheme, table), eager_attention(*tensors, scheme)


def test_the_schemes_of_distance_are_served() -> None:
    assert {*tiny.SCHEMES, *tiny.FURTHER, "sandwich", "xpos"} <= set(SERVED)
    assert not {"fire", "dape", "cope", "fox", "path"} & set(SERVED)


@each_case("name", SERVED)
def test_every_served_scheme_is_the_oracle(name: str) -> None:
    scheme = made(name)
    for rows, keys, batch in ((1, 1, 1), (9, 9, 2), (5, 67, 3), (130, 130, 1), (1, 129, 1), (129, 200, 2)):
        out, exact = both(scheme, rows, keys, batch)
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)


@each_case("name", ["kerple-log", "rope", "kerple-bias-wht", "nope"])
@each_case("size", [1, 5, 127, 128, 129, 300])
def test_windows_are_blocks(name: str, size: int) -> None:
    scheme = made(name, {"window": {"width": size}})
    for rows, keys in ((300, 300), (40, 300), (1, 300)):
        out, exact = both(scheme, rows, keys, 1)
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)


def test_inline_formulas_are_the_kernels() -> None:
    """At every distance and head, scalar by scalar, as the fused loop asks."""
    compared = set()
    distance = torch.arange(40, dtype=torch.float64)
    for name in SERVED:
        scheme = made(name)
        inline = scheme.inline(CPU)
        if inline is None:
            continue
        kernel = scheme.kernel(distance)
        assert kernel is not None, name
        for head in range(3):
            for d in range(40):
                value = float(inline(distance[d], torch.tensor(head)))
                assert value == pytest.approx(kernel[head, d].item(), rel=1e-12, abs=1e-15), (name, head, d)
        compared.add(name)
    assert compared == {"alibi"}  # of the others a table costs fewer instructions


@each_case("window", [None, 1, 127, 128, 129, 255, 256, 300, 1000])
@each_case(("rows", "keys"), [(128, 128), (128, 640), (384, 384), (384, 512)])
def test_blocks_are_those_of_the_mask(rows: int, keys: int, window: int | None) -> None:
    mask = _blocks(rows, keys, window, CPU)
    distance = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)
    seen = (distance >= 0) & (distance < (window or keys + 1))
    grid = seen.view(rows // BLOCK, BLOCK, keys // BLOCK, BLOCK).permute(0, 2, 1, 3).flatten(2)
    for i in range(rows // BLOCK):
        count = int(mask.kv_num_blocks[0, 0, i])
        assert mask.full_kv_num_blocks is not None
        assert mask.full_kv_indices is not None
        full = int(mask.full_kv_num_blocks[0, 0, i])
        partly = {j for j in range(keys // BLOCK) if grid[i, j].any() and not grid[i, j].all()}
        wholly = {j for j in range(keys // BLOCK) if grid[i, j].all()}
        assert set(mask.kv_indices[0, 0, i, :count].tolist()) == partly
        assert set(mask.full_kv_indices[0, 0, i, :full].tolist()) == wholly


def test_rungs() -> None:
    for n in range(1, 5000):
        assert n <= rung(n) <= max(BLOCK, n + BLOCK, n * 1.25)
        assert rung(n) % BLOCK == 0
    for length in (512, 1024, 2048, 4096, 8192, 10240, 16384, 131072):
        assert rung(length) == length
    assert len({rung(n) for n in range(1, 16385)}) <= 32


@each_case("keys", [128, 512, 640, 4096, 16384, 131072])
def test_groups_cover_the_batch_in_few_sizes(keys: int) -> None:
    sizes = set()
    for batch in range(1, 300):
        found = groups(batch, keys)
        assert sum(count for count, _ in found) == batch
        assert all(count <= compiled < 2 * count for count, compiled in found)
        assert all(compiled * keys <= max(GROUP, keys) for _, compiled in found)
        sizes |= {compiled for _, compiled in found}
    assert len(sizes) <= 1 + (GROUP // keys).bit_length()


@pytest.mark.parametrize(
    ("batch", "inputs", "rows"), [(2, 150, 150), (3, 300, 20), (70, 300, 300), (1, 1, 1)]
)
def test_programs_are_what_is_called(
    batch: int, inputs: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = set()

    def program(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        called.add((len(q), q.shape[2], k.shape[2]))
        return q

    monkeypatch.setattr(module, "_uncompiled", lambda: program)
    decoder = tiny.decoder(tiny.config("alibi"))
    decoder.backend = "flex"
    with torch.no_grad():
        decoder(torch.from_numpy(tiny.tokens(batch * inputs)).view(batch, inputs), rows)
    assert called == programs(batch, inputs, rows)


def test_groups_give_what_one_call_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 512)
    assert groups(11, 128) == [(4, 4), (4, 4), (3, 4)]
    for batch in (1, 3, 4, 5, 11):
        out, exact = both(made("kerple-log"), 20, 70, batch)
        torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["kerple-log", "t5", "rope"])
def test_a_decoder_by_every_way(name: str) -> None:
    decoder = tiny.decoder(tiny.config(name))
    tokens = torch.from_numpy(tiny.tokens(2 * 150)).view(2, 150)
    found = {}
    with torch.no_grad():
        for backend in ("sdpa", "flex", "eager"):
            decoder.backend = backend
            found[backend] = [decoder(tokens), decoder(tokens, 20)]
    for backend in ("sdpa", "flex"):
        for a, b in zip(found[backend], found["eager"], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_the_whole_way_is_the_oracle_itself() -> None:
    scheme, tensors = made("kerple-log"), drawn(5, 9)
    table = make_table(scheme, 9, torch.float64, CPU, "eager")
    assert isinstance(table, EagerScores)
    assert torch.equal(attention(*tensors, scheme, table), eager_attention(*tensors, scheme))


def gradients(decoder: Decoder, tokens: Tensor, backend: str) -> dict[str, Tensor]:
    """Of a number that every output has a part in, by parameter."""
    decoder.backend = backend
    decoder.zero_grad()
    decoder.head(decoder(tokens)).square().mean().backward()
    return {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "name",
    [n if n in ("kerple-log", "t5", "rope") else pytest.param(n, marks=pytest.mark.slow) for n in SERVED],
)
def test_gradients_are_the_oracles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight and of the kernel's parameters; a batch of 150 positions, no whole number of blocks."""
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    # torch refuses gradients on the CPU because it generates no code for them; the traced form has them.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    program = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True, backend="eager")
    monkeypatch.setattr(module, "_uncompiled", lambda: program)
    decoder = tiny.decoder(tiny.config(name, train_length=150))
    tokens = torch.from_numpy(tiny.tokens(2 * 150)).view(2, 150)
    found, oracle = (gradients(decoder, tokens, backend) for backend in ("flex", "eager"))
    assert found.keys() == oracle.keys()
    for key, grad in found.items():
        exact = oracle[key]
        torch.testing.assert_close(grad, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kerple-log", "kerple-power", "alibi", "t5", "kernel", "kerple-bias-wht"])
def test_compiled_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula inside torch's generated loop, not only traced."""
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    monkeypatch.setattr(module, "_uncompiled", module._compiled)
    scheme = made(name).float()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 200, 16, generator=generator) for _ in range(3))
    with torch.inference_mode():
        out = attention(q, k, v, scheme, make_table(scheme, 200, torch.float32, CPU, "flex"))
        exact = eager_attention(q.double(), k.double(), v.double(), scheme.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    ["kerple-log", *(pytest.param(n, marks=pytest.mark.slow) for n in ("alibi", "t5", "kernel", "rope"))],
)
def test_one_program_a_shape_whatever_the_checkpoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models, two lengths, several passes: torch traces twice, so 90 checkpoints do not recompile."""
    from torch._dynamo.testing import CompileCounterWithBackend  # noqa: PLC0415
    from torch.nn.attention import flex_attention  # noqa: PLC0415

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    program = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(module, "_uncompiled", lambda: program)
    with torch.inference_mode():
        for seed in range(3):
            scheme = tiny.decoder(tiny.config(name), seed).scheme.at(0)
            for length in (150, 300, 150):
                tensors = drawn(length, length)
                out = attention(*tensors, scheme, make_table(scheme, length, torch.float64, CPU, "flex"))
                torch.testing.assert_close(out, eager_attention(*tensors, scheme), rtol=0, atol=1e-10)
    torch._dynamo.reset()
    assert counter.frame_count == len(programs(2, 150, 150) | programs(2, 300, 300)) == 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_case("name", SERVED)
@each_case(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 0.03)])
def test_cuda_is_the_oracle(name: str, dtype: torch.dtype, tolerance: float) -> None:
    scheme = tiny.decoder(tiny.config(name, width=48)).scheme.at(0).float().cuda()
    generator = torch.Generator().manual_seed(0)
    for rows, keys in ((300, 300), (40, 300)):
        tensors = [
            torch.randn(2, 3, n, 16, generator=generator).to("cuda", dtype) for n in (rows, keys, keys)
        ]
        with torch.inference_mode():
            table = make_table(scheme, keys, dtype, torch.device("cuda"), "flex")
            out = attention(*tensors, scheme, table)
            exact = eager_attention(*(x.double() for x in tensors), scheme.double())
            scheme.float()
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_case("name", SERVED)
def test_cuda_gradients_are_the_oracles(name: str) -> None:
    decoder = tiny.decoder(tiny.config(name, width=48, train_length=300)).float().cuda()
    tokens = torch.from_numpy(tiny.tokens(2 * 300)).view(2, 300).cuda()
    found = gradients(decoder, tokens, "flex")
    oracle = gradients(decoder.double(), tokens, "eager")
    assert found.keys() == oracle.keys()
    for key, grad in found.items():
        assert float((grad - oracle[key]).norm()) <= 0.01 * float(oracle[key].norm()) + 1e-6


def test_dynamo_s_limits_are_the_caller_s_outside_a_call() -> None:
    from torch._dynamo import config  # noqa: PLC0415

    def limits() -> tuple[int, int]:
        return config.recompile_limit, config.accumulated_recompile_limit

    before = limits()
    assert module._allowing_shapes(999_999, limits)() == (999_999, 999_999)
    assert module._allowing_shapes(1, limits)() == before
    assert limits() == before


def test_a_mask_made_while_scoring_serves_training() -> None:
    """Inference tensors cannot be saved for a backward pass, and masks are cached."""
    _blocks.cache_clear()
    with torch.inference_mode():
        mask = _blocks(128, 256, None, torch.device("cpu"))
    _blocks.cache_clear()
    assert not any(part.is_inference() for part in (mask.kv_indices, mask.full_kv_num_blocks))
