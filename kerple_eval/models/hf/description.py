"""What is said of an opened checkpoint: schemes, sizes, hashes, settings that decide losses, warnings."""

from __future__ import annotations

import hashlib
from typing import Any

from kerple_eval.models.base import Description
from kerple_eval.models.hf.config import code_sha256
from kerple_eval.models.hf.config_facts import attends_eagerly, longest_window, rounding, shape
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.opened import Opened
from kerple_eval.models.hf.rope import LENGTH_DEPENDENT, rope_dicts, rope_types
from kerple_eval.schemes.layers import format_layers

#: Settings of a configuration that decide losses and are worth a line of their own.
_SHOWN = (
    "sliding_window", "attention_chunk_size", "final_logit_softcapping", "attn_logit_softcapping",
    "logit_scale", "logits_scaling", "no_rope_layer_interval", "num_local_experts", "num_experts",
)  # fmt: skip


def describe(opened: Opened) -> Description:
    text = opened.text
    unknown_positions = any("unknown" in name for name in opened.layers)
    more = [f"how {text.model_type} encodes positions is not known here"] if unknown_positions else []
    with foreign(opened.where, "its sizes cannot be read"):
        sizes, longest = shape(text), longest_window(text, opened.empty)
    if longest is not None and opened.adapter is not None:
        longest -= opened.adapter.virtual_tokens
    return Description(
        format="hf",
        scheme=format_layers(opened.layers),
        vocab_size=opened.vocabulary,
        parameters=sum(p.numel() for p in opened.empty.parameters()),
        train_length=opened.train_length,
        seed=None,
        prefix_invariant=_prefix_invariant(opened),
        max_length=longest,
        weights_sha256=_weights_sha256(opened),
        architecture=type(opened.empty).__name__,
        shape=sizes,
        stored_dtypes=tuple(sorted({header.dtype for header in opened.headers.values()})),
        details=_details(opened, text),
        warnings=(*opened.warnings, *more, *rounding(text)),
        eager=attends_eagerly(opened.empty) and not (opened.method and opened.method.modifiers),
    )


def _weights_sha256(opened: Opened) -> str:
    """Of the files; with an adapter, of the hash of both."""
    base = opened.weights.sha256()
    if opened.adapter is None:
        return base
    return hashlib.sha256(f"{base} {opened.adapter.sha256()}".encode()).hexdigest()


def _prefix_invariant(opened: Opened) -> bool:
    """False where frequencies follow the window's length, and where positions are not understood.

    Nor where keys are chosen by scores (DeepSeek's sparse attention, whose ties fall otherwise in another
    length). Of code that a checkpoint brings nothing is claimed.

    What is claimed here is measured when the model is loaded.
    """
    types = rope_types(opened.text)
    if opened.own_code or getattr(opened.text, "index_topk", None):
        return False
    if opened.method is not None and not opened.method.prefix_invariant:
        return False
    known = not any(word in name for name in opened.layers for word in ("unknown", "t5"))
    return known and not any(name in types for name in LENGTH_DEPENDENT)


def _details(opened: Opened, text: Any) -> dict[str, Any]:
    details: dict[str, Any] = {
        "architecture": type(opened.empty).__name__,
        "model_type": text.model_type,
        "weights": opened.weights.kind,
        "attention": getattr(opened.empty.config, "_attn_implementation", None),
        "tokenizer": None if opened.tokenizer is None else opened.tokenizer.identity,
        "config_sha256": opened.fingerprint,
    }
    if opened.quantisation is not None:
        details["quantisation"] = opened.quantisation.method
    if opened.adapter is not None:
        details["base_weights_sha256"] = opened.weights.sha256()
        details["adapter"] = opened.adapter.record(merged=opened.merged)
    if opened.imported is not None:
        details["import"], details["code_sha256"] = opened.imported
    elif opened.own_code:
        details["code_sha256"] = code_sha256(opened.model_class, type(opened.config))
    rope = dict(rope_dicts(text))
    if rope:
        details["rope_parameters"] = rope.get("", rope)
    if opened.method is not None:
        details |= opened.method.details()
    for key in _SHOWN:
        value = getattr(text, key, None)
        if value is not None and isinstance(value, int | float | str):
            details[key] = value
    if opened.folder.hub is not None:
        details |= {"hub": opened.folder.hub, "revision": opened.folder.revision}
    return details
