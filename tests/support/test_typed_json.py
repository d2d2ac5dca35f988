"""Dataclasses to JSON and back: what is read is what was written, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from kerple_eval.support.typed_json import Positive, from_json, to_json
from kerple_eval.types import UserError


@dataclass(frozen=True)
class Leaf:
    rule: Literal["a", "b"]
    id: int | None


@dataclass(frozen=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Mapping[str, int]] | str
    share: float
    count: Positive | None = None
    note: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)


GOOD = {
    "name": "é", "leaves": [{"rule": "a", "id": None}, {"rule": "b", "id": 3}], "by_name": {"x": {"y": 1}},
    "share": 1, "count": 2, "newer": [1, {"z": None}],
}  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    tree = from_json(Tree, GOOD, "file")
    assert tree == Tree(
        "é", (Leaf("a", None), Leaf("b", 3)), {"x": {"y": 1}}, 1, 2, None, {"newer": [1, {"z": None}]}
    )
    assert to_json(tree) == GOOD  # what is None by default is left out, what is None without one is not
    assert list(to_json(tree)) == ["name", "leaves", "by_name", "share", "count", "newer"]
    assert from_json(Tree, json.loads(json.dumps(to_json(tree))), "file") == tree
    assert from_json(Tree, GOOD | {"by_name": "hash"}, "file").by_name == "hash"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "f.name: expected text, got 3"),
        ({"leaves": {}}, "f.leaves: expected a list, got {}"),
        ({"leaves": [{"rule": "a"}]}, "f.leaves[0]: id is missing"),
        ({"leaves": [{"rule": "c", "id": None}]}, "f.leaves[0].rule: expected 'a' or 'b', got 'c'"),
        ({"leaves": [{"rule": "a", "id": 1, "x": 2}]}, "f.leaves[0]: unknown key 'x'; known: rule, id"),
        (
            {"leaves": [{"rule": "a", "id": True}]},
            "f.leaves[0].id: expected a whole number or null, got",
        ),
        (
            {"leaves": [{"rule": "a", "id": 2**63}]},
            "f.leaves[0].id: expected a whole number of 64 bits, got 9",
        ),
        ({"by_name": {"x": {"y": "1"}}}, "f.by_name.x.y: expected a whole number, got '1'"),
        ({"by_name": 3}, "f.by_name: expected an object or text, got 3"),
        ({"share": float("nan")}, "f.share: expected a finite number, got nan"),
        ({"share": "0.5"}, "f.share: expected a finite number, got '0.5'"),
        ({"count": 0}, "f.count: expected a whole number, at least 1, got 0"),
        ({"name": "x" * 10_000 + "\n", "share": None}, "f.share: expected a finite number, got None"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        from_json(Tree, GOOD | change, "f")
    assert str(raised.value).startswith(message)
    assert len(str(raised.value)) < 200


def test_a_record_is_an_object() -> None:
    for data in (None, [], "x", 3):
        with pytest.raises(UserError, match="file: expected an object"):
            from_json(Tree, data, "file")
