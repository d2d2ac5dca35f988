"""Train, valid and test by document number, as GPT-NeoX splits a data set (``"split": "949,50,1"``).

Edges are cumulative ``int(round(share * documents))``, Python's rounding of halves to even included,
and the excess at the end is taken off every edge but the first (EleutherAI/gpt-neox,
``megatron/data/data_utils.py: get_train_valid_test_split_``; the same in the KERPLE release). Written
with slashes, which that code reads too. No torch, no I/O.
"""

from __future__ import annotations

import re

from kerple_eval.types import UserError

PARTS = ("train", "valid", "test")
SHARES = "949/50/1"


def parse_shares(text: str, where: str) -> tuple[float, ...]:
    """``949/50/1`` -> three shares that add up to 1."""
    words = text.split("/")
    if len(words) != len(PARTS) or not all(re.fullmatch(r"\d+(\.\d+)?", w, re.ASCII) for w in words):
        raise UserError(f"{where}: must be TRAIN/VALID/TEST, as in {SHARES}, got {text!r}")
    parts = [float(word) for word in words]
    if not 0 < sum(parts) < float("inf"):
        raise UserError(f"{where}: must add up to more than 0, got {text!r}")
    return tuple(part / sum(parts) for part in parts)


def part_range(part: str, shares: tuple[float, ...], count: int) -> range:
    """Numbers of the documents of ``part`` (train, valid, test or all) among ``count``; may be empty."""
    if part == "all":
        return range(count)
    edges = [0]
    for share in shares:
        edges.append(edges[-1] + round(share * float(count)))
    excess = edges[-1] - count
    edges = [0, *(edge - excess for edge in edges[1:])]
    at = PARTS.index(part)
    return range(max(edges[at], 0), max(edges[at + 1], 0))
