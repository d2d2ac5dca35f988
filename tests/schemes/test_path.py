"""PaTH over many blocks of its own size: closed forms, rounding, and blocks solved once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kerple_eval.models.decoder import attention as module
from kerple_eval.models.decoder.attention import attention
from kerple_eval.schemes import path
from kerple_eval.schemes.path import Steps
from tests.helpers.one_layer import DIM, HEADS, made

LENGTH = 200  # three blocks of 64 and a part of one


def vectors(seed: int = 0, length: int = LENGTH) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=(1, HEADS, length, DIM))) for _ in range(4)]


@pytest.mark.parametrize("rows", [LENGTH, 70, 64, 1])
def test_one_mirror_for_all_tokens_is_there_and_back(rows: int) -> None:
    """w_s = w, beta = 2: H is a reflection, H^D the identity at even distances and H at odd ones."""
    q, k, v, w = vectors()
    w = w[:, :, :1] / w[:, :, :1].norm(dim=-1, keepdim=True)
    mirrored = k - 2 * (k * w).sum(-1, keepdim=True) * w
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    odd = distance % 2 == 1
    logits = torch.where(odd, q @ mirrored.transpose(-1, -2), q @ k.transpose(-1, -2)) / DIM**0.5
    expected = logits.masked_fill(distance < 0, -torch.inf).softmax(-1) @ v
    steps = Steps(w.expand_as(k), torch.full((1, HEADS, LENGTH), 2.0, dtype=torch.float64))
    with torch.no_grad():
        found = attention(q[:, :, -rows:], k, v, made("path"), None, steps)
    np.testing.assert_allclose(found.numpy(), expected[:, :, -rows:].numpy(), rtol=0, atol=1e-10)


def test_directions_at_right_angles_never_meet() -> None:
    """w_s = e_(s mod d), beta = 1: each step takes one component away, after d steps nothing is left."""
    q, k, v, _ = vectors(1)
    places = torch.arange(LENGTH)
    w = torch.eye(DIM, dtype=torch.float64)[places % DIM].expand(1, HEADS, -1, -1)
    logits = torch.zeros(1, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    for i in range(LENGTH):
        for j in range(max(0, i - DIM), i + 1):
            kept = [c for c in range(DIM) if c not in {s % DIM for s in range(j + 1, i + 1)}]
            logits[..., i, j] = (q[:, :, i, kept] * k[:, :, j, kept]).sum(-1) / DIM**0.5
    future = torch.ones(LENGTH, LENGTH).triu(1).bool()
    expected = logits.masked_fill(future, -torch.inf).softmax(-1) @ v
    steps = Steps(w, torch.ones(1, HEADS, LENGTH, dtype=torch.float64))
    with torch.no_grad():
        found = attention(q, k, v, made("path"), None, steps)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-10)


def test_float32_over_two_thousand_tokens() -> None:
    """Rounding does not pile up over 32 blocks: no step lengthens a vector."""
    q, k, v, w = vectors(2, 2048)
    w = w / w.norm(dim=-1, keepdim=True)
    beta = 2 * torch.sigmoid(torch.from_numpy(np.random.default_rng(3).normal(size=(1, HEADS, 2048)) * 4))
    scheme = made("path")
    with torch.no_grad():
        exact = attention(q, k, v, scheme, None, Steps(w, beta))
        narrow = Steps(w.float(), beta.float())
        found = attention(q.float(), k.float(), v.float(), scheme.float(), None, narrow)
    np.testing.assert_allclose(found.double().numpy(), exact.numpy(), rtol=0, atol=1e-5)


def test_a_block_is_solved_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GENERAL_CHUNK_ELEMENTS", HEADS * LENGTH * 10)
    solved = []
    solve = torch.linalg.solve_triangular

    def counted(*args: object, **kwargs: object) -> Tensor:
        solved.append(1)
        return solve(*args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch.linalg, "solve_triangular", counted)
    scheme = made("path")
    q, k, v, _ = vectors()
    x = torch.from_numpy(np.random.default_rng(4).normal(size=(1, LENGTH, HEADS * DIM)))
    with torch.no_grad():
        kept = attention(q, k, v, scheme, None, scheme.observe(x))
    whole, parts = LENGTH // path.BLOCK, LENGTH // 10  # a chunk's last block is a part of one
    assert len(solved) <= whole + parts
    solved.clear()
    out = attention(q, k, v, scheme, None, scheme.observe(x))  # in training: each chunk its own
    assert len(solved) > whole + parts
    torch.testing.assert_close(kept, out.detach(), rtol=0, atol=1e-12)


def test_other_keys_are_solved_anew() -> None:
    scheme = made("path")
    q, k, v, x = vectors()
    x = x.transpose(1, 2).reshape(1, LENGTH, -1)
    with torch.no_grad():
        steps = scheme.observe(x)
        attention(q, k, v, scheme, None, steps)
        again = attention(q, k.flip(2), v, scheme, None, steps)
        fresh = attention(q, k.flip(2), v, scheme, None, scheme.observe(x))
    assert torch.equal(again, fresh)
