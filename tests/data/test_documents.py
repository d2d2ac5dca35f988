"""Documents: hashes, the split by name, selection, held-out tails and packing."""

from __future__ import annotations

import hashlib
from itertools import pairwise, permutations

import numpy as np
import pytest

from kerple_eval.data.documents import (
    Document,
    TokenDocument,
    check_encodable,
    choose,
    hashed_share,
    hold_out_tail,
    in_test_split,
    pack,
    text_hash,
    tokenize,
)
from kerple_eval.data.tokenizer import ByteTokenizer
from kerple_eval.types import UserError
from tests.helpers.cases import each_case

NAMES = [f"folder/{i}.txt" for i in range(4000)]


def sha_share(text: str) -> float:
    """The first 8 bytes of sha256 as a fraction, by way of the hexadecimal digest."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16


def test_share_is_the_head_of_sha256() -> None:
    assert all(hashed_share(name) == sha_share(name) for name in ["", "é", *NAMES[:50]])
    # sha256 of the empty string begins e3b0c442 98fc1c14 (FIPS 180-4 test value)
    assert hashed_share("") == pytest.approx(0xE3B0C442 / 2**32, abs=2**-32)


@each_case("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_split_is_near_its_share_and_grows_with_it(fraction: float) -> None:
    held_out = {name for name in NAMES if in_test_split(name, fraction)}
    spread = (fraction * (1 - fraction) / len(NAMES)) ** 0.5
    assert abs(len(held_out) / len(NAMES) - fraction) < 4 * spread
    assert held_out <= {name for name in NAMES if in_test_split(name, min(1.0, fraction * 1.1))}


def test_the_split_of_known_names_never_moves() -> None:
    """From ``printf %s NAME | sha256sum``: a change here would change every number of every task."""
    assert hashed_share("a.txt") == pytest.approx(0x18B7CB09 / 2**32, abs=2**-32)
    assert hashed_share("sotu.txt") == pytest.approx(0xFA4EA1E2 / 2**32, abs=2**-32)
    assert hashed_share("x") == pytest.approx(0x2D711642 / 2**32, abs=2**-32)
    assert all(in_test_split(name, 1.0) for name in NAMES)


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    chosen = [choose(NAMES, count, seed=3) for count in (0, 1, 7, 100, 3999, 4000, 9999, None)]
    for smaller, larger in pairwise(chosen):
        assert set(smaller) <= set(larger)
    assert [len(c) for c in chosen] == [0, 1, 7, 100, 3999, 4000, 4000, 4000]
    assert all(c == sorted(c) for c in chosen)


def test_a_choice_does_not_hang_on_order_or_on_other_names() -> None:
    few = NAMES[:6]
    assert {tuple(choose(order, 3, seed=0)) for order in permutations(few)} == {tuple(choose(few, 3, seed=0))}
    picked = set(choose(NAMES, 50, seed=0))
    for gone in NAMES[:200]:
        left = set(choose([n for n in NAMES if n != gone], 50, seed=0))
        assert left >= picked - {gone}
        assert len(left - picked) == (gone in picked)


def test_a_choice_is_drawn_by_its_seed() -> None:
    by_hand = sorted(sorted(NAMES, key=lambda name: sha_share(f"7\0{name}"))[:40])
    assert choose(NAMES, 40, seed=7) == by_hand
    assert choose(NAMES, 40, seed=8) != by_hand
    overlap = len(set(choose(NAMES, 1000, seed=7)) & set(choose(NAMES, 1000, seed=8)))
    assert 150 < overlap < 350  # a quarter of a thousand, were the seeds independent


def test_the_text_hash_knows_names_texts_and_their_border_but_no_order() -> None:
    base = [Document("a", "xy"), Document("b", "z")]
    others = [
        [Document("a", "xy")],
        [Document("a", "xy"), Document("c", "z")],
        [Document("a", "xy"), Document("b", "z ")],
        [Document("a", "x"), Document("b", "yz")],
        [Document("ax", "y"), Document("b", "z")],
        [Document("a", "z"), Document("b", "xy")],
        [Document("", "axybz")],
        [*base, Document("c", "")],
        [],
    ]
    hashes = [text_hash(documents) for documents in [base, *others]]
    assert len(set(hashes)) == len(hashes)
    assert text_hash(reversed(base)) == hashes[0]
    assert text_hash(()) == hashlib.sha256().hexdigest()


def test_the_hash_of_token_ids_is_of_their_bytes() -> None:
    ids = np.array([1, 256, 70000], dtype=np.int64)
    raw = b"".join(int(i).to_bytes(8, "little") for i in ids)
    assert TokenDocument("a", ids).sha256 == hashlib.sha256(raw).hexdigest()
    assert TokenDocument("b", np.repeat(ids, 2)[::2]).sha256 == hashlib.sha256(raw).hexdigest()


@each_case("length", [*range(1, 45), 1000])
@each_case("fraction", [0.05, 0.5])
def test_a_held_out_tail_takes_nothing_away(length: int, fraction: float) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length - 1)) + "é"
    train, held_out = hold_out_tail([Document("d", text)], fraction)
    assert [train[0].name, held_out[0].name] == ["d", "d"]
    assert train[0].text + held_out[0].text == text
    assert len(held_out[0].text) >= 1
    assert abs(len(held_out[0].text) - max(1, fraction * length)) <= 0.5


def test_tails_are_held_out_of_every_document() -> None:
    documents = [Document(str(i), "x" * 100 + "y" * 25) for i in range(3)]
    train, held_out = hold_out_tail(documents, 0.2)
    assert {d.text for d in train} == {"x" * 100}
    assert [(d.name, d.text) for d in held_out] == [(str(i), "y" * 25) for i in range(3)]


def test_packing_bytes() -> None:
    tokenizer = ByteTokenizer()
    parts = [tokenize(Document(n, t), tokenizer) for n, t in (("b", "é"), ("a", ""), ("c", "xy"))]
    packed = pack(parts, tokenizer, "all")
    assert bytes(packed.ids.tolist()) == "é\0\0xy\0".encode()
    assert packed.byte_counts is not None
    assert packed.byte_counts.tolist() == [1, 1, 0, 0, 1, 1, 0]
    unknown = pack([*parts, TokenDocument("d", np.array([5]))], tokenizer, "all")
    assert unknown.byte_counts is None  # one document without counts leaves the whole without


@each_case("tokens", [None, 0, 1, 3, 4, 5])
def test_cutting_keeps_ids_and_counts_together(tokens: int | None) -> None:
    document = TokenDocument("d", np.arange(4), np.arange(4) + 10)
    cut = document.cut(tokens)
    kept = 4 if tokens is None else min(4, tokens)
    assert cut.byte_counts is not None
    assert (len(cut), cut.ids.tolist()) == (kept, [0, 1, 2, 3][:kept])
    assert cut.byte_counts.tolist() == [10, 11, 12, 13][:kept]
    assert TokenDocument("d", np.arange(4)).cut(tokens).byte_counts is None


def test_text_that_utf8_cannot_spell() -> None:
    assert check_encodable("é🙂", "here") == "é🙂"
    with pytest.raises(
        UserError, match=r"^here: half a surrogate pair at character 2, which UTF-8 cannot encode"
    ):
        check_encodable("ab\udfff", "here")
