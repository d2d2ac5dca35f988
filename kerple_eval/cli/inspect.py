"""``kerple-eval inspect MODEL``: what a checkpoint is, before spending a GPU hour on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kerple_eval.evaluation.request import LENGTHS
from kerple_eval.models.base import Checkpoint, Description
from kerple_eval.models.devices import DTYPES
from kerple_eval.models.footprint import window_bytes
from kerple_eval.models.open import open_model, parse_model

MOST_VALUES = 32  # of one parameter, on its line


def lines(text: str) -> list[str]:
    """``key  value`` lines; opens the checkpoint and reads no weights but the scheme's."""
    checkpoint = open_model(parse_model(text))
    description = checkpoint.description
    tokenizer = checkpoint.tokenizer
    rows: list[tuple[str, Any]] = [
        ("format", description.format),
        ("architecture", description.architecture),
        ("parameters", f"{description.parameters:,}"),
        ("scheme", description.scheme),
        *((f"scheme.{name}", _values(x)) for name, x in checkpoint.scheme_parameters().items()),
        ("trained length", _known(description.train_length)),
        ("longest window", _known(description.max_length, "no limit")),
        ("prefix-invariant", "yes" if description.prefix_invariant else "no"),
        ("seed", _known(description.seed)),
        ("vocabulary", f"{description.vocab_size:,}"),
        ("tokeniser", _no_tokenizer(checkpoint) if tokenizer is None else tokenizer.identity),
        ("stored dtype", ", ".join(description.stored_dtypes)),
        ("weights sha256", description.weights_sha256),
        *_flat(description.details),
        *(("memory " + name, value) for name, value in _memory(description)),
        *(("warning", warning) for warning in description.warnings),
    ]
    width = max(len(key) for key, _ in rows)
    return [f"{key.ljust(width)}  {value}" for key, value in rows]


def _no_tokenizer(checkpoint: Checkpoint) -> str:
    option = checkpoint.tokenizer_option
    return "none: only token ids can be scored" + (f"; give one by {option}" if option else "")


def _memory(description: Description) -> Iterator[tuple[str, str]]:
    """The weights and one forward pass at each length the model has positions for."""
    limit = description.max_length
    for length in LENGTHS:
        if limit is None or length <= limit:
            sizes = [
                f"{window_bytes(description, length, DTYPES[dtype].itemsize) / 1e6:,.0f} MB {dtype}"
                for dtype in ("float32", "bfloat16")
            ]
            yield f"at {length}", ", ".join(sizes)


def _flat(details: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in details.items():
        if key == "tokenizer":
            continue  # already on the line "tokeniser"
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{k}", v) for k, v in _flat(value))
        else:
            yield key, value


def _values(values: list[float]) -> str:
    more = f" ... ({len(values)} values)" if len(values) > MOST_VALUES else ""
    return " ".join(f"{value:.4g}" for value in values[:MOST_VALUES]) + more


def _known(value: Any, otherwise: str = "unknown") -> str:
    return otherwise if value is None else str(value)
