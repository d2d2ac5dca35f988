"""Notes on how a model read a text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kerple_eval.records.notes import text_notes
from kerple_eval.records.specification import (
    LostText,
    Marker,
    ModelRecord,
    ProtocolRecord,
    RunSpecification,
    TaskRecord,
)


def specification(kind: str, rule: Marker, own: Marker | None, lost: LostText | None) -> RunSpecification:
    model = ModelRecord("m", "hf", "rope", None, None, 1, "0" * 64, {"model_type": kind})
    first = None if own is None else {"text": {"m": own}}
    plan = ProtocolRecord("full-context", (8,), None, first_token=first)
    task = TaskRecord("text", first_token={"m": rule}, lost_bytes=lost and {"m": lost})
    return RunSpecification(False, None, "cpu", "float32", protocols=(plan,), models=(model,), tasks=(task,))


DOCUMENT, WINDOW, PREFIX = Marker("document", 2), Marker("window", 2), Marker("prefix", 2)


@pytest.mark.parametrize(("kind", "rule", "own", "noted"), [
    ("gemma3_text", DOCUMENT, None, True), ("gemma", Marker("never", None), None, True),
    ("gemma2", WINDOW, None, False), ("gemma2", DOCUMENT, WINDOW, False), ("gemma2", WINDOW, PREFIX, True),
    ("llama", DOCUMENT, None, False),
])  # fmt: skip
def test_windows_without_the_bos_that_a_model_needs(
    kind: str, rule: Marker, own: Marker | None, noted: bool
) -> None:
    notes = text_notes(specification(kind, rule, own, None), "m", "text", "full-context")
    assert [("--bos window" in note) for note in notes] == [True] * noted


def test_positions_that_an_architecture_rounds() -> None:
    cases = (
        ("bloom", "float32", 0),
        ("bloom", "bfloat16", 1),
        ("falcon", "float32", 1),
        ("mpt", "float16", 0),
    )
    for kind, dtype, count in cases:
        made = specification(kind, DOCUMENT, None, None)
        model = replace(made.models[0], scheme="alibi")
        notes = text_notes(replace(made, models=(model,), dtype=dtype), "m", "text", "full-context")
        assert ["own code" in note for note in notes] == [True] * count
        assert not text_notes(replace(made, dtype=dtype), "m", "text", "full-context")  # rope


def test_lost_text() -> None:
    for lost, ending in ((1, "which bits per byte leave out"), (2, "no bits per byte")):
        (note,) = text_notes(specification("llama", DOCUMENT, None, LostText(lost, 1500)), "m", "text", "x")
        assert note == f"its tokeniser loses {lost} of 1,500 bytes of the text" + (
            f", {ending}" if lost == 1 else f": {ending}"
        )
