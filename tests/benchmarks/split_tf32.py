"""What split TF32 does to losses, simulated on the CPU: ``python -m tests.benchmarks.split_tf32``.

Attention's two products as tensor cores form them in float32: factors rounded to TF32's 11 bits (to nearest),
once, or split into two such numbers of which all but the product of the lower ones is summed; sums in
float32. The model and text are those of the checks in ``cuda_rows``. Errors are against float64, in nats.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kerple_eval.models.decoder.scored import DecoderModel
from tests.benchmarks.cuda_rows import TOKENS, exact_losses, losses, sharpened, tokens

PRODUCTS = (torch.ops.aten.bmm.default, torch.ops.aten.matmul.default)


def tf32(x: Tensor) -> Tensor:
    """Float32 rounded to 10 bits after the leading one."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class TensorCores(TorchDispatchMode):
    """Products of matrices by batch, as attention's are and linear layers' are not, in TF32."""

    def __init__(self, *, split: bool) -> None:
        super().__init__()
        self.split = split

    def __torch_dispatch__(self, function: Any, types: Any, words: Any = (), named: Any = None) -> Any:
        if function not in PRODUCTS or min(x.dim() for x in words) < 3:
            return function(*words, **(named or {}))
        high = [tf32(x) for x in words]
        product = torch.matmul(*high)
        if not self.split:
            return product
        low = [tf32(x - rounded) for x, rounded in zip(words, high, strict=True)]
        return product + (torch.matmul(high[0], low[1]) + torch.matmul(low[0], high[1]))


def main() -> None:
    decoder = sharpened()
    exact = exact_losses(decoder)
    model = DecoderModel(decoder, torch.device("cpu"), torch.float32, "eager")
    ways = {"float32": nullcontext(), "split TF32": TensorCores(split=True), "TF32": TensorCores(split=False)}
    for name, way in ways.items():
        with way:
            found = losses(model, tokens(), TOKENS)
        print(f"{name}: largest error {np.abs(found - exact).max():.1e}")


if __name__ == "__main__":
    main()
