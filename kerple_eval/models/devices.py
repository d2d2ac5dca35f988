"""Where and in which precision a model runs: the caller chooses it and records it."""

from __future__ import annotations

from functools import cache
from typing import get_args

import torch

from kerple_eval.models.base import Checkpoint
from kerple_eval.support import memory
from kerple_eval.types import DtypeName, UserError

#: What torch has MKL compute of a CPU tensor (ATen/cpu/vml.h).
VECTOR_FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin", "sqrt",
    "tan", "tanh", "trunc",
)  # fmt: skip


@cache
def settle_vector_functions() -> None:
    """Call each function that MKL computes once, from this thread alone, in both precisions.

    MKL before 2025.0 chooses its code at a function's first call. Where several threads make that call at
    once, one of them may take fast, inexact code for its part of it, this once (pytorch's issue 188792;
    ``tests/models/test_vector_functions.py`` shows it with torch 2.13).
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")
        for name in VECTOR_FUNCTIONS:
            getattr(torch, name)(one)


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; asking for CUDA without one is refused.

    Every run and every training begins with it, before threads compute: here MKL is settled.
    """
    settle_vector_functions()
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name == "cuda" and not available:
        raise UserError("device cuda: no CUDA device is visible here; use --device cpu or auto")
    return torch.device(name)


def available_bytes(device: torch.device) -> int | None:
    """Memory of ``device`` that this process may still take; None where nothing tells."""
    if device.type != "cuda":
        return memory.available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def scoring_dtype(name: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The precision that ``--dtype NAME`` scores ``checkpoint`` in."""
    return checkpoint.auto_dtype(device) if name == "auto" else DTYPES[name]


DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DtypeName)}


#: What multiplies bfloat16 on a CPU, and torch's test of it: private, so a torch may have others.
BFLOAT16_TESTS = {"AMX": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}


def bfloat16_instructions() -> list[str]:
    """Those of this CPU that torch finds; without one bfloat16 is converted to and fro, and gains nothing."""
    return [name for name, test in BFLOAT16_TESTS.items() if getattr(torch.cpu, test, bool)()]


def precision_for(name: str, device: torch.device) -> str:
    """Of training: ``auto`` is bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(bfloat16_instructions())
    return "bfloat16" if native else "float32"


class DeviceLostError(Exception):
    """A card answers nothing but its first error from now on: the run stops, the same command continues."""


def device_lost(error: BaseException) -> DeviceLostError | None:
    """Whether ``error`` left this process's card unusable, as an illegal memory access does; None: it works.

    Such an error is sticky: every later call in the process fails with it.
    """
    if isinstance(error, DeviceLostError):
        return error
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as problem:
        words = str(problem).partition("\n")[0]
        return DeviceLostError(f"the card answers no more ({words}): it needs a new process")
    return None
