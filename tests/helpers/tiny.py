"""Tiny decoders with weights large enough that attention, norms and position all matter."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import Decoder

SCHEMES = ("kerple-log", "kerple-power", "alibi", "t5", "rope", "sinusoidal", "nope")
FURTHER = (  # not in the zoo; the decoder is written out with these too in ``oracles``
    "kerple-bias-wht",
    "kerple-3-para-log",
    "kerple-gauss-1-para-wht",
    "kerple-gauss-2-para-wht",
    "kerple-gauss-2-para-bias",
    "kerple-gauss-3-para-bias",
    "kernel",
    "learned",
)
FORMULA = "-r1*D**r2 - r3*log(1 + r4*D)**r5 + exp(-D/r1)"  # every rule and role


def config(scheme: str = "nope", **changes: Any) -> DecoderConfig:
    """Three heads (no power of two), an MLP that is not 4 W, 8 tokens of training length."""
    values: dict[str, Any] = {
        "vocab_size": 11, "layers": 2, "width": 12, "heads": 3, "mlp_width": 20, "train_length": 8,
        "scheme": scheme,
    }  # fmt: skip
    if scheme == "learned":  # tests look past the trained length
        values["scheme_options"] = {"positions": 256}
    if scheme == "kernel":
        values["scheme_options"] = {"formula": FORMULA}
    return DecoderConfig(**(values | changes))


def decoder(model: DecoderConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """A decoder whose every tensor is drawn anew, at unit scale, in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    made = Decoder(model)
    made.reset_parameters(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.startswith("scheme."):
                parameter.add_(0.5 * noise)
            else:
                parameter.copy_(0.4 * noise + (1.0 if "norm.weight" in name else 0.0))
    made.scheme.project_()
    return made.to(dtype)


def tokens(count: int, vocabulary: int = 11, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(vocabulary, size=count)


def weights(made: Decoder) -> dict[str, NDArray[np.float64]]:
    return {name: x.detach().double().numpy() for name, x in made.state_dict().items()}


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Other weights in a native checkpoint, with their own sha256 in config.json."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
