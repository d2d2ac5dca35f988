"""kerple-release: the samples the KERPLE release evaluates, drawn as it draws them.

Source: github.com/chijames/KERPLE commit 73f1ee2 (a GPT-NeoX fork), ``kerple_configs/ex_eval.yml``,
``megatron/data/data_utils.py``, ``megatron/training.py: evaluate``; GPT-NeoX ``gpt2_dataset.py`` and
``helpers.cpp: build_sample_idx`` (commits 0321b40e, 02ccedcc).

The text is a list of documents, each ending in the end-of-document token; sizes in tokens.

1. Documents are split by number, ``shares`` (949/50/1) to train, valid and test: cumulative
   ``int(round(share * documents))``, the excess at the end taken off every edge but the first.
2. The split's documents are repeated for the fewest epochs with ``(epochs * tokens - 1) // L >=
   samples`` and shuffled together, by ``numpy.random.RandomState(seed)``.
3. This stream is cut into S = ``(epochs * tokens - 1) // L`` samples of L + 1 tokens; neighbours share
   one token. The same generator then shuffles their numbers.
4. Scored are ``samples`` (320) of them in shuffled order from position ``start`` on: each one window
   of L inputs and L targets, with attention across document borders. The loss is the mean of the
   samples' means (here the mean over all targets: every sample has L), the perplexity its exp.

The release's loader has S - 1 samples, not S: its length counts the edges between samples. A draw that
needs the last one is refused here, as the release stops there.

``start`` is 0 for test. For valid the release continues where training stopped: a checkpoint of iteration
I begins at ``(I // 1000) * 320`` (16000 at the released 50,000), modulo S - 1; so does ``start`` here.
Options: ``split`` train, valid, test or all; ``seed`` 1234 (GPT-NeoX's default; the release's runs are
1235 to 1239).

Known biases: 163,840 targets at L = 512 and 5,242,880 at 16384, 32 times as many,
of another text at each length, so a curve over L mixes the model with the draw; the seed picks the
text, so a spread over seeds mixes models and text; documents recur where epochs > 1; a window begins
anywhere, and its first targets have very little context ("early token curse"). Better:
``aligned`` (the same targets at every length) or ``full-context`` (every target once).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerple_eval.protocols.base import Protocol
from kerple_eval.protocols.neox_split import PARTS, SHARES, parse_shares, part_range
from kerple_eval.types import Sample, Span, UserError, Window

MOST_DOCUMENTS = 1 << 28  # in the repeated and shuffled stream: 1 GiB of numbers


class KerpleRelease(Protocol):
    draws_samples = True

    def __init__(
        self, *, split: str = "test", seed: int = 1234, samples: int = 320, start: int = 0,
        shares: str = SHARES,
    ) -> None:  # fmt: skip
        if split not in (*PARTS, "all"):
            raise UserError(f"kerple-release: split={split}: must be one of {', '.join(PARTS)}, all")
        if not 0 <= seed < 2**32:
            raise UserError(f"kerple-release: seed={seed} must be within 0..{2**32 - 1}")
        if samples < 1:
            raise UserError(f"kerple-release: samples={samples} must be at least 1")
        if start < 0:
            raise UserError(f"kerple-release: start={start} must be at least 0")
        self.split, self.seed, self.wanted, self.start = split, seed, samples, start
        self.shares = parse_shares(shares, "kerple-release: shares")

    def plan(self, n: int, length: int, longest: int) -> list[Window]:
        """A sample is one whole window."""
        return [Window(0, length, 1)] if n > length else []

    def samples(self, sizes: Sequence[int] | NDArray[np.int64], length: int) -> list[Sample]:
        documents = self._documents(len(sizes))
        inside = np.asarray(sizes, dtype=np.int64)[documents]
        tokens = int(inside.sum())
        if not tokens:
            raise UserError(f"kerple-release: the documents of split={self.split} hold no token")
        epochs = -(-(self.wanted * length + 1) // tokens)
        if epochs * len(documents) > MOST_DOCUMENTS:
            raise UserError(
                f"kerple-release: samples={self.wanted} at length {length} need the text's {tokens} tokens "
                f"{epochs} times; use fewer samples or a longer text"
            )
        rng = np.random.RandomState(self.seed)
        order = np.tile(documents, epochs)  # int32: the type that is shuffled changes memory alone
        rng.shuffle(order)
        count = (epochs * tokens - 1) // length
        numbers = np.arange(count, dtype=np.uint32)
        rng.shuffle(numbers)
        loaded = count - 1  # the loader's length
        first = self.start % max(loaded, 1)
        if first + self.wanted > loaded:
            raise UserError(
                f"kerple-release: start={self.start} leaves {loaded - first} of the {loaded} samples that "
                f"the release's loader has at length {length}, and samples={self.wanted}; the release "
                "stops there too"
            )
        stops = np.cumsum(np.asarray(sizes, dtype=np.int64)[order])  # of each document, in the stream
        return [
            Sample(f"sample-{number:08d}", _spans(order, stops, number * length, length + 1))
            for number in numbers[first : first + self.wanted].tolist()
        ]

    def _documents(self, count: int) -> NDArray[np.int32]:
        """Numbers of the split's documents."""
        numbers = part_range(self.split, self.shares, count)
        if not numbers:
            others = [p for p in PARTS if part_range(p, self.shares, count)]
            raise UserError(
                f"kerple-release: split={self.split} has none of the {count} documents "
                f"(not empty: {', '.join(others) or 'none'}); split=all draws from every one"
            )
        return np.arange(numbers.start, numbers.stop, dtype=np.int32)


def _spans(order: NDArray[np.int32], stops: NDArray[np.int64], start: int, count: int) -> tuple[Span, ...]:
    """``count`` tokens of the stream from position ``start`` as spans of its documents, in order."""
    spans = []
    at = int(np.searchsorted(stops, start, side="right"))  # the document that holds the token
    before = int(stops[at - 1]) if at else 0
    while count:
        stop = int(stops[at])
        taken = min(stop, start + count) - start
        if taken:
            spans.append(Span(int(order[at]), start - before, start - before + taken))
        start, count, before, at = start + taken, count - taken, stop, at + 1
    return tuple(spans)
