"""Chunked attention against float64 loops and plain autograd; memory by counting tensor sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder import attention_backward as training
from kerple_eval.models.decoder import fused, network
from kerple_eval.models.decoder.attention import attention, eager_attention, make_table, uses_general_path
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.kernels import log_kernel
from kerple_eval.types import Geometry
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

HEADS, DIM = 3, 4
CHUNK = 4
KERNELS = ("kerple-log", "kerple-power", "alibi", "t5")
SIZES = [
    (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (8, 8), (9, 9), (12, 12), (13, 13), (17, 17),
    (1, 2), (1, 4), (1, 5), (1, 13), (3, 4), (3, 5), (4, 5), (4, 8), (4, 13), (5, 8), (5, 13),
    (8, 9), (8, 12), (12, 13), (16, 17),
]  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", CHUNK)
    monkeypatch.setattr(training, "BLOCK_ROWS", 3)


def scheme_of(name: str, dtype: torch.dtype = torch.float64, heads: int = HEADS) -> Scheme:
    """A scheme with its parameters redrawn: r1, r2 in (0.05, 1.5), the T5 table at unit scale."""
    made = network.scheme_of(tiny.config(name, heads=heads, width=DIM * heads))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.05, 1.5, generator=generator)
            else:
                parameter.normal_(generator=generator)
    return made.to(dtype)


def drawn(
    queries: int, keys: int, batch: int = 2, heads: int = HEADS, dim: int = DIM
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 * queries + keys)
    shapes = ((batch, heads, n, dim) for n in (queries, keys, keys))
    q, k, v = (rng.normal(size=shape) for shape in shapes)
    return q, k, v


def by_hand(name: str, scheme: Scheme, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    heads, keys = k.shape[1], k.shape[2]
    parameters = {key: x.detach().double().tolist() for key, x in scheme.named_parameters()}
    bias = [oracles.distance_bias(name, parameters, heads, d, {}) for d in range(keys)]
    return np.stack(
        [
            oracles.attend(q[b], k[b], v[b], lambda h, i, j, score: score + bias[i - j][h])
            for b in range(len(q))
        ]
    )


def attend(scheme: Scheme, *tensors: Tensor, reach: int | None = None) -> Tensor:
    q, k, _ = tensors
    return attention(*tensors, scheme, make_table(scheme, reach or k.shape[2], q.dtype, q.device))


@pytest.mark.usefixtures("small_chunks")
@each_case("name", [*KERNELS, "nope"])
@each_case(("queries", "keys"), SIZES)
def test_inference_is_the_formula(name: str, queries: int, keys: int) -> None:
    """Queries the last Q of K positions, around every chunk edge, batch 2."""
    scheme = scheme_of(name)
    arrays = drawn(queries, keys)
    expected = by_hand(name, scheme, *arrays)
    with torch.no_grad():
        out = attend(scheme, *map(torch.from_numpy, arrays))
        eager = eager_attention(*map(torch.from_numpy, arrays), scheme)
        narrow = attend(scheme_of(name, torch.float32), *(torch.from_numpy(x).float() for x in arrays))
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(eager.numpy(), expected, rtol=0, atol=1e-12)
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow.numpy(), expected, rtol=0, atol=3e-6)


@pytest.mark.usefixtures("small_chunks")
@each_case("chunk", [1, 2, 5, 64])
@each_case("name", KERNELS)
def test_chunk_size_does_not_matter(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", chunk)
    scheme = scheme_of(name)
    for queries, keys in ((11, 11), (6, 11)):
        arrays = drawn(queries, keys)
        with torch.no_grad():
            out = attend(scheme, *map(torch.from_numpy, arrays))
        np.testing.assert_allclose(out.numpy(), by_hand(name, scheme, *arrays), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
@each_case("reach", [9, 10, 12, 30])
def test_a_table_may_reach_farther_than_the_keys(reach: int) -> None:
    scheme = scheme_of("kerple-log")
    arrays = drawn(9, 9)
    expected = by_hand("kerple-log", scheme, *arrays)
    tensors = [torch.from_numpy(x) for x in arrays]
    with torch.no_grad():
        out = attend(scheme, *tensors, reach=reach)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-12)
    trained = attend(scheme, *(x.requires_grad_() for x in tensors), reach=reach)
    np.testing.assert_allclose(trained.detach().numpy(), expected, rtol=0, atol=1e-12)


# --- Training ----------------------------------------------------------------------------------


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with the whole score matrix; ``bias [H, D]`` by distance. Autograd's oracle."""
    length = q.shape[2]
    distance = torch.tensor([[i - j for j in range(length)] for i in range(length)])
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    scores = scores + bias[:, distance.abs()]
    scores = torch.where(distance >= 0, scores, torch.tensor(-math.inf, dtype=scores.dtype))
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def naive_bias(name: str, leaves: dict[str, Tensor], length: int) -> Tensor:
    rows = []
    for d in range(length):
        if name == "kerple-log":
            rows.append(-leaves["r1"] * torch.log(1 + leaves["r2"] * d))
        elif name == "kerple-power":
            rows.append(-leaves["r1"] * (float(d) ** leaves["r2"] if d else 0.0 * leaves["r2"]))
        elif name == "alibi":
            rows.append(-d * torch.tensor(oracles.alibi_slopes(HEADS), dtype=torch.float64))
        else:
            rows.append(leaves["relative_bias"][oracles.t5_bucket(d)])
    return torch.stack(rows, dim=1)


@pytest.mark.usefixtures("small_chunks")
@each_case("name", KERNELS)
@each_case("length", [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 22])
@each_case("dtype", [torch.float64, torch.float32])
def test_training_gradients(name: str, length: int, dtype: torch.dtype) -> None:
    compare_in_training(name, length, dtype)


@pytest.mark.usefixtures("small_chunks")
@each_case("name", KERNELS)
def test_training_without_torch_s_private_operation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "FUSED", "no_such_operation")
    for length in (1, 5, 22):
        compare_in_training(name, length, torch.float64)


def compare_in_training(name: str, length: int, dtype: torch.dtype) -> None:
    """Outputs and gradients in q, k, v and every scheme parameter, batch 2; weights kept, and formed anew."""
    for most in (0, training.RECOMPUTE_ELEMENTS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "RECOMPUTE_ELEMENTS", most)
            compare_once_in_training(name, length, dtype)


def compare_once_in_training(name: str, length: int, dtype: torch.dtype) -> None:
    scheme = scheme_of(name, dtype)
    leaves = {key: x.detach().double().clone().requires_grad_() for key, x in scheme.named_parameters()}
    mine = [torch.from_numpy(x).to(dtype).requires_grad_() for x in drawn(length, length)]
    theirs = [x.detach().double().requires_grad_() for x in mine]
    up = torch.from_numpy(np.random.default_rng(length).normal(size=mine[0].shape))
    out = attend(scheme, *mine)
    expected = naive(*theirs, naive_bias(name, leaves, length))
    assert out.dtype == dtype
    tolerance = 1e-11 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    (out * up.to(dtype)).sum().backward()
    (expected * up).sum().backward()
    pairs = list(zip("qkv", mine, theirs, strict=True))
    pairs += [(key, x, leaves[key]) for key, x in scheme.named_parameters()]
    for label, got, wanted in pairs:
        assert got.grad is not None, label
        assert wanted.grad is not None, label
        scale = max(1.0, float(wanted.grad.abs().max()))
        torch.testing.assert_close(
            got.grad.double(), wanted.grad, rtol=0, atol=scale * tolerance, msg=lambda m, n=label: f"{n}: {m}"
        )


@pytest.mark.parametrize("rows", [1, 2, 3, 128])
@pytest.mark.parametrize("chunk", [2, 3, 1024])
@pytest.mark.parametrize("most", [0, 1 << 22])
def test_gradcheck(rows: int, chunk: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences in q, k, v, r1 and r2 through the kernel path, weights formed anew or kept."""
    monkeypatch.setattr(training, "RECOMPUTE_ELEMENTS", most)
    monkeypatch.setattr(module, "QUERY_CHUNK", chunk)
    monkeypatch.setattr(training, "BLOCK_ROWS", rows)
    geometry = Geometry(heads=2, head_dim=3, width=6, layers=1, train_length=4)

    class Given(Scheme):
        def __init__(self, r1: Tensor, r2: Tensor) -> None:
            super().__init__(geometry)
            self.given = r1[:, None], r2[:, None]

        def kernel(self, distance: Tensor) -> Tensor:
            return log_kernel(distance, *self.given)

    def run(q: Tensor, k: Tensor, v: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
        return attend(Given(r1, r2), q, k, v)

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 5, 3, dtype=torch.float64, generator=generator) for _ in range(3)]
    tensors += [torch.rand(2, dtype=torch.float64, generator=generator) + 0.2 for _ in range(2)]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in tensors])


@pytest.mark.usefixtures("small_chunks")
def test_parameters_shared_by_layers_sum_their_gradients() -> None:
    """One table serves every layer of a pass; its gradient is the sum over them."""
    scheme = scheme_of("kerple-log")
    leaves = {key: x.detach().clone().requires_grad_() for key, x in scheme.named_parameters()}
    table = make_table(scheme, 9, torch.float64, torch.device("cpu"))
    total, expected = torch.zeros(()), torch.zeros(())
    for n in range(3):
        q, k, v = (torch.from_numpy(x) * (1 + n) for x in drawn(9, 9))
        total = total + attention(q, k, v, scheme, table).pow(2).sum()
        expected = expected + naive(q, k, v, naive_bias("kerple-log", leaves, 9)).pow(2).sum()
    total.backward()
    expected.backward()
    for key, parameter in scheme.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[key].grad, rtol=1e-10, atol=1e-12)


# --- Precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["kerple-log", "kerple-power", "alibi"])
def test_half_precision_models_keep_distances_and_bias_in_float32(name: str, dtype: torch.dtype) -> None:
    """bfloat16 knows 1024 distinct distances below 16384; the table knows every one."""
    scheme = scheme_of(name, torch.float32)
    table = make_table(scheme, 4096, dtype, torch.device("cpu"))
    assert table is not None
    assert table.values.dtype == torch.float32
    parameters = {key: x.tolist() for key, x in scheme.named_parameters()}
    expected = torch.tensor(
        [oracles.distance_bias(name, parameters, HEADS, d, {}) for d in range(4095, -1, -1)],
        dtype=torch.float64,
    ).T
    torch.testing.assert_close(table.values[:, :4096].detach().double(), expected, rtol=1e-6, atol=0)
    assert bool((table.values[:, 4096:] == -math.inf).all())


@pytest.mark.parametrize("training", [False, True])
def test_a_bfloat16_model_does_not_round_the_bias(training: bool) -> None:
    """q = 0, so logits are the bias; v picks the key at distance 900, whose bias is near -14.3.

    Rounded to bfloat16 the bias would be off by up to 2^-5 there, and the weight by 3 %.
    """
    scheme = scheme_of("kerple-log", torch.float32, heads=1)
    with torch.no_grad():
        for parameter in scheme.parameters():
            parameter.fill_(2.1)
    length, worst = 1024, 0.0
    q = torch.zeros(1, 1, length, 8, dtype=torch.bfloat16)
    r1, r2 = (float(parameter.detach()[0]) for parameter in scheme.parameters())
    bias = [-r1 * math.log1p(r2 * d) for d in range(length)]
    total = math.fsum(math.exp(x) for x in bias)
    for distance in (900, 777, 500, 301):
        v = torch.zeros(1, 1, length, 8, dtype=torch.bfloat16)
        v[0, 0, length - 1 - distance] = 2.0**20
        with torch.set_grad_enabled(training):
            out = attend(scheme, q, q, v)
        assert out.dtype == torch.bfloat16
        expected = 2.0**20 * math.exp(bias[distance]) / total
        worst = max(worst, abs(float(out[0, 0, -1, 0].detach()) / expected - 1))
    assert worst < 0.006  # of which 2^-8 = 0.004 is the output's own rounding


# --- Memory ------------------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The most elements a storage behind any operator's output holds."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


def largest_storage(call: Callable[[], Any]) -> int:
    with Sizes() as sizes:
        call()
    return sizes.largest


@each_case("name", [*KERNELS, "nope"])
@each_case(("queries", "length"), [(600, 600), (1200, 1200), (200, 1200)])
def test_inference_memory_grows_linearly(
    name: str, queries: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No storage beyond one of q, k, v or the kernel's vector: O(H L), never [L, L]."""
    monkeypatch.setattr(module, "QUERY_CHUNK", 32)
    scheme = scheme_of(name, torch.float32)
    tensors = [torch.from_numpy(x).float() for x in drawn(queries, length, batch=1)]
    with torch.no_grad():
        largest = largest_storage(lambda: attend(scheme, *tensors))
    mask = 32 * length if name == "nope" and queries < length else 0
    assert largest <= max(HEADS * length * DIM, HEADS * (length + 32), mask)
    assert largest_storage(lambda: eager_attention(*tensors, scheme)) >= HEADS * queries * length


@each_case("name", KERNELS)
@each_case("length", [300, 600])
def test_training_memory_grows_linearly(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound no more than one [H, rows, K] block (and its sheared copy) is held."""
    monkeypatch.setattr(training, "RECOMPUTE_ELEMENTS", HEADS * length**2 - 1)
    monkeypatch.setattr(module, "QUERY_CHUNK", 32)
    monkeypatch.setattr(training, "BLOCK_ROWS", 8)
    scheme = scheme_of(name, torch.float32)
    tensors = [torch.from_numpy(x).float().requires_grad_() for x in drawn(length, length, batch=1)]

    def step() -> None:
        attend(scheme, *tensors).sum().backward()

    assert largest_storage(step) <= HEADS * 8 * (length + 8)
    leaves = {key: x.detach().double().requires_grad_() for key, x in scheme.named_parameters()}
    wide = [x.detach().double() for x in tensors]
    whole = largest_storage(lambda: naive(*wide, naive_bias(name, leaves, length)))
    assert whole >= HEADS * length * length  # the counter sees a full score matrix where there is one


def test_a_chunk_of_bias_is_a_view_of_the_vector() -> None:
    table = make_table(scheme_of("kerple-log"), 50, torch.float64, torch.device("cpu"))
    assert table is not None
    view, _ = table.view(40, 49)
    assert view.untyped_storage().data_ptr() == table.values.untyped_storage().data_ptr()
    assert view.shape == (1, HEADS, 10, 50)


def test_the_paths_are_chosen_by_the_hooks() -> None:
    for name in tiny.SCHEMES:
        scheme = scheme_of(name)
        assert not uses_general_path(scheme)
        made = make_table(scheme, 4, torch.float64, torch.device("cpu"))
        assert (made is not None) == (name in KERNELS)


# --- CUDA --------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_case("name", [*KERNELS, "nope"])
@each_case(("queries", "keys"), [(1, 1), (9, 9), (64, 64), (65, 65), (5, 67), (33, 64)])
@each_case(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 0.02)])
def test_cuda_is_the_formula(
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", 16)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    scheme = scheme_of(name, torch.float32).cuda()
    tensors = [torch.from_numpy(x).to("cuda", dtype) for x in drawn(queries, keys, dim=8)]
    rounded = [x.double().cpu().numpy() for x in tensors]
    with torch.no_grad():
        out = attend(scheme, *tensors)
    assert out.dtype == dtype
    expected = by_hand(name, scheme.cpu(), rounded[0], rounded[1], rounded[2])
    np.testing.assert_allclose(out.double().cpu().numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", KERNELS)
def test_cuda_training_gradients(name: str) -> None:
    scheme = scheme_of(name, torch.float32)
    leaves = {key: x.detach().double().clone().requires_grad_() for key, x in scheme.named_parameters()}
    mine = [torch.from_numpy(x).float().cuda().requires_grad_() for x in drawn(21, 21, dim=8)]
    theirs = [x.detach().double().cpu().requires_grad_() for x in mine]
    attend(scheme.cuda(), *mine).pow(2).sum().backward()
    naive(*theirs, naive_bias(name, leaves, 21)).pow(2).sum().backward()
    pairs = list(zip(mine, theirs, strict=True))
    pairs += [(x, leaves[key]) for key, x in scheme.named_parameters()]
    for got, wanted in pairs:
        assert got.grad is not None
        assert wanted.grad is not None
        scale = max(1.0, float(wanted.grad.abs().max()))
        torch.testing.assert_close(got.grad.double().cpu(), wanted.grad, rtol=0, atol=1e-4 * scale)
