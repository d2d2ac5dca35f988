"""Windows, sinks, moved positions and scalings against one pair at a time in float64.

An oracle says of a query i and a key j whether the pair is seen, at which distance it stands and by how
much the query's row is scaled, straight from the papers; the logit is then written out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder import attention_backward as training
from kerple_eval.models.decoder.attention import attention, eager_attention, make_table
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.schemes.composite import Combined
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.schemes.window import SlidingWindowMask
from kerple_eval.types import Geometry, SchemeSpec, UserError
from tests.helpers import oracles, tiny
from tests.helpers.cases import each_case

HEADS, DIM, TRAINED = 3, 4, 8
Pair = tuple[bool, float, float]  # seen, distance, scaling of the row


def streaming(i: int, j: int, recent: int, sinks: int) -> Pair:
    """A cache trimmed after every token: the keys a query finds, and the places they have in it."""
    held = list(range(i + 1))
    while len(held) > sinks + recent + 1:
        del held[sinks]
    return j in held, (held.index(i) - held.index(j)) if j in held else 0, 1.0


def self_extend(i: int, j: int, window: int, group: int) -> Pair:
    if i - j < window:
        return True, i - j, 1.0
    return True, (i // group + window - window // group) - j // group, 1.0


def rerope(i: int, j: int, window: int, leak: float = 0.0) -> Pair:
    beyond = i - j - window
    if beyond < 0:
        return True, i - j, 1.0
    return True, window + (beyond / leak if leak else 0.0), 1.0


def lm_infinite(i: int, j: int, recent: int, start: int, limit: int) -> Pair:
    """Local keys at their distances, the first ones beyond at the limit (models/lambda_attention.py)."""
    return i - j < recent or j < start, i - j if i - j < recent else limit, 1.0


def dual_chunk(i: int, j: int, chunk: int, local: int) -> Pair:
    """The tables of positions of ChunkLlama (chunkllama_attn_replace.py, commit 847ae71)."""
    chunk_len = chunk - local
    q_t = list(range(chunk_len))
    qc_t = [min(t + chunk_len, chunk) for t in q_t]
    key = j % chunk_len
    if i // chunk_len == j // chunk_len:
        return True, q_t[i % chunk_len] - key, 1.0
    successive = i // chunk_len - j // chunk_len == 1
    return True, qc_t[i % chunk_len if successive else chunk_len - 1] - key, 1.0


def shifted(i: int, j: int, shift: int, local: int, factor: float = 1.0) -> Pair:
    """Algorithm 1 of STRING: S is the sliding window, queries of the triangle stand at i - S + W."""
    return True, i - j if i - j < shift else i - shift + local - j, factor**2


def test_leaky_rerope_stands_where_its_code_puts_it() -> None:
    """bojone/rerope, leaky_rerope_patch.py, commit 2cbd019, several queries: far keys by frequencies that are
    scaled down k-fold, of queries at ``position + window * (k - 1)`` and keys at their own.
    """
    window, k, n = 5, 16, 40  # its scaling_factor, 16 there
    offset = window * (k - 1)
    for i in range(n):
        for j in range(i + 1):
            placed = (i, j) if abs(i - j) < window else ((i + offset) / k, j / k)
            assert math.isclose(placed[0] - placed[1], rerope(i, j, window, k)[1], abs_tol=1e-12)
    scheme = SCHEMES.load("leaky-rerope")(Geometry(HEADS, DIM, HEADS * DIM, 1, TRAINED), window=window)
    assert scheme.leak == k
    positions = torch.arange(n)
    ((far, moved_q, moved_k),) = scheme.remap(positions, positions)
    for i, j in zip(*(part.tolist() for part in far.nonzero(as_tuple=True)), strict=True):
        assert math.isclose(float(moved_q[i]), (i + offset) / k, abs_tol=1e-9)
        assert math.isclose(float(moved_k[j]), j / k, abs_tol=1e-9)
    assert torch.equal(far, positions[:, None] - positions >= window)


def tempered(i: int, floor: int, scale: float) -> float:
    return 1 + scale * math.log(1 + (i + 1) // floor)


#: modifier, its options, the oracle.
CASES: list[tuple[str, str, Callable[[int, int], Pair]]] = [
    ("window", "window", lambda i, j: (i - j < TRAINED, i - j, 1.0)),
    ("window", "window=1", lambda i, j: (i == j, i - j, 1.0)),
    ("window", "window=5", lambda i, j: (i - j < 5, i - j, 1.0)),
    ("window", "window=500", lambda i, j: (True, i - j, 1.0)),
    ("log-n", "log-n", lambda i, j: (True, i - j, max(1.0, math.log(i + 1) / math.log(TRAINED)))),
    ("log-n", "log-n=3", lambda i, j: (True, i - j, max(1.0, math.log(i + 1) / math.log(3)))),
    ("streaming-sink", "streaming-sink", lambda i, j: streaming(i, j, 3, 4)),
    ("streaming-sink", "streaming-sink=6,sinks=2", lambda i, j: streaming(i, j, 6, 2)),
    ("lm-infinite", "lm-infinite", lambda i, j: lm_infinite(i, j, 8, 10, 8)),
    ("lm-infinite", "lm-infinite=4,start=2,limit=6", lambda i, j: lm_infinite(i, j, 4, 2, 6)),
    ("lm-infinite", "lm-infinite=6,start=2,limit=4", lambda i, j: lm_infinite(i, j, 6, 2, 4)),
    ("self-extend", "self-extend", lambda i, j: self_extend(i, j, 4, 8)),
    ("self-extend", "self-extend=5,group=3", lambda i, j: self_extend(i, j, 5, 3)),
    ("random-positions", "random-positions", lambda i, j: (True, i - j, 1.0)),  # before a training step
    ("pose", "pose=99", lambda i, j: (True, i - j, 1.0)),
    ("temperature", "temperature", lambda i, j: (True, i - j, tempered(i, 8, 0.1))),
    ("temperature", "temperature=3,scale=0.7", lambda i, j: (True, i - j, tempered(i, 3, 0.7))),
    ("dca", "dca", lambda i, j: dual_chunk(i, j, 6, 1)),
    ("dca", "dca=7,local=3", lambda i, j: dual_chunk(i, j, 7, 3)),
    ("dca", "dca=9,local=7", lambda i, j: dual_chunk(i, j, 9, 7)),
    ("dca", "dca=500", lambda i, j: (True, i - j, 1.0)),
    ("string", "string", lambda i, j: shifted(i, j, 2, 1)),
    ("string", "string=9,local=3", lambda i, j: shifted(i, j, 9, 3)),
    ("string", "string=5,local=5", lambda i, j: (True, i - j, 1.0)),
    ("string", "string=9,local=2,attention_factor=1.25", lambda i, j: shifted(i, j, 9, 2, 1.25)),
    ("rerope", "rerope", lambda i, j: rerope(i, j, 4)),
    ("rerope", "rerope=6", lambda i, j: rerope(i, j, 6)),
    ("rerope", "rerope=3,leak=4", lambda i, j: rerope(i, j, 3, 4.0)),
    ("leaky-rerope", "leaky-rerope", lambda i, j: rerope(i, j, 4, 16.0)),
    (
        "log-n",
        "log-n=3,window=5",
        lambda i, j: (i - j < 5, i - j, max(1.0, math.log(min(i + 1, 5)) / math.log(3))),
    ),
    ("window", "window=6,rerope=3", lambda i, j: (i - j < 6, rerope(i, j, 3)[1], 1.0)),
    (
        "log-n",
        "rerope=6,log-n=8",
        lambda i, j: (True, rerope(i, j, 6)[1], max(1.0, math.log(i + 1) / math.log(8))),
    ),
]
BASES = ("rope", "alibi", "kerple-log", "nope")


def made_of(text: str, heads: int = HEADS) -> Scheme:
    spec = parse_scheme(text)
    return scheme_of(
        tiny.config(
            spec.name,
            heads=heads,
            width=heads * DIM,
            scheme_options=dict(spec.options),
            modifiers={name: {k: v for k, v in given if v} for name, given in spec.modifiers},
        )
    ).double()


def logit(base: str, pair: Pair, q: np.ndarray, k: np.ndarray, head: int) -> float:
    """Scaled score and bias of one pair at its distance: RoPE turns the query by the distance alone."""
    seen, distance, scaling = pair
    if not seen:
        return -math.inf
    score = float((oracles.rotate(q, distance) if base == "rope" else q) @ k) / math.sqrt(DIM) * scaling  # type: ignore[arg-type]
    if base == "alibi":
        score -= oracles.alibi_slopes(HEADS)[head] * distance
    if base == "kerple-log":  # r1 = r2 = 1, as built
        score -= math.log(1 + distance)
    return score


@pytest.mark.parametrize("base", BASES)
@each_case(("modifiers", "pair"), [case[1:] for case in CASES])
def test_every_pair_is_seen_where_the_paper_says(
    base: str, modifiers: str, pair: Callable[[int, int], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 33 queries, and the last 7 and the last one alone; in small chunks and in one."""
    moving = {"self-extend", "rerope", "leaky-rerope", "dca", "string"}
    if base == "nope" and moving & set(re.split("[=,]", modifiers)):
        with pytest.raises(UserError, match="moves positions, and Nope has none"):
            made_of(f"{base},{modifiers}")
        return
    scheme = made_of(f"{base},{modifiers}")
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(2, HEADS, 33, DIM)) for _ in range(3))
    expected = np.stack(
        [
            oracles.attend(
                q[b], k[b], v[b], lambda h, i, j, _, b=b: logit(base, pair(i, j), q[b, h, i], k[b, h, j], h)
            )
            for b in range(2)
        ]
    )
    tensors = [torch.from_numpy(x) for x in (q, k, v)]
    monkeypatch.setattr(training, "BLOCK_ROWS", 3)
    for chunk in (4, 1024):
        monkeypatch.setattr(module, "QUERY_CHUNK", chunk)
        table = make_table(scheme, 33, torch.float64, torch.device("cpu"))
        monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", 2 * HEADS * 33 * chunk)
        for queries in (33, 7, 1):
            last = [tensors[0][:, :, -queries:], *tensors[1:]]
            with torch.no_grad():
                out = attention(*last, scheme, table)
                eager = eager_attention(*last, scheme)
            np.testing.assert_allclose(eager.numpy(), expected[:, :, -queries:], rtol=0, atol=1e-12)
            np.testing.assert_allclose(out.numpy(), expected[:, :, -queries:], rtol=0, atol=1e-12)
        leaves = [x.clone().requires_grad_() for x in tensors]  # training attends over whole sequences
        trained = attention(*leaves, scheme, table)
        np.testing.assert_allclose(trained.detach().numpy(), expected, rtol=0, atol=1e-12)
        found = torch.autograd.grad(trained.square().sum(), leaves)
        exact = torch.autograd.grad(eager_attention(*leaves, scheme).square().sum(), leaves)
        for left, right in zip(found, exact, strict=True):
            np.testing.assert_allclose(left.numpy(), right.numpy(), rtol=0, atol=1e-10)


def test_every_modifier_without_parameters_has_cases() -> None:
    laid = {name for name, entry in SCHEMES.items() if entry.stands_on and entry.parameters == "0"}
    assert laid == {case[0] for case in CASES}


def test_of_two_windows_the_narrower_counts() -> None:
    """A scheme of another package may have a window of its own."""
    for own in (3, 7):
        base = made_of("alibi")
        base.window = own
        assert Combined(base, {"window": SlidingWindowMask(base.geometry, width=5)}).window == min(own, 5)


@pytest.mark.parametrize("width", [1, 7, 1000, 1024, 1500, 2048])
def test_a_window_of_float32_over_whole_blocks(width: int) -> None:
    """Blocks of which a row sees nothing are no NaN, whatever the fused kernel's blocks are."""
    scheme = made_of(f"kerple-log,window={width}", heads=1).float()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 2600, DIM, generator=generator) for _ in range(3))
    with torch.no_grad():
        out = attention(q, k, v, scheme, make_table(scheme, 2600, torch.float32, torch.device("cpu")))
        exact = eager_attention(*(x.double() for x in (q, k, v)), scheme.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=3e-6)


def test_a_window_leaves_most_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is O(L window): keys handed to attention, counted."""
    monkeypatch.setattr(module, "QUERY_CHUNK", 64)
    counts = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counting(q: Any, k: Any, v: Any, **kwargs: Any) -> Any:
        counts.append(q.shape[2] * k.shape[2])
        return sdpa(q, k, v, **kwargs)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", counting)
    scheme = made_of("rope,window=32")
    x = torch.randn(1, HEADS, 1024, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention(x, x, x, scheme, make_table(scheme, 1024, torch.float64, torch.device("cpu")))
    assert sum(counts) <= 1024 * (64 + 32)


@pytest.mark.parametrize("base", ["rope", "kerple-log", "nope"])
def test_ssmax_scales_each_row_by_the_log_of_its_keys(base: str) -> None:
    scheme = made_of(f"{base},ssmax")
    s = torch.tensor([0.3, 1.2, 2.0], dtype=torch.float64)
    with torch.no_grad():
        scheme.get_parameter("modifiers.ssmax.s").copy_(s)
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(HEADS, n, DIM)) for n in (20, 20, 20))
    expected = oracles.attend(
        q, k, v,
        lambda h, i, j, _: logit(base, (True, i - j, float(s[h]) * math.log(i + 1)), q[h, i], k[h, j], h),
    )  # fmt: skip
    tensors = [torch.from_numpy(x)[None] for x in (q, k, v)]
    with torch.no_grad():
        out = attention(*tensors, scheme, make_table(scheme, 20, torch.float64, torch.device("cpu")))
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=0, atol=1e-12)


MASKS = ("window=1", "window=5", "window=500", "streaming-sink=6,sinks=2", "lm-infinite=4,start=3")


@each_case("masks", [(), *((m,) for m in MASKS), *((a, b) for a in MASKS[:3] for b in MASKS[3:])])
def test_scalings_count_the_keys_that_a_row_sees(masks: tuple[str, ...]) -> None:
    """One by one, under every mask and two at once; ln of that count scales the row."""
    scheme = made_of(",".join(["rope", *masks, "ssmax", "log-n=3"]))
    with torch.no_grad():
        scheme.get_parameter("modifiers.ssmax.s").copy_(torch.tensor([0.3, 1.2, 2.0]))
    positions = torch.arange(40)
    counts = []
    for i in range(40):
        seen = list(range(i + 1))
        for mask in masks:
            size = int(mask.split("=")[1].split(",")[0])
            first = int(mask.rpartition("=")[2]) if "," in mask else 0
            near = size + 1 if "sink" in mask else size
            seen = [j for j in seen if i - j < near or j < first]
        counts.append(len(seen))
    assert scheme.count_keys(positions).tolist() == counts
    scale = scheme.row_scale(positions, scheme.count_keys(positions))
    assert scale is not None
    expected = [
        [s * math.log(n) * max(1, math.log(n) / math.log(3)) for n in counts] for s in (0.3, 1.2, 2.0)
    ]
    np.testing.assert_allclose(scale.detach().numpy(), expected, rtol=1e-6)


def test_keys_under_any_number_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scheme = made_of("rope")
    for _ in range(200):
        masks = [(int(near), int(first)) for near, first in rng.integers(0, 12, size=(rng.integers(1, 5), 2))]
        monkeypatch.setattr(scheme, "masks", lambda masks=masks: masks)
        expected = [
            sum(all(i - j < near or j < first for near, first in masks) for j in range(i + 1))
            for i in range(20)
        ]
        assert scheme.count_keys(torch.arange(20)).tolist() == expected, masks


def test_ssmax_starts_at_one_at_the_last_trained_position() -> None:
    scheme = made_of("ssmax")
    scheme.reset_parameters(torch.Generator().manual_seed(0))
    scale = scheme.row_scale(torch.arange(TRAINED), torch.arange(TRAINED) + 1)
    assert scale is not None
    np.testing.assert_allclose(scale[:, -1].detach().numpy(), 1.0, rtol=1e-6)


@each_case(
    ("text", "expected"),
    [
        ("kerple-log,window=512", SchemeSpec("kerple-log", (), (("window", (("width", "512"),)),))),
        ("rope,window", SchemeSpec("rope", (), (("window", (("width", ""),)),))),
        (
            "rope,self-extend=9,group=2,window=4:base=500",
            SchemeSpec(
                "rope",
                (("base", "500"),),
                (("self-extend", (("window", "9"), ("group", "2"))), ("window", (("width", "4"),))),
            ),
        ),
        (
            "kernel,window=4: -r1*D",
            SchemeSpec("kernel", (("formula", "-r1*D"),), (("window", (("width", "4"),)),)),
        ),
    ],
)
def test_modifiers_are_read_and_written(text: str, expected: SchemeSpec) -> None:
    assert parse_scheme(text) == expected
    assert parse_scheme(str(expected)) == expected


@each_case(
    ("text", "message"),
    [
        ("rope,windw=4", "unknown modifier 'windw': did you mean 'window'"),
        ("rope,alibi", "unknown modifier 'alibi'"),
        ("rope,4", "expected key=value, got '4'"),
        ("rope,window=4,window=5", "given twice"),
    ],
)
def test_a_wrong_modifier_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_of(text)


@each_case(
    ("text", "message"),
    [
        ("sinusoidal,rerope=4", "needs a scheme of relative position"),
        ("nope,rerope=4", "rerope moves positions, and Nope has none in its attention"),
        ("rope,rerope=4,self-extend=3", "both move positions"),
        ("rope,window=-1", "width=-1 must be at least 1"),
        ("rope,self-extend=4,group=0", "must be at least 1"),
        ("rope,rerope=4,leak=0.5", "leak=0.5 must be above 1"),
        ("rope,streaming-sink,sinks=7", "leave no recent key"),
        ("rope,dca=4,local=4", "local=4 must be at least 1 and less than chunk=4"),
        ("rope,dca=-4", "less than chunk=-4"),
        ("rope,string=4,local=5", "local=5 must be at least 1 and at most shift=4"),
        ("rope,string,attention_factor=0", "must be positive"),
        ("rope,dca=4,rerope=4", "both move positions"),
        ("rope,lm-infinite=-4", "0 or more"),
        ("rope,log-n=1", "at least 2"),
        ("rope,ssmax=-1", "must be positive"),
        ("rope,window=4,grp=2", "unknown option of window 'grp'"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made_of(text)
