"""``kerple-eval convert MODEL DIR``: writes a checkpoint of any format in the native format."""

from __future__ import annotations

from pathlib import Path

from kerple_eval.models.conversion import convert


def run(source: str, destination: str, dtype: str | None) -> list[str]:
    """Lines that say what was written."""
    written = convert(source, destination, dtype=dtype)
    return [
        f"{Path(destination)}: {written.scheme}, {written.parameters:,} parameters, "
        f"{', '.join(written.stored_dtypes)}",
        *(f"warning: {warning}" for warning in written.warnings),
    ]
