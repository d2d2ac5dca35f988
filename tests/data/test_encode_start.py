"""The beginning of a long text: the ids and byte counts of the whole, from the part that was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from kerple_eval.data.documents import Document, DocumentMarkers, tokenize
from kerple_eval.data.tokenizer import BYTE_TOKENIZER, JsonTokenizer, encode_start

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = [
    *(
        "the",
        " ",
        "  ",
        "\n",
        " cat",
        " sat on",
        "'s",
        " 12345",
        "naïve café ",
        "数学",
        "🙂",
        "e\u0301",
        "a b",
        "x",
    ),
    *(". ", "ﬁ", " A", "B ", "<s>", "<mask> ", "\t", "I'll go ", "\u00a0", "▁", " the the"),
]


def text(seed: int, pieces: int) -> str:
    rng = np.random.default_rng(seed)
    return "".join(PIECES[i] for i in rng.integers(len(PIECES), size=pieces))


CORPUS = [text(seed, 60) for seed in range(100)]
ALPHABET = sorted({c for line in CORPUS for c in line} | {"▁"})


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), level])


def bpe(
    normalizer: normalizers.Normalizer | None, pre_tokenizer: pre_tokenizers.PreTokenizer | None, *,
    words: bool = True, added: str | None = None,
) -> Tokenizer:  # fmt: skip
    """A BPE trained on ``CORPUS``; without ``words``, its tokens may run over spaces."""
    fast = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        fast.normalizer = normalizer
    trained = pre_tokenizer or (pre_tokenizers.Split(" ", "merged_with_next") if words else None)
    if words and pre_tokenizer is None and normalizer is not None:
        trained = pre_tokenizers.Split("▁", "merged_with_next")
    if trained is not None:
        fast.pre_tokenizer = trained
    alphabet = ALPHABET + pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "<mask>"]
    fast.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=special,
                                    show_progress=False),
    )  # fmt: skip
    if pre_tokenizer is None and trained is not None:
        fast.pre_tokenizer = pre_tokenizers.Sequence([])
    if added is not None:
        fast.add_tokens([added])
    return fast


def unigram() -> Tokenizer:
    fast = Tokenizer(models.Unigram())
    fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"],
                                        show_progress=False),
    )  # fmt: skip
    return fast


def word_piece() -> Tokenizer:
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    )
    return fast


SPACES = normalizers.Replace(" ", "▁")
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), SPACES])
DIGITS_FROM_THE_END = r"\d{1,3}(?=(\d{3})*\b)|[^\d]+"

#: Name -> how it is made, and whether its borders are known.
MADE: dict[str, tuple[Callable[[], Tokenizer], bool]] = {
    "gpt2": (lambda: bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=False)), True),
    "gpt2-nfc": (lambda: bpe(normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)), True),
    "llama3": (lambda: bpe(None, split(LLAMA3)), True),
    "metaspace": (lambda: bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first")), True),
    "llama2": (lambda: bpe(LLAMA2, None), True),
    "unigram": (unigram, True),
    "word-piece": (word_piece, True),
    "over-words": (lambda: bpe(SPACES, None, words=False), False),
    "unknown-split": (lambda: bpe(None, split(DIGITS_FROM_THE_END)), False),
    "added-over-words": (
        lambda: bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=False), added="sat on the"), False,
    ),
    "letters-replaced": (
        lambda: bpe(normalizers.Replace("the cat", "dog"), pre_tokenizers.ByteLevel()), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_the_beginning_is_the_wholes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, known = MADE[name]
    make().save(str(tmp_path / "t.json"))
    tokenizer = JsonTokenizer(tmp_path / "t.json")
    assert tokenizer.pipeline.has_borders is known
    read: list[int] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: (read.append(len(text)), encode(text))[1])
    for seed in range(4):
        whole = text(seed, 12_000) + (" word" * 9000 if seed == 3 else "")
        expected = tokenizer.encode(whole)
        for most in (1, 40, 700):
            start = encode_start(tokenizer, whole, most)
            assert len(start.ids) > most
            kept = slice(0, most + 1)
            assert start.ids[kept].tolist() == expected.ids[kept].tolist()
            assert start.byte_counts is not None and expected.byte_counts is not None
            assert start.byte_counts[kept].tolist() == expected.byte_counts[kept].tolist()
            assert (read.pop() < len(whole)) is known
            if known:
                assert start.read_bytes is not None and start.read_bytes < len(whole.encode())


def test_every_border_of_small_texts(tmp_path: Path) -> None:
    """Every text of five pieces that holds a border: the part before it is the beginning of the whole."""
    for name in ("gpt2-nfc", "llama3", "llama2", "unigram"):
        MADE[name][0]().save(str(tmp_path / "t.json"))
        tokenizer = JsonTokenizer(tmp_path / "t.json")
        rng = np.random.default_rng(0)
        for _ in range(600):
            left, right = ("".join(PIECES[i] for i in rng.integers(len(PIECES), size=3)) for _ in "ab")
            whole = f"{left}{'aB'[rng.integers(2)]} {'cD'[rng.integers(2)]}{right}"
            border = tokenizer.pipeline.last_border(whole, len(whole))
            assert border is not None
            before = tokenizer.encode(whole[:border]).ids.tolist()
            assert tokenizer.encode(whole).ids.tolist()[: len(before)] == before, whole


def test_documents_are_cut_at_the_same_token(tmp_path: Path) -> None:
    MADE["gpt2"][0]().save(str(tmp_path / "t.json"))
    markers = DocumentMarkers("document", 1, (1,), (2,))
    for tokenizer in (JsonTokenizer(tmp_path / "t.json"), BYTE_TOKENIZER):
        whole = Document("d", text(0, 20_000))
        full = tokenize(whole, tokenizer, markers)
        for most in (1, 2, 500):
            start = tokenize(whole, tokenizer, markers, most)
            assert len(start) < len(full) and start.cut_off
            assert start.cut(most).ids.tolist() == full.cut(most).ids.tolist()
        assert tokenize(Document("d", "a b"), tokenizer, markers, 50).ids[-1] == 2  # whole: its last marker
