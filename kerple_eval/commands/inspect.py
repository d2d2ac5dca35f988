"""``kerple-eval inspect MODEL``: what a checkpoint is, before spending a GPU hour on it."""

from __future__ import annotations

from typing import Any

from kerple_eval.checkpoints.native import NativeCheckpoint
from kerple_eval.checkpoints.resolve import open_model, parse_model


def lines(text: str) -> list[str]:
    """``key  value`` lines."""
    checkpoint = open_model(parse_model(text))
    description = checkpoint.description
    rows: list[tuple[str, Any]] = [
        ("format", description.format),
        ("scheme", description.scheme),
        ("trained length", _known(description.train_length)),
        ("seed", _known(description.seed)),
        ("parameters", f"{description.parameters:,}"),
        ("vocabulary", description.vocab_size),
        ("longest window", _known(description.max_length, "no limit")),
        ("prefix-invariant", "yes" if description.prefix_invariant else "no"),
        ("weights sha256", description.weights_sha256),
        ("stored dtype", ", ".join(description.stored_dtypes)),
    ]
    for key, value in description.details.items():
        if isinstance(value, dict):
            rows += [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            rows.append((key, value))
    if isinstance(checkpoint, NativeCheckpoint):
        rows += _scheme_parameters(checkpoint)
    width = max(len(key) for key, _ in rows)
    return [f"{key.ljust(width)}  {value}" for key, value in rows]


def _scheme_parameters(checkpoint: NativeCheckpoint) -> list[tuple[str, str]]:
    decoder = checkpoint.decoder()
    rows = [
        (f"scheme.{name}", " ".join(f"{value:.4g}" for value in parameter.flatten().tolist()[:32]))
        for name, parameter in decoder.scheme.named_parameters()
    ]
    for name, count in checkpoint.projected.items():
        rows.append((f"warning: scheme.{name}", f"{count} values were outside their interval"))
    return rows


def _known(value: Any, otherwise: str = "unknown") -> str:
    return otherwise if value is None else str(value)
