"""The release's split of documents and its samples, token by token, in plain Python.

After ``data_utils.py``, ``gpt2_dataset.py`` and ``helpers.cpp: build_sample_idx``.
"""

from __future__ import annotations

import numpy as np


def split_bounds(weights: list[float], documents: int) -> list[int]:
    """Four edges; rounding to whole documents, then the surplus comes off the last three."""
    whole = sum(weights)
    bounds = [0]
    for weight in weights:
        bounds.append(bounds[-1] + round(weight / whole * float(documents)))
    surplus = bounds[3] - documents
    for i in (1, 2, 3):
        bounds[i] -= surplus
    assert bounds[3] == documents
    return bounds


def drawn(
    corpus: list[list[int]], numbers: list[int], length: int, seed: int, wanted: int
) -> tuple[list[list[int]], int]:
    """Every sample in the order the loader gives them, and the number of epochs."""
    tokens = 0
    for number in numbers:
        tokens += len(corpus[number])
    epochs = 0
    reached = 0
    while True:
        epochs += 1
        reached += tokens
        if (reached - 1) // length >= wanted:
            break
    generator = np.random.RandomState(seed)
    doc_idx = [number for _ in range(epochs) for number in numbers]
    generator.shuffle(doc_idx)
    count = (epochs * tokens - 1) // length
    sample_idx = [(0, 0)]
    row, offset = 0, 0
    for _ in range(count):
        missing = length + 1
        while missing > 0:
            here = len(corpus[doc_idx[row]]) - offset
            if here >= missing:  # the sample ends in this document; the next begins on its last token
                offset += missing - 1
                missing = 0
            else:
                missing -= here
                row, offset = row + 1, 0
        sample_idx.append((row, offset))
    shuffle_idx = list(range(count))
    generator.shuffle(shuffle_idx)
    samples = []
    for number in shuffle_idx:
        (first, begin), (last, end) = sample_idx[number], sample_idx[number + 1]
        if first == last:
            text = corpus[doc_idx[first]][begin : end + 1]
        else:
            text = corpus[doc_idx[first]][begin:]
            for between in range(first + 1, last):
                text = text + corpus[doc_idx[between]]
            text = text + corpus[doc_idx[last]][: end + 1]
        assert len(text) == length + 1
        samples.append(text)
    return samples, epochs
