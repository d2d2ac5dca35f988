"""Texts and ids given as values: what each kind becomes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from kerple_eval.data.values import holds_ids, text_of, tokens_of
from kerple_eval.types import UserError
from tests.helpers.cases import each_case


def test_strings_files_and_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    rows = Dataset.from_dict({"text": ["first", None, " ", "second"]})
    source = text_of(["words", tmp_path / "a.txt", rows])
    assert [document.text for document in source.documents] == ["words", "from a file", "first", "second"]
    assert len({document.name for document in source.documents}) == 4
    assert [d.text for d in text_of("one").documents] == ["one"]
    other = Dataset.from_dict({"body": ["x", "y"]})
    assert [d.text for d in text_of(other, column="body").documents] == ["x", "y"]


@each_case(
    ("value", "message"),
    [
        (b"bytes", "text: expected a string, a Path, a datasets.Dataset or a sequence of them, got bytes"),
        (3, "text: expected a string, a Path, a datasets.Dataset or a sequence of them, got int"),
        ([], "text: holds no document"),
        (["a", 3], "text: expected a string, a Path or a datasets.Dataset, got int"),
        (["a", " "], "text: document 2 is empty"),
        (Dataset.from_dict({"body": ["a"]}), "the data set has no column 'text'; it has body"),
        (Dataset.from_dict({"text": [1, 2]}), "text: row 0 of column 'text' is int, expected text"),
        (Dataset.from_dict({"text": [1]}).to_iterable_dataset(), "text: row 0 of column 'text' is int"),
        (
            IterableDataset.from_generator(lambda: iter([{"text": "a"}])),
            "no column 'text'; it names none, so give its texts",
        ),
        (Dataset.from_dict({"text": [None, ""]}), "text: holds no document"),
    ],
)
def test_other_texts_are_refused(value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        text_of(value)
    assert message in str(caught.value)


def test_a_string_that_names_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    with pytest.raises(UserError, match="is also the name of a file"):
        text_of(str(tmp_path / "a.txt"))
    assert [d.text for d in text_of(f"{tmp_path / 'a.txt'}\n").documents] == [f"{tmp_path / 'a.txt'}\n"]


@each_case(
    ("value", "documents"),
    [
        ([1, 2, 3], [[1, 2, 3]]),
        (np.array([1, 2], dtype=np.uint16), [[1, 2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (torch.tensor([5, 6]), [[5, 6]]),
        ([[1, 2, 3], np.array([4]), torch.tensor([5, 6])], [[1, 2, 3], [4], [5, 6]]),
    ],
)
def test_ids_are_documents(value: Any, documents: list[list[int]]) -> None:
    assert holds_ids(value)
    found = tokens_of(value).tokens
    assert found is not None
    assert [document.ids.tolist() for document in found] == documents
    assert {document.ids.dtype for document in found} == {np.dtype(np.int64)}


@each_case(
    ("value", "message"),
    [
        ("ids.jsonl", "tokens 'ids.jsonl': write Path('ids.jsonl') for a file of ids"),
        ([], "tokens: holds no document"),
        ([1.5, 2.0], "tokens: ids must be whole numbers, got float64"),
        ([3, -1], "tokens: id -1 is below 0"),
        (np.zeros((1, 1, 1), dtype=np.int64), "expected ids [n] or [documents, n], got the shape (1, 1, 1)"),
        (3, "tokens: expected ids [n] or [documents, n], got the shape ()"),
        ({1, 2}, "tokens: expected ids, an array or a sequence of arrays, got set"),
        ([[1, 2], [[3], [4, 5]]], "tokens: document 2: expected a row of ids, got list"),
    ],
)
def test_other_ids_are_refused(value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tokens_of(value)
    assert message in str(caught.value)


def test_texts_are_no_ids() -> None:
    values: list[Any] = ["a", Path("a"), ["a", "b"], Dataset.from_dict({"text": ["a"]}), [], None]
    assert not any(holds_ids(value) for value in values)
