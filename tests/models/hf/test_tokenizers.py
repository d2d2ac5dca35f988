"""Tokenisers of Hugging Face folders: files as they stand, conversions, and the markers they declare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from kerple_eval.cli import inspect
from kerple_eval.data.tokenizer import ByteTokenizer
from kerple_eval.models.hf import tokenizer as reading
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.tokenizer import HfTokenizer
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.hf_folders import refused

TEXT = "ab é ba"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())[:90]


def byte_level(size: int = 96, *, leads: bool = False) -> Tokenizer:
    """A byte-level BPE of ``size`` ids: <s> 0, </s> 1, some letters, a merge."""
    letters = ["Ġ", "a", "b", "Ã", "©", "ab"]
    names = ["<s>", "</s>", *letters, *(f"w{n}" for n in range(size - 2 - len(letters)))]
    fast = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [("a", "b")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<s>", "</s>"])
    if leads:
        fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return fast


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("bare"), folders.model("llama"))


@pytest.fixture
def folder(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "model"))


def opened(folder: Path, **files: Any) -> HfTokenizer:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = HfCheckpoint.open(str(folder), {}).tokenizer
    assert isinstance(found, HfTokenizer)
    return found


def test_tokenizer_json_as_it_stands(folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    found = opened(folder)
    encoding = found.encode(TEXT)
    assert encoding.ids.tolist() == [7, 2, 5, 6, 2, 4, 3]
    assert encoding.byte_counts is not None
    assert encoding.byte_counts.sum() == len(TEXT.encode())
    assert found.identity == opened(folder).identity
    details = HfCheckpoint.open(str(folder), {}).description.details
    assert details["tokenizer"] == found.identity


@pytest.mark.parametrize(
    ("leads", "tokenizer_config", "expected"),
    [
        (False, None, (1, 2, False)),  # config.json: bos_token_id 1, eos_token_id 2
        (True, None, (1, 2, True)),  # the template's <s> is put, though the config's BOS is another
        (False, {"bos_token": "<s>", "eos_token": "</s>"}, (0, 1, False)),
        (True, {"bos_token": "<s>", "eos_token": "</s>"}, (0, 1, True)),
        (True, {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": None}, (0, None, True)),
        (True, {"bos_token": "<s>", "add_bos_token": False}, (0, 2, True)),  # the flag is ignored
        (False, {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": True}, (0, 2, False)),
        (False, {"bos_token": None, "add_bos_token": True}, (None, 2, False)),
    ],
    ids=str,
)
def test_markers_are_the_declared_ones(
    leads: bool, tokenizer_config: Any, expected: tuple[Any, ...], folder: Path
) -> None:
    byte_level(leads=leads).save(str(folder / "tokenizer.json"))
    files = {} if tokenizer_config is None else {"tokenizer_config": tokenizer_config}
    found = opened(folder, **files)
    assert (found.bos, found.end_of_document, bool(found.before)) == expected
    assert 0 not in found.encode(TEXT).ids  # the text alone, whatever the template
    own = folders.transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    assert [*found.before, *found.encode(TEXT).ids, *found.after] == own(TEXT).input_ids


@pytest.mark.parametrize(
    "named", ["GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "RobertaTokenizer", "LlamaTokenizer"]
)
def test_classes_that_write_their_own_markers(named: str, folder: Path) -> None:
    """GPT-NeoX's puts nothing, RoBERTa's <s> and </s>, whatever the file's template; Llama's follows it."""
    byte_level(leads=True).save(str(folder / "tokenizer.json"))
    markers = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    found = opened(folder, tokenizer_config={"tokenizer_class": named, **markers})
    own = folders.transformers.AutoTokenizer.from_pretrained(str(folder))
    assert [*found.before, *found.encode("ab").ids, *found.after] == own("ab").input_ids
    follows = named == "LlamaTokenizer"
    assert ((found.before, found.after) == ((0,), ())) == follows
    assert ("+before" in found.identity) != follows


def test_other_markers_are_another_tokeniser(folder: Path) -> None:
    """Models share their documents by a tokeniser's identity, markers included."""
    byte_level().save(str(folder / "tokenizer.json"))
    one = opened(folder, tokenizer_config={"bos_token": "<s>"}).identity
    two = opened(folder, tokenizer_config={"bos_token": "</s>"}).identity
    assert one != two
    assert one.split("+")[0] == two.split("+")[0]


def test_vocab_and_merges_are_converted(folder: Path) -> None:
    """GPT-2's files without a tokenizer.json: the same ids as transformers' own tokeniser gives."""
    vocabulary = {name: n for n, name in enumerate(["<|endoftext|>", "Ġ", "a", "b", "Ã", "©", "ab", "Ġb"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ b\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>"}
    found = opened(folder, tokenizer_config=config)
    own = folders.transformers.AutoTokenizer.from_pretrained(str(folder))
    assert found.encode(TEXT).ids.tolist() == own(TEXT).input_ids == [6, 1, 4, 5, 7, 2]
    assert (found.bos, found.end_of_document, bool(found.before)) == (0, 0, False)


def test_more_ids_than_the_embedding_has(folder: Path) -> None:
    byte_level(97).save(str(folder / "tokenizer.json"))
    opened(folder)
    byte_level(98).save(str(folder / "tokenizer.json"))
    warnings = HfCheckpoint.open(str(folder), {}).description.warnings
    assert any("the tokeniser has 98 ids, the model's vocabulary 97" in warning for warning in warnings)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(name: str, folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / name).write_text("{")
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(folder), {})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_cannot_be_converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.model").write_bytes(b"not a sentencepiece model")
    with pytest.raises(UserError) as caught:
        HfCheckpoint.open(str(folder), {})
    assert "tokeniser cannot be read" in str(caught.value)
    monkeypatch.setattr(reading, "_installed", lambda name: False)
    refused(folder, "a .model file may need sentencepiece and google.protobuf: pip install 'kerple-eval[hf]'")
    assert "\n" not in str(caught.value)


def test_code_of_a_tokeniser_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / "own_tokens.py").write_text(f"open({str(mark)!r}, 'a').close()\n")
    (folder / "vocab.json").write_text("{}")
    config = {"auto_map": {"AutoTokenizer": ["own_tokens.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="auto_map"):
        HfCheckpoint.open(str(folder), {})
    assert not mark.exists()


def test_one_given_as_a_file(folder: Path, tmp_path: Path) -> None:
    assert "give one by ,tokenizer=FILE" in "\n".join(inspect.lines(f"hf:{folder}"))
    byte_level().save(str(tmp_path / "mine.json"))
    found = HfCheckpoint.open(str(folder), {"tokenizer": str(tmp_path / "mine.json")}).tokenizer
    assert found is not None
    assert found.encode(TEXT).ids.tolist() == [7, 2, 5, 6, 2, 4, 3]


def test_none_at_all(folder: Path) -> None:
    assert HfCheckpoint.open(str(folder), {}).tokenizer is None


def test_bytes_add_no_bos() -> None:
    assert (ByteTokenizer().before, ByteTokenizer().after) == ((), ())
