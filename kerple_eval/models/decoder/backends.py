"""Which backend computes the native decoder's attention.

    sdpa     torch's ``scaled_dot_product_attention`` by chunks of query rows, the kernel of distance as its
             additive mask
    pruned   sdpa on the CPU, flex on CUDA, without the keys whose weight is lost in rounding (kernels that
             fall with distance; on the CPU gates that forget too)
    flex     torch's FlexAttention, with the scheme's formula inside the compiled loop (CUDA only)
    chunks   the scores of a chunk of query rows in memory, for schemes of weights, content or absolute
             positions; on the CPU without them where positions are moved or keys hidden and no more
             (:mod:`kerple_eval.models.decoder.key_runs`)
    eager    all scores at once, as the KERPLE release computes them: O(H L^2) memory; used as an oracle

The user chooses one of :data:`ATTENTION_CHOICES`. ``auto`` means: flex in half precision where it compiles
and can compute the scheme; else sdpa where that can; else chunks. A backend chosen by name is used or
refused, never replaced. Each cell records the backend that computed it.
"""

from __future__ import annotations

import importlib.util

import torch

from kerple_eval.models.decoder.attention import prunes_by_gates, uses_general_path
from kerple_eval.models.decoder.flex import flex_serves
from kerple_eval.models.decoder.flex_blocks import choose, shared_memory_limit, tables_of
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError

ATTENTION_CHOICES = ("auto", "flex", "sdpa", "pruned", "eager")
SMALLEST_HEAD = 16  # smallest head dim that torch's generated kernels can multiply


def resolve_backend(
    attention: str, scheme: Scheme, name: str, device: torch.device, dtype: torch.dtype
) -> str:
    """The backend that computes ``scheme`` on ``device`` in ``dtype``: sdpa, pruned, flex, chunks or eager.

    ``attention`` is one of :data:`ATTENTION_CHOICES`; ``name`` is what error messages call the scheme.

    Raises:
        UserError: ``attention`` names a backend that cannot compute this scheme here.
    """
    schemes = list(dict.fromkeys(scheme.at(layer) for layer in range(scheme.geometry.layers)))
    general = any(map(uses_general_path, schemes))
    if attention == "eager":
        return attention
    if attention == "sdpa":
        if general:
            raise UserError(f"attention sdpa: {name} needs its scores in memory; use auto or eager")
        return attention
    if attention == "pruned":
        gates = [prunes_by_gates(each) for each in schemes]
        others = any(
            uses_general_path(s) and not by_gates for s, by_gates in zip(schemes, gates, strict=True)
        )
        kernels = any(each.implements("kernel") for each in schemes)
        if others or not (kernels or any(gates)) or (any(gates) and device.type != "cpu"):
            raise UserError(
                "attention pruned: leaves out keys by a kernel of distance, on the CPU by gates too; "
                f"{name} on {device.type} has none; use auto"
            )
        if device.type != "cpu" and (obstacle := _any_flex_obstacle(schemes, name, device, dtype)):
            raise UserError(f"attention pruned: {obstacle}; use auto, sdpa or eager")
        return attention
    obstacle = _any_flex_obstacle(schemes, name, device, dtype)
    if attention == "flex":
        if obstacle:
            raise UserError(f"attention flex: {obstacle}; use auto, sdpa or eager")
        return attention
    if not obstacle and dtype.itemsize == 2:
        return "flex"
    return "chunks" if general else "sdpa"


def _any_flex_obstacle(
    schemes: list[Scheme], name: str, device: torch.device, dtype: torch.dtype
) -> str | None:  # fmt: skip
    obstacles = (_flex_obstacle(each, name, device, dtype) for each in schemes)
    return next((found for found in obstacles if found), None)


def _flex_obstacle(scheme: Scheme, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlexAttention cannot be used; None where it can."""
    if device.type != "cuda":
        return f"is compiled for CUDA, the device is {device.type}"
    if not flex_serves(scheme):
        return f"{name} is not a function of distance alone"
    if dtype == torch.float64:
        return "computes in float32 at most"
    if scheme.geometry.head_dim < SMALLEST_HEAD:
        return f"heads of {scheme.geometry.head_dim} are too small for it (at least {SMALLEST_HEAD})"
    return _card_obstacle(scheme, name, device, dtype)


def _card_obstacle(scheme: Scheme, name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if not _has_triton():
        return "needs triton, which is not installed or does not run here"
    dim, limit = scheme.geometry.head_dim, shared_memory_limit(device)
    if choose(dim, dtype.itemsize, tables_of(scheme), limit) is None:
        return f"at head size {dim} {name} needs more shared memory than this card's {limit:,} bytes"
    return None


def _has_triton() -> bool:
    """Whether torch can compile with triton here; torch's own test where it still has one (it is private)."""
    try:
        from torch.utils._triton import has_triton  # noqa: PLC0415
    except ImportError:
        return importlib.util.find_spec("triton") is not None
    return bool(has_triton())
