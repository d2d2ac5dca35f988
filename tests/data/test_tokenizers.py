"""Tokenisers: every UTF-8 byte of a text is accounted for by exactly one token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kerple_eval.data.documents import Document, DocumentMarkers, pack, tokenize
from kerple_eval.data.texts import applied
from kerple_eval.data.tokenizer import ByteTokenizer, Encoding, JsonTokenizer
from kerple_eval.types import UserError

CORPUS = [
    "the cat sat on the mat",
    "naïve café, the zoë; 数学 is fun",
    "a  b   c\n\nd",
    "the the the cat",
] * 20
TEXTS = [
    *("the cat", "a", "naïve café", "数学 🙂 ß", "  spaces  kept \n\n", "\ttab\r\n", "🙂🙂", "x" * 50),
    "the cat sat, naïve 数 on\u2028the\xa0mat 🙃!",
]


def byte_level_bpe() -> Tokenizer:
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    fast.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    )
    return fast


def word_piece() -> Tokenizer:
    """Lower-cased words: spaces are spelt by no token, and unknown words become one."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", "[BOS]", "<eos>"])
    )
    return fast


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {"bpe": byte_level_bpe(), "words": word_piece()}
    for name, fast in made.items():
        fast.save(str(folder / f"{name}.json"))
    return {name: folder / f"{name}.json" for name in made}


def counts(encoding: Encoding) -> list[int]:
    assert encoding.byte_counts is not None
    assert encoding.byte_counts.shape == encoding.ids.shape
    assert (encoding.ids.dtype, encoding.byte_counts.dtype) == (np.int64, np.int64)
    return [int(n) for n in encoding.byte_counts]


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_bytes_are_the_tokens(text: str) -> None:
    encoding = ByteTokenizer().encode(text)
    assert encoding.ids.tolist() == list(text.encode())
    assert counts(encoding) == [1] * len(text.encode())


@pytest.mark.parametrize("name", ["bpe", "words"])
@pytest.mark.parametrize("text", TEXTS)
def test_counts_add_up_to_the_texts_bytes(files: dict[str, Path], name: str, text: str) -> None:
    tokenizer = JsonTokenizer(files[name])
    encoding = tokenizer.encode(text)
    assert sum(counts(encoding)) == len(text.encode())
    assert min(counts(encoding)) >= 0
    assert encoding.ids.max() < tokenizer.vocab_size
    assert encoding.ids.tolist() == Tokenizer.from_file(str(files[name])).encode(text).ids


@pytest.mark.parametrize("text", TEXTS)
def test_every_prefix_of_bpe_tokens_accounts_for_the_characters_begun(
    files: dict[str, Path], text: str
) -> None:
    """Oracle: the decoder's own symbols. After k tokens the bytes spelt so far, rounded up to whole
    characters, must equal the sum of the first k counts."""
    fast = Tokenizer.from_file(str(files["bpe"]))
    encoding = JsonTokenizer(files["bpe"]).encode(text)
    ends = np.cumsum([len(character.encode()) for character in text]).tolist()
    spelt, accounted = 0, 0
    for token, count in zip(encoding.ids.tolist(), counts(encoding), strict=True):
        spelt += len(fast.id_to_token(token))  # one symbol per byte
        accounted += count
        assert accounted == next(end for end in ends if end >= spelt)


def test_a_character_split_over_tokens_is_counted_once(files: dict[str, Path]) -> None:
    encoding = JsonTokenizer(files["bpe"]).encode("🙃")
    assert len(encoding.ids) > 1
    assert counts(encoding) == [4] + [0] * (len(encoding.ids) - 1)


def test_text_between_words_goes_to_the_next_word_and_the_rest_to_the_last(files: dict[str, Path]) -> None:
    encoding = JsonTokenizer(files["words"]).encode(" the  THE é\n ")
    tokens = Tokenizer.from_file(str(files["words"])).encode(" the  THE é\n ").tokens
    assert tokens[:2] == ["the", "the"]
    assert counts(encoding)[:2] == [4, 5]
    assert sum(counts(encoding)[2:]) == len(" é\n ".encode())


@pytest.mark.parametrize("name", ["bpe", "words"])
def test_no_text_gives_no_tokens(files: dict[str, Path], name: str) -> None:
    encoding = JsonTokenizer(files[name]).encode("")
    assert (encoding.ids.tolist(), counts(encoding)) == ([], [])


def test_special_tokens_and_identity_come_from_the_file(files: dict[str, Path]) -> None:
    bpe, words = JsonTokenizer(files["bpe"]), JsonTokenizer(files["words"])
    assert (bpe.bos, bpe.end_of_document) == (None, 0)
    assert (words.bos, words.end_of_document) == (1, 2)
    for name, tokenizer in (("bpe", bpe), ("words", words)):
        vocabulary = json.loads(files[name].read_text())["model"]["vocab"]
        assert tokenizer.vocab_size == max(vocabulary.values()) + 1
        digest = hashlib.sha256(files[name].read_bytes()).hexdigest()
        assert tokenizer.identity == f"tokenizer.json:{digest[:16]}"


def test_truncation_padding_and_templates_of_the_file_are_not_applied(tmp_path: Path) -> None:
    fast = byte_level_bpe()
    whole = fast.encode("the cat sat on the mat").ids
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415

    fast.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    fast.enable_truncation(3)
    fast.enable_padding(length=64)
    fast.save(str(tmp_path / "t.json"))
    assert JsonTokenizer(tmp_path / "t.json").encode("the cat sat on the mat").ids.tolist() == whole


@pytest.mark.parametrize(("raw", "says"), [
    (None, "cannot be read: No such file or directory"),
    (b"", "not a tokenizer.json: "),
    (b"{}", "not a tokenizer.json: "),
    (b'{"model": {"type": "BPE"', "not a tokenizer.json: "),
])  # fmt: skip
def test_a_file_that_is_no_tokenizer(tmp_path: Path, raw: bytes | None, says: str) -> None:
    path = tmp_path / "t.json"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        JsonTokenizer(path)
    assert str(caught.value).startswith(f"{path}: {says}")


def test_markers_account_for_no_bytes(files: dict[str, Path]) -> None:
    document, tokenizer = Document("d", "the cat"), JsonTokenizer(files["words"])
    plain = tokenize(document, tokenizer)
    marked = tokenize(document, tokenizer, DocumentMarkers("document", 1, (1, 5), (2,)))
    assert marked.ids.tolist() == [1, 5, *plain.ids.tolist(), 2]
    assert marked.byte_counts is not None
    assert plain.byte_counts is not None
    assert marked.byte_counts.tolist() == [0, 0, *plain.byte_counts.tolist(), 0]
    with pytest.raises(UserError, match=r"^bos: document, but the tokeniser \(bytes\) has no first-token"):
        applied("document", ByteTokenizer())


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> <m> $A </s> <m>", "</s> $A </s>"])
def test_markers_are_what_the_post_processor_puts(single: str, tmp_path: Path) -> None:
    """Oracle: the library's own encoding with special tokens, of texts that are not the probe."""
    fast = byte_level_bpe()
    fast.add_special_tokens(["<s>", "</s>", "<m>"])
    ids = [(name, fast.token_to_id(name)) for name in ("<s>", "</s>", "<m>")]
    fast.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    fast.save(str(tmp_path / "t.json"))
    tokenizer = JsonTokenizer(tmp_path / "t.json")
    markers = applied("tokenizer", tokenizer)
    for text in TEXTS:
        assert tokenize(Document("d", text), tokenizer, markers).ids.tolist() == fast.encode(text).ids
    assert markers.rule == ("never" if single == "$A" else "document")
    simple = single in ("$A", "<s> $A")
    assert (markers.record.before, markers.record.after) == (
        (None, None) if simple else (markers.before, markers.after)
    )


class Panic(BaseException):
    """What the library's Rust code raises in a panic: no Exception."""


def test_a_panic_of_the_library_is_one_line(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = JsonTokenizer(files["bpe"])

    class Fast:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise Panic("index out of range\nin Rust")

    monkeypatch.setattr(tokenizer, "_fast", Fast())
    with pytest.raises(UserError, match=r"^the tokeniser \(tokenizer.json:.*\) failed: index out of range$"):
        tokenizer.encode("a")


def test_a_normaliser_that_grows_without_bound_is_refused(tmp_path: Path) -> None:
    for content, count, refused in (("aa", 30, True), ("a" * 200, 1, True), ("aa", 3, False)):
        fast = byte_level_bpe()
        fast.normalizer = normalizers.Sequence([normalizers.Replace("a", content) for _ in range(count)])
        fast.save(str(tmp_path / "t.json"))
        if refused:
            with pytest.raises(UserError, match="its normalizer makes a text more than 100 times longer"):
                JsonTokenizer(tmp_path / "t.json")
        else:
            assert len(JsonTokenizer(tmp_path / "t.json").encode("a").ids) >= 1
    fast = byte_level_bpe()  # a usual chain: one space for several, ten times
    fast.normalizer = normalizers.Sequence([normalizers.Replace(Regex(" {2,}"), " ") for _ in range(10)])
    fast.save(str(tmp_path / "t.json"))
    JsonTokenizer(tmp_path / "t.json")


def test_packing_ends_each_document_with_a_token_that_spells_no_bytes(files: dict[str, Path]) -> None:
    tokenizer = JsonTokenizer(files["bpe"])
    parts = [tokenize(Document(name, text), tokenizer) for name, text in (("b", "the cat"), ("a", "数"))]
    packed = pack(parts, tokenizer, "both")
    assert packed.name == "both"
    assert packed.ids.tolist() == [*parts[0].ids.tolist(), 0, *parts[1].ids.tolist(), 0]
    assert packed.byte_counts is not None
    assert packed.byte_counts.sum() == len("the cat数".encode())
    assert [int(packed.byte_counts[i]) for i in (len(parts[0]), -1)] == [0, 0]
    bare = ByteTokenizer()
    bare.end_of_document = None
    with pytest.raises(
        UserError, match=r"^packing: concatenate, but the tokeniser \(bytes\) has no end-of-document"
    ):
        pack(parts, bare, "both")
