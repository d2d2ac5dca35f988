"""The byte n-gram against Witten-Bell written out with dictionaries, one position at a time, float64."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from kerple_eval.models.training.ngram import bits_per_byte
from tests.helpers.cases import each_case


def slow_bits(train: Sequence[bytes], held_out: Sequence[bytes], order: int) -> float:
    """p_k(c|h) = (n(hc) + T(h) p_{k-1}(c|h')) / (n(h) + T(h)), p_{-1} = 1/256; lower order where h is
    unseen or the document has fewer bytes before."""
    follow: dict[bytes, Counter[int]] = defaultdict(Counter)
    for text in train:
        for at, byte in enumerate(text):
            for k in range(min(order, at) + 1):
                follow[text[at - k : at]][byte] += 1

    def probability(history: bytes, byte: int) -> float:
        lower = 1 / 256 if not history else probability(history[1:], byte)
        seen = follow.get(history)
        if not seen:
            return lower
        n, kinds = sum(seen.values()), len(seen)
        return (seen[byte] + kinds * lower) / (n + kinds)

    bits = [
        -math.log2(probability(text[max(0, at - order) : at], text[at]))
        for text in held_out
        for at in range(1, len(text))
    ]
    return math.fsum(bits) / len(bits)


def as_bytes(texts: Sequence[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(text, dtype=np.uint8).astype(np.int64) for text in texts]


def random_texts(seed: int, lengths: Sequence[int], alphabet: int) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [bytes(generator.integers(256 - alphabet, 256, n).tolist()) for n in lengths]


CASES: dict[str, tuple[list[bytes], list[bytes]]] = {
    "words": ([b"the cat sat on the mat. the end", b"on a mat the cat"], [b"the cat on the hat", b"a cat"]),
    "unseen": ([b"aaaa", b"abab"], [b"zzzz", b"ba\xffab", "é数".encode()]),
    "short": ([b"", b"a", b"ab", b"abc", b"abca"], [b"", b"a", b"ba", b"cab", b"abc", b"abcab"]),
    "one byte": ([b"\x00"], [b"\x00\x00\x01"]),
    "nothing learnt": ([b""], [b"abc"]),
    "borders": ([b"ab", b"cd", b"ab"], [b"abcd", b"bcda"]),  # no counts across documents: bc is unseen
    "few symbols": (random_texts(0, [60, 3, 90, 1], 3), random_texts(1, [40, 2, 5], 4)),
    "many symbols": (random_texts(2, [300], 256), random_texts(3, [200], 256)),
}


@each_case("order", range(5))
@each_case("name", CASES)
def test_it_is_witten_bell(name: str, order: int) -> None:
    train, held_out = CASES[name]
    fast = bits_per_byte(as_bytes(train), as_bytes(held_out), order)
    assert fast == pytest.approx(slow_bits(train, held_out, order), rel=1e-12)


def test_known_values() -> None:
    """By hand: after "ab" (order 0) a has count 1 of 2, kinds 2: p(a) = (1 + 2/256) / 4."""
    bits = bits_per_byte(as_bytes([b"ab"]), as_bytes([b"xa"]), 0)
    assert bits == pytest.approx(-math.log2((1 + 2 / 256) / 4), rel=1e-14)
    assert bits_per_byte(as_bytes([b""]), as_bytes([b"abc"]), 3) == 8.0


def test_a_higher_order_helps_where_the_text_has_it() -> None:
    text = b"abacabad" * 200
    bits = [bits_per_byte(as_bytes([text]), as_bytes([text]), order) for order in range(4)]
    assert bits == sorted(bits, reverse=True)
    assert bits[3] < 0.5 < bits[0]


@pytest.mark.parametrize("order", [-1, 7])
def test_orders_that_no_key_can_hold_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=rf"^order {order} is not within 0\.\.6$"):
        bits_per_byte(as_bytes([b"ab"]), as_bytes([b"ab"]), order)


def test_order_six_still_fits_its_key() -> None:
    train, held_out = random_texts(4, [400], 2), random_texts(5, [100], 2)
    fast = bits_per_byte(as_bytes(train), as_bytes(held_out), 6)
    assert fast == pytest.approx(slow_bits(train, held_out, 6), rel=1e-12)
