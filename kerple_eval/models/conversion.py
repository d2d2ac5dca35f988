"""Any checkpoint in the native format: for ``kerple-eval convert`` and ``kerple_eval.convert``."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path

import torch

from kerple_eval.models.base import Description
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.models.devices import DTYPES
from kerple_eval.models.native import NativeCheckpoint, write_checkpoint
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.support.files import new_folder
from kerple_eval.support.registry import unknown
from kerple_eval.support.version import VERSION
from kerple_eval.types import UserError


def convert(model: str | PathLike[str], out: str | PathLike[str], *, dtype: str | None = None) -> Description:
    """See :func:`kerple_eval.convert`."""
    if not isinstance(model, str | PathLike):
        raise UserError(f"convert takes a MODEL as on the command line, got {type(model).__name__}")
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder = Path(out)
    checkpoint = open_model(parse_model(fspath(model)))
    about = checkpoint.description
    with new_folder(folder) as partial:
        decoder = checkpoint.decoder()
        write_checkpoint(
            partial,
            decoder,
            seed=about.seed,
            dtype=DTYPES[dtype] if dtype else _narrowest(decoder),
            tokenizer=checkpoint.tokenizer,
            training={
                "converted_from": {
                    "format": about.format,
                    "architecture": about.architecture,
                    "weights_sha256": about.weights_sha256,
                    "warnings": list(about.warnings),
                    "kerple_eval": VERSION,
                }
            },
        )
    return replace(NativeCheckpoint(folder).description, warnings=about.warnings)


def _narrowest(decoder: Decoder) -> torch.dtype:
    """The narrowest dtype that holds every weight exactly (the scheme's stay in float32 anyway)."""
    weights = [p for name, p in decoder.named_parameters() if not name.startswith("scheme.")]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if all(torch.equal(p.to(dtype).to(p.dtype), p) for p in weights):
            return dtype
    return torch.float64
