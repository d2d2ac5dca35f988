"""What a reader must know of how a model read a text and was fed with it, in words."""

from __future__ import annotations

from collections.abc import Mapping

from kerple_eval.records.specification import ModelRecord, Provenance, RunSpecification

#: Types of Hugging Face models whose losses are far too high in a window that does not begin with BOS.
NEEDS_BOS = ("gemma",)


def text_notes(specification: RunSpecification, model: str, task: str, protocol: str) -> list[str]:
    """Notes on the numbers of one model, text and protocol; none where nothing is unusual."""
    notes = _precision(specification, model) + _rounding(specification, model)
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
    kind = _kind(specification.model(model))
    if kind.startswith(NEEDS_BOS) and marker is not None and marker.rule != "window":
        notes.append(
            f"windows after a document's first do not begin with BOS, and {kind} models give far too high "
            "losses without it: --bos window puts it into each"
        )
    return notes


def feeding_notes(provenance: Provenance, model: str) -> list[str]:
    """Why windows of a model that were to be fed in pieces were not; none where they were."""
    why = (provenance.one_pass or {}).get(model)
    return [] if why is None else [f"its windows were scored in one pass, not in pieces: {why}"]


def passed_over_words(counts: Mapping[str, int]) -> str:
    """What of a text was passed over and how often; empty where nothing was."""
    words = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return words and f"passed over: {words}"


def _kind(model: ModelRecord) -> str:
    """The Hugging Face model type; empty for other formats."""
    return str(model.other.get("model_type", ""))


def _precision(specification: RunSpecification, label: str) -> list[str]:
    """The dtype that was taken where none was asked for."""
    taken = specification.model(label).dtype
    return [] if taken is None else [f"scored in {taken}, its own dtype; --dtype float32 would be exact"]


def _rounding(specification: RunSpecification, label: str) -> list[str]:
    """Where transformers' own code rounded ALiBi's bias to half precision in this run."""
    model = specification.model(label)
    if model.scheme != "alibi":
        return []
    if _kind(model) == "falcon":
        return ["Falcon's own code computes ALiBi's bias in bfloat16, in a float32 run too"]
    dtype = specification.dtype_of(label)
    if _kind(model) == "bloom" and dtype != "float32":
        return [f"BLOOM's own code rounds ALiBi's bias to {dtype}; --dtype float32 keeps it"]
    return []
