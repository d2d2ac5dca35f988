"""Windows and weights of the tools' protocols on exhaustive small grids, against the tools' index arithmetic.

The oracles are the sources' loops over positions alone: what is fed, which labels are left, what the shift
inside the model takes from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import kerple_eval
from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.protocols.dape import Dape
from kerple_eval.protocols.hf_guide import HfGuide
from kerple_eval.protocols.lm_eval_rolling import LmEvalRolling
from kerple_eval.protocols.sliding_window import SlidingWindow
from kerple_eval.protocols.yarn import Yarn
from kerple_eval.records.cell import Cell
from kerple_eval.records.reductions import weighted_mean
from kerple_eval.stats.documents import scored as scored_cell
from kerple_eval.types import FirstToken, UserError, Window

GRID = list(itertools.product(range(1, 30), range(2, 12), range(1, 14)))  # n, L, S
Fed = tuple[range, list[int], int]  # real tokens fed, targets scored, labels the tool counts


def strided(n: int, most: int, stride: int, bos: bool) -> Iterator[Fed]:
    """The loop that YaRN's script and the guide share; tokens by position, BOS as -1."""
    prev_end_loc = 0
    for begin_loc in range(0, n, stride):
        end_loc = min(begin_loc + most, n)
        trg_len = end_loc - prev_end_loc
        input_ids = ([-1] if bos else []) + list(range(begin_loc, end_loc))
        target_ids = list(input_ids)
        target_ids[:-trg_len] = [-100] * len(target_ids[:-trg_len])
        yield (
            range(begin_loc, end_loc),
            [label for label in target_ids[1:] if label != -100],
            sum(label != -100 for label in target_ids),
        )
        prev_end_loc = end_loc
        if end_loc == n:
            break


def scored(window: Window) -> list[int]:
    return list(range(window.first_target, window.stop + 1))


@pytest.mark.parametrize("bos", [True, False])
def test_yarn(bos: bool) -> None:
    refused = 0
    for n, length, stride in GRID:
        most = length - 1 if bos else length
        protocol = Yarn(stride=stride)
        plan = protocol.plan_after_marker if bos else protocol.plan
        fed = list(strided(n, most, stride, bos))
        if any(not targets for _, targets, _ in fed):  # the mean of nothing
            with pytest.raises(UserError, match="one token and no target"):
                plan(n, most, most)
            refused += 1
            continue
        windows = plan(n, most, most)
        assert [scored(w) for w in windows] == [targets for _, targets, _ in fed]
        assert [w.start for w in windows] == [tokens.start for tokens, _, _ in fed]
        assert all(w.stop + 1 == tokens.stop for w, (tokens, _, _) in zip(windows, fed, strict=True))
        assert protocol.weights(windows) == [1.0] * len(fed)
    assert (refused > 0) is not bos


@pytest.mark.parametrize("bos", [True, False])
def test_yarn_truncated(bos: bool) -> None:
    for n, length, stride in GRID:
        most = length - 1 if bos else length
        protocol = Yarn(stride=stride, truncate=True)
        plan = protocol.plan_after_marker if bos else protocol.plan
        fed = list(strided(min(n, most), most, most, bos))
        if fed[0][1]:
            assert [scored(w) for w in plan(n, most, most)] == [targets for _, targets, _ in fed]


def test_hf_guide() -> None:
    compared = 0
    for n, length, stride in GRID:
        fed = list(strided(n, length, stride, False))
        if n == 1 or any(not targets for _, targets, _ in fed):
            continue
        windows = HfGuide(stride=stride).plan(n, length, length)
        assert [scored(w) for w in windows] == [targets for _, targets, _ in fed]
        assert [w.start for w in windows] == [tokens.start for tokens, _, _ in fed]
        twice = windows + windows  # the weights of each document stand alone
        assert HfGuide(stride=stride).weights(twice) == 2 * [float(labels - 1) for _, _, labels in fed]
        compared += len(windows)
    assert compared > 5_000


def test_lm_eval_rolling_is_sliding_window_of_stride_l_behind_the_prefix() -> None:
    for n, length in itertools.product(range(40), range(1, 13)):
        windows = LmEvalRolling().plan(n, length, length)
        assert windows == SlidingWindow(stride=length).plan(n, length, length)


def test_dape() -> None:
    for n, length, k in GRID:
        windows = Dape(k=k).plan(n, length, length)
        wanted = [
            list(range(s + length - min(k, length) + 1, s + length + 1))
            for s in range(n) if s % length == 0 and s + length < n
        ]  # fmt: skip
        assert [scored(w) for w in windows] == wanted
        assert all(w.inputs == length for w in windows)
    weights = Dape(k=2, batch=3).weights([Window(0, 4, 3)] * 7)
    assert weights == [1 / 3] * 6 + [1.0]


def test_canonical_strings() -> None:
    for given, wanted in (
        ("yarn", "yarn"),
        ("yarn:truncate=true,stride=9", "yarn:stride=9,truncate=true"),
        ("hf-guide:stride=4", "hf-guide:stride=4"),
        ("lm-eval-rolling:prefix_token_id=3", "lm-eval-rolling:prefix_token_id=3"),
    ):
        assert make_protocol(given)[1] == wanted
        assert make_protocol(wanted)[1] == wanted
    assert make_protocol("lm-eval-rolling")[0].first_token == FirstToken("prefix")


def test_weighted_mean() -> None:
    losses = [np.array([1.0, 3.0], dtype=np.float32), np.array([5.0], dtype=np.float32)]
    assert weighted_mean(losses, [1.0, 1.0]) == 3.5
    assert weighted_mean(losses, [2.0, 1.0]) == 3.0


def test_a_window_may_begin_with_its_target_only_after_a_marker() -> None:
    assert Window(3, 5, 3, after_marker=True).targets == 3
    assert Window(3, 3, 3, after_marker=True).inputs == 0
    for bad in ((3, 5, 2), (3, 2, 3), (-1, 2, 0)):
        with pytest.raises(ValueError, match="not a window"):
            Window(*bad, after_marker=True)


def test_intervals_are_of_the_tools_own_number(models: dict[str, str], text: str, tmp_path: Path) -> None:
    """The ratio of a cell's sums by document is its nll, whatever the protocol weighs; no bytes then."""
    protocols = ["full-context", "yarn:stride=8", "hf-guide:stride=8", "dape:k=4,batch=3"]
    made = kerple_eval.evaluate(
        models["rope"], text=text, lengths=[16], protocols=protocols, out=tmp_path / "r"
    )
    for cell, row in zip(made.cells(), made.summary().itertuples(), strict=True):
        assert isinstance(cell, Cell)
        found = scored_cell(cell)
        assert found.sums.mean == pytest.approx(row.nll, rel=1e-12)
        assert found.targets == row.targets
        assert (found.sums.bytes is None) is (cell.header.reduction is not None)
    token_mean = made.losses(protocol="yarn:stride=8")["loss"].mean()
    assert abs(token_mean - made.summary()["nll"][1]) > 1e-3
    with pytest.raises(UserError, match="--precision has no meaning for protocol yarn:stride=8"):
        kerple_eval.evaluate(
            models["rope"],
            text=text,
            lengths=[16],
            protocols="yarn:stride=8",
            precision="1%",
            out=tmp_path / "p",
        )
