"""Steps of a tokeniser after which the tokens before a border are not known to stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from kerple_eval.data.pipeline import Pipeline
from tests.helpers.cases import each_case

LETTERS = {c: n for n, c in enumerate("abcdefghijklmnopqrstuvwxyz ĠG▁")}


def made(model: Any = None, normalizer: Any = None, pre_tokenizer: Any = None) -> Tokenizer:
    fast = Tokenizer(model or models.BPE(LETTERS, []))
    if normalizer is not None:
        fast.normalizer = normalizer
    if pre_tokenizer is not None:
        fast.pre_tokenizer = pre_tokenizer
    return fast


LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)

UNKNOWN: dict[str, Callable[[], Tokenizer]] = {
    "a replaced expression": lambda: made(None, normalizers.Replace(Regex("a+"), "b"), LEVEL),
    "a replaced letter": lambda: made(None, normalizers.Replace("a", "b"), LEVEL),
    "a step that is not by character": lambda: made(None, normalizers.ByteLevel(), LEVEL),
    "dropout": lambda: made(models.BPE(LETTERS, [], dropout=0.5), None, LEVEL),
    "an expression that is not known": lambda: made(
        None, None, pre_tokenizers.Split(Regex("[aeiou]"), "isolated")
    ),
    "words of a list": lambda: made(models.WordLevel({"a": 0}, "a")),
    "a space that is no token": lambda: made(models.BPE({"a": 0}, [])),
    "a token over a space": lambda: made(models.BPE({"a": 0, " ": 1, "b": 2, "a b": 3}, [])),
    "whole words first": lambda: made(models.BPE(LETTERS, [], ignore_merges=True)),
}


@each_case("name", UNKNOWN)
def test_borders_are_not_claimed(name: str) -> None:
    assert not Pipeline(UNKNOWN[name]()).has_borders


def test_borders_are_claimed_where_they_are_known() -> None:
    for fast in (made(pre_tokenizer=LEVEL), made(pre_tokenizer=pre_tokenizers.Whitespace()), made()):
        assert Pipeline(fast).has_borders


def test_the_last_border_is_searched_for_backwards() -> None:
    pipeline = Pipeline(made())
    text = "xx yy" + "z" * 5000
    assert pipeline.last_border(text, len(text)) == 2
    assert pipeline.last_border(text, 2) is None
    assert pipeline.last_border("z" * 3000, 3000) is None
