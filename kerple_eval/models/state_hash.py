"""The identity of a model in memory: the sha256 of what it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kerple_eval.models import lent
from kerple_eval.types import UserError


def state_sha256(module: nn.Module) -> str | None:
    """sha256 of class, configuration and every tensor (buffers too); None without parameters.

    Of a module in parts it is that of the whole, and for all ranks at once.
    """
    if not any(True for _ in module.parameters()):
        return None
    cls = lent.own_class(module)
    digest = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}\n".encode())
    if lent.is_transformers(module):
        config: Any = module.config
        digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    held = dict(module.state_dict()) | dict(module.named_buffers())
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in held.items()}  # of torch.compile
    for name in sorted(tensors):
        found = tensors[name] if not tensors[name].is_meta else _offloaded(module, name)
        for part, values in _plain_tensors(name, lent.whole(found.detach())):
            tensor = values.cpu().contiguous()
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or those that a packed one (torchao's) consists of, by name."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in sorted(parts):
        yield from _plain_tensors(f"{name}.{part}", getattr(tensor, part))


def _offloaded(module: nn.Module, name: str) -> Tensor:
    """A tensor that accelerate keeps on disk or in the CPU's memory, and a meta tensor in its place."""
    if getattr(module, "hf_device_map", None) is None:
        raise UserError(f"{type(module).__name__}: tensor {name} is on the meta device, without values")
    from transformers.integrations.accelerate import load_offloaded_parameter  # noqa: PLC0415

    found: Tensor = load_offloaded_parameter(module, name)
    return found
