"""``kerple-eval inspect MODEL``: what a checkpoint is, before spending a GPU hour on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kerple_eval.evaluation.inspection import bfloat16_on_cpu, facts
from kerple_eval.models.base import Checkpoint
from kerple_eval.models.open import open_model, parse_model

MOST_VALUES = 32  # of one parameter, on its line


def lines(text: str) -> list[str]:
    """``key  value`` lines; opens the checkpoint and reads no weights but the scheme's."""
    checkpoint = open_model(parse_model(text))
    found = facts(checkpoint)
    rows: list[tuple[str, Any]] = [
        ("format", found["format"]),
        ("architecture", found["architecture"]),
        ("parameters", f"{found['parameters']:,}"),
        ("scheme", found["scheme"]),
        *((f"scheme.{name}", _values(x)) for name, x in found["scheme_parameters"].items()),
        ("trained length", _known(found["train_length"])),
        ("longest window", _known(found["max_length"], "no limit")),
        ("prefix-invariant", "yes" if found["prefix_invariant"] else "no"),
        ("seed", _known(found["seed"])),
        ("vocabulary", f"{found['vocab_size']:,}"),
        ("tokeniser", found["tokenizer"] or _no_tokenizer(checkpoint)),
        ("stored dtype", ", ".join(found["stored_dtypes"])),
        ("weights sha256", found["weights_sha256"]),
        ("bfloat16 on the CPU", bfloat16_on_cpu(found["bfloat16_instructions"])),
        *_flat(found["details"]),
        *((f"memory at {length}", _sizes(sizes)) for length, sizes in found["memory"].items()),
        *(("warning", warning) for warning in found["warnings"]),
    ]
    width = max(len(key) for key, _ in rows)
    return [f"{key.ljust(width)}  {value}" for key, value in rows]


def _no_tokenizer(checkpoint: Checkpoint) -> str:
    option = checkpoint.tokenizer_option
    return "none: only token ids can be scored" + (f"; give one by {option}" if option else "")


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e6:,.0f} MB {dtype}" for dtype, size in sizes.items())


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
