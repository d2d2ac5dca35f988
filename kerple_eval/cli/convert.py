"""``kerple-eval convert MODEL DIR``: writes a checkpoint of any format in the native format."""

from __future__ import annotations

from pathlib import Path

import torch

from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.devices import DTYPES
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.support.files import new_folder
from kerple_eval.support.version import VERSION


def run(source: str, destination: str, dtype: str | None) -> list[str]:
    """Write the checkpoint ``source`` into a new folder, whole or not at all; lines that say what it is.

    Raises:
        UserError: the checkpoint cannot be read or has no native form, or the folder exists and is not empty.
    """
    folder = Path(destination)
    checkpoint = open_model(parse_model(source))
    description = checkpoint.description
    with new_folder(folder) as partial:
        decoder = checkpoint.decoder()
        write_checkpoint(
            partial,
            decoder,
            seed=description.seed,
            dtype=DTYPES[dtype] if dtype else _narrowest(decoder),
            tokenizer=checkpoint.tokenizer,
            training={
                "converted_from": {
                    "format": description.format,
                    "architecture": description.architecture,
                    "weights_sha256": description.weights_sha256,
                    "warnings": list(description.warnings),
                    "kerple_eval": VERSION,
                }
            },
        )
    written = NativeCheckpoint(folder).description  # reads back what is on the disk
    return [
        f"{folder}: {written.scheme}, {written.parameters:,} parameters, {', '.join(written.stored_dtypes)}",
        *(f"warning: {warning}" for warning in description.warnings),
    ]


def _narrowest(decoder: Decoder) -> torch.dtype:
    """The narrowest dtype that holds every weight exactly (the scheme's stay in float32 anyway)."""
    weights = [p for name, p in decoder.named_parameters() if not name.startswith("scheme.")]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(p.to(dtype).to(p.dtype), p) for p in weights):
            return dtype
    return torch.float32
