"""Shared memory of the compiled attention loop: the formula against what Triton's compiler asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kerple_eval.models.decoder.flex import FlexScores
from kerple_eval.models.decoder.flex_blocks import BACKWARD, CHOICES, BlockSizes, choose, tables_of
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.catalogue import SCHEMES
from tests.helpers import tiny

H100 = 232_448


@pytest.mark.parametrize(
    ("blocks", "head_dim", "itemsize", "tables", "compiled"),
    [  # torch 2.11.0, Triton 3.6.0 for sm_90, by the tools of tests/gpu; metadata.shared
        (BlockSizes(128, 128, 3), 64, 2, 0, 114_688),  # torch's own choice
        (BlockSizes(128, 128, 3), 64, 2, 1, 245_760),
        (BlockSizes(128, 128, 3), 64, 2, 2, 376_832),
        (BlockSizes(128, 64, 3), 128, 2, 0, 131_072),
        (BlockSizes(128, 64, 3), 128, 2, 1, 196_608),
        (BlockSizes(128, 64, 3), 128, 2, 2, 262_144),
        (BlockSizes(128, 64, 2), 64, 2, 1, 81_920),
        (BlockSizes(128, 64, 2), 64, 2, 2, 114_688),
        (BlockSizes(128, 64, 2), 128, 2, 2, 163_840),
        (BlockSizes(128, 64, 2), 80, 2, 1, 131_072),
        (BlockSizes(64, 32, 2), 128, 2, 2, 65_536),
    ],
)
def test_the_formula_is_what_the_compiler_asks_for(
    blocks: BlockSizes, head_dim: int, itemsize: int, tables: int, compiled: int
) -> None:
    assert blocks.shared_memory(head_dim, itemsize, tables) == compiled


def test_an_h100_takes_the_widest_for_every_usual_head() -> None:
    for head_dim in (16, 32, 64, 80, 96, 128):
        for tables in (0, 1, 2):
            assert choose(head_dim, 2, tables, H100) == CHOICES[0]
    assert choose(256, 2, 2, H100) == BlockSizes(64, 64, 2)
    assert choose(128, 4, 2, H100) == BlockSizes(64, 32, 2)


def test_what_is_chosen_fits_and_nothing_wider_does() -> None:
    for limit in (8_000, 49_152, 101_376, 166_912, H100):
        for head_dim in (16, 64, 80, 128, 256):
            for itemsize in (2, 4):
                for tables in (0, 1, 2):
                    needs = [c.shared_memory(head_dim, itemsize, tables) for c in CHOICES]
                    assert needs == sorted(needs, reverse=True)
                    chosen = choose(head_dim, itemsize, tables, limit)
                    fits = [c for c, need in zip(CHOICES, needs, strict=True) if need + 2048 <= limit]
                    fits = [c for c in fits if itemsize == 2 or c.keys == 32]
                    assert chosen == (fits[0] if fits else None)


@pytest.mark.parametrize("name", [n for n, entry in SCHEMES.items() if not entry.stands_on])
def test_tables_are_counted_from_the_class_as_the_loop_reads_them(name: str) -> None:
    scheme = scheme_of(tiny.config(name)).at(0)
    scores = FlexScores(scheme, 128, torch.float32, torch.device("cpu"))
    assert tables_of(scheme) >= (scores.kernel is not None) + (scores.weight is not None)


def test_options_are_torch_s_names() -> None:
    from torch.nn.attention.flex_attention import FlexKernelOptions  # noqa: PLC0415

    known = {*FlexKernelOptions.__annotations__}
    plain = {name.removeprefix("fwd_").removeprefix("bwd_") for name in known}
    for limit in (H100, 166_912, 101_376, 49_152):
        options = CHOICES[0].options(limit)
        assert {name.removeprefix("fwd_").removeprefix("bwd_") for name in options} <= plain
    assert CHOICES[0].options(H100)["bwd_num_stages"] == 2
    assert CHOICES[0].options(166_912)["bwd_num_stages"] == 1
    assert CHOICES[0].options(101_376)["bwd_BLOCK_M1"] == 32


def test_the_backward_figures_stand_in_the_compiler_s_table() -> None:
    """``python -m tests.gpu DIR`` writes it: the widest case, and what cards with less memory get of it."""
    table = Path("results/benchmarks/sm90.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in table.splitlines() if "backward" in line and " 128 train" in line]
    compiled = {int(row[5].replace(",", "")): row[7].split(",")[1].strip() for row in rows}
    assert compiled == {size: str(options["num_stages"]) for size, options in BACKWARD}
