"""Bytes that a tokeniser loses, against texts whose loss is known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from kerple_eval.data.documents import Document
from kerple_eval.data.texts import DocumentSelection, TextSource
from kerple_eval.data.tokenizer import JsonTokenizer, ModelTokens
from kerple_eval.records.specification import LostText, TaskRecord

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def words(*vocabulary: str, unknown: bool = True) -> Tokenizer:
    """Words between spaces; others are ``<unk>``."""
    ids = {word: i for i, word in enumerate(["<unk>", *vocabulary])}
    fast = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    return fast


def letters(symbols: list[str], normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A token a character; a character without a token is dropped."""
    fast = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    if normalizer is not None:
        fast.normalizer = normalizer
    fast.decoder = decoders.Fuse()
    return fast


def byte_level(*, decoder: bool) -> Tokenizer:
    fast = Tokenizer(models.BPE({s: i for i, s in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if decoder:
        fast.decoder = decoders.ByteLevel()
    return fast


def lost(fast: Tokenizer, text: str, folder: Path) -> int:
    fast.save(str(folder / "t.json"))
    return JsonTokenizer(folder / "t.json").encode(text).lost


def test_nothing_is_lost(tmp_path: Path) -> None:
    for text in ("", "abc", " a  b\n", "naïve 数学 🙂", "\ufffd"):
        assert lost(byte_level(decoder=True), text, tmp_path) == 0
        assert lost(byte_level(decoder=False), text, tmp_path) == 0
    assert lost(words("▁the", "▁cat"), "the cat the", tmp_path) == 0
    assert lost(letters(LETTERS), "abc", tmp_path) == 0


def test_what_is_lost(tmp_path: Path) -> None:
    assert lost(words("▁the", "▁cat"), "the dog cat", tmp_path) == len(" dog")  # unknown
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), *((symbol, -1.0) for symbol in "▁abc")], 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    assert unigram.encode("a xé b").tokens == ["▁", "a", "▁", "xé", "▁", "b"]  # as if it had them
    assert lost(unigram, "a xé b", tmp_path) == len("xé".encode())
    assert lost(letters(LETTERS), "abé", tmp_path) == 2  # dropped
    assert lost(letters(LETTERS), "aéb", tmp_path) == 3  # and what follows, which the library then misplaces
    assert lost(letters(LETTERS), "ééé", tmp_path) == 6
    assert lost(letters(LETTERS, normalizers.Lowercase()), "aBCd", tmp_path) == 2  # changed
    assert lost(letters([*LETTERS, "é"], normalizers.NFC()), "ae\u0301b", tmp_path) == 3  # composed
    assert lost(letters(LETTERS, normalizers.Strip()), "  ab ", tmp_path) == 3


def test_bits_per_byte_only_where_next_to_nothing_is_lost(tmp_path: Path) -> None:
    """Up to one byte in a thousand; the count is recorded either way."""
    letters([*LETTERS, " "]).save(str(tmp_path / "t.json"))
    tokenizer = JsonTokenizer(tmp_path / "t.json")
    for text, known, record in (
        ("ab " * 700 + "É", True, {"lost": 2, "read": 2102}),
        ("ab " * 600 + "É", False, {"lost": 2, "read": 1802}),
        ("ab " * 600, True, None),
    ):
        source = TextSource("text", TaskRecord("text"), [Document("d", text)])
        prepared = source.prepare([ModelTokens("m", tokenizer, 99)], DocumentSelection(8))
        assert (prepared.by_model["m"].documents[0].byte_counts is not None) is known
        assert prepared.record.lost_bytes == (record and {"m": LostText(**record)})


@pytest.mark.parametrize("most", [8, 100])
def test_only_what_was_read_counts(tmp_path: Path, most: int) -> None:
    byte_level(decoder=True).save(str(tmp_path / "t.json"))
    tokenizer = JsonTokenizer(tmp_path / "t.json")
    source = TextSource("text", TaskRecord("text"), [Document("d", "a b" * 9000)])
    models = [ModelTokens("m", tokenizer, 300)]
    read = source.prepare(models, DocumentSelection(7, max_tokens=most)).by_model["m"]
    assert read.lost_bytes == 0
    assert read.read_bytes < 9000
    assert len(read.documents[0]) == most
