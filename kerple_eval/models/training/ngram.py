"""Interpolated byte n-gram (Witten-Bell): the yardstick a trained checkpoint's card must beat.

    p_k(c | h_k) = (n(h_k c) + T(h_k) p_{k-1}(c | h_{k-1})) / (n(h_k) + T(h_k)),   p_{-1} = 1/256

h_k: the k bytes before; n: counts in the training text; T(h): distinct bytes seen after h (Witten and
Bell 1991; Chen and Goodman 1998, Section 2.6). Order k means k bytes of context. No counts cross
documents. Where a document has fewer bytes before, the lower order is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.int64]


LONGEST = 6  # bytes before: with the next they fit a number of 64 bits


def _keys(document: Bytes, order: int) -> NDArray[np.uint64]:
    """Each position i >= order as one number: bytes i-order .. i, most recent last."""
    if len(document) <= order:
        return np.zeros(0, dtype=np.uint64)
    keys = np.zeros(len(document) - order, dtype=np.uint64)
    for back in range(order, -1, -1):
        part = document[order - back : len(document) - back].astype(np.uint64)
        keys = (keys << np.uint64(8)) | part
    return keys


def _lookup(
    table: NDArray[np.uint64], counts: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.float64]:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, counts[at], 0).astype(np.float64)


def bits_per_byte(train: Sequence[Bytes], held_out: Sequence[Bytes], order: int) -> float:
    """Mean bits of the held-out bytes 1..n-1 of each document (byte 0 is context, as for a model)."""
    if not 0 <= order <= LONGEST:
        raise ValueError(f"order {order} is not within 0..{LONGEST}")
    probability = [np.full(len(document), 1 / 256) for document in held_out]
    for k in range(order + 1):
        seen = np.concatenate([_keys(document, k) for document in train])
        if not len(seen):
            break
        table, counts = np.unique(seen, return_counts=True)
        histories, first = np.unique(table >> np.uint64(8), return_index=True)
        totals = np.add.reduceat(counts, first)
        distinct = np.diff(np.append(first, len(table)))
        for document, p in zip(held_out, probability, strict=True):
            keys = _keys(document, k)
            total = _lookup(histories, totals, keys >> np.uint64(8))
            kinds = _lookup(histories, distinct, keys >> np.uint64(8))
            mixed = _lookup(table, counts, keys) + kinds * p[k:]
            known = total > 0
            p[k:][known] = mixed[known] / (total + kinds)[known]
    bits = [-np.log2(p[1:]) for p in probability]
    return float(np.concatenate(bits).mean())
