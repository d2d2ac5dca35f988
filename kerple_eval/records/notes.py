"""What a reader must know of how a model read a text, in words."""

from __future__ import annotations

from kerple_eval.records.specification import RunSpecification

#: Types of Hugging Face models whose losses are far too high in a window that does not begin with BOS.
NEEDS_BOS = ("gemma",)


def text_notes(specification: RunSpecification, model: str, task: str, protocol: str) -> list[str]:
    """Notes on the numbers of one model, text and protocol; none where nothing is unusual."""
    notes: list[str] = []
    record = next((text for text in specification.tasks if text.name == task), None)
    if record is None:
        return notes
    if record.lost_bytes and (lost := record.lost_bytes.get(model)):
        notes.append(
            f"its tokeniser loses {lost.lost:,} of {lost.read:,} bytes of the text"
            + (", which bits per byte leave out" if lost.lost <= lost.read / 1000 else ": no bits per byte")
        )
    plan = next((plan for plan in specification.protocols if plan.protocol == protocol), None)
    own = None if plan is None or plan.first_token is None else plan.first_token[task]
    marker = (own or record.first_token or {}).get(model)  # the protocol's own rule, or the text's
    kind = str(specification.model(model).other.get("model_type", ""))
    if kind.startswith(NEEDS_BOS) and marker is not None and marker.rule != "window":
        notes.append(
            f"windows after a document's first do not begin with BOS, and {kind} models give far too high "
            "losses without it: --bos window puts it into each"
        )
    return notes
