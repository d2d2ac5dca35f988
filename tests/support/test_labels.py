"""What a label may be."""

from __future__ import annotations

import pytest

from kerple_eval.support.labels import LONGEST, check_label
from kerple_eval.types import UserError

ALLOWED = [
    "a",
    "zoo:kerple-log",
    "hf:/a/b,c=d",
    "...",
    ".a",
    "é",
    "模型 7B",
    "x" * LONGEST,
    "[bold]",
    "$x_1$",
]
REFUSED = [
    "", " ", " a", "a ", ".", "..", "a\nb", "a\r", "\t", "\0", "\x7f", "a\u2028b", "\ud800", "\u200f",
    "a\xa0b", "x" * (LONGEST + 1),
]  # fmt: skip


def test_the_rule() -> None:
    for label in ALLOWED:
        check_label(label, "label")
    for label in REFUSED:
        with pytest.raises(UserError) as caught:
            check_label(label, "model label", "say another")
        line = str(caught.value)
        assert line.startswith("model label ")
        assert line.endswith("; say another")
        assert line.isprintable()
        assert len(line) < 220
