"""How attention is computed: what was asked, what a scheme and a device can have, and which it will be.

    sdpa     torch's fused attention by chunks of query rows, the kernel's vector as the bias
    flex     FlexAttention with the formula inside (CUDA; half precision unless asked for openly)
    chunks   scores of a chunk of query rows in memory: what content and absolute positions need
    eager    every score at once, as in the KERPLE release: O(H L^2) memory, the oracle
    auto     flex where it is compiled and serves, else sdpa, else chunks

What was asked for by name is had or refused, never replaced. Cells record the way they were computed.
"""

from __future__ import annotations

import importlib.util

import torch

from kerple_eval.models.decoder.attention import uses_general_path
from kerple_eval.models.decoder.flex import flex_serves
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError

ATTENTION = ("auto", "flex", "sdpa", "eager")
LEAST_HEAD = 16  # smallest head that torch's generated kernels multiply


def resolve_backend(way: str, scheme: Scheme, name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The way that ``way`` means for a model's scheme (``name`` for people), on a device, in a dtype."""
    part = scheme.at(0)
    if way == "eager":
        return way
    if way == "sdpa":
        if uses_general_path(part):
            raise UserError(f"attention sdpa: {name} needs its scores in memory; use auto or eager")
        return way
    obstacle = _obstacle(part, name, device, dtype)
    if way == "flex":
        if obstacle:
            raise UserError(f"attention flex: {obstacle}; use auto, sdpa or eager")
        return way
    if not obstacle and dtype.itemsize == 2:
        return "flex"
    return "chunks" if uses_general_path(part) else "sdpa"


def _obstacle(scheme: Scheme, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlexAttention is not to be had; None where it is."""
    if device.type != "cuda":
        return f"is compiled for CUDA, the device is {device.type}"
    if not flex_serves(scheme):
        return f"{name} is no function of distance alone"
    if dtype == torch.float64:
        return "computes in float32 at most"
    if scheme.geometry.head_dim < LEAST_HEAD:
        return f"heads of {scheme.geometry.head_dim} are too small for it (at least {LEAST_HEAD})"
    return None if _has_triton() else "needs triton, which is not installed or does not run here"


def _has_triton() -> bool:
    """Whether torch can compile with triton here; torch's own test where it still has one (it is private)."""
    try:
        from torch.utils._triton import has_triton  # noqa: PLC0415
    except ImportError:
        return importlib.util.find_spec("triton") is not None
    return bool(has_triton())
