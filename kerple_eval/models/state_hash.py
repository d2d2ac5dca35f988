"""The identity of a model in memory: the sha256 of what it holds."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kerple_eval.models import lent
from kerple_eval.models.decoder.network import Decoder
from kerple_eval.types import UserError

#: Roots of packages whose modules are known by their class, a configuration and tensors.
_LIBRARIES = frozenset({"torch", "transformers", "peft", "accelerate", "torchao", "kerple_eval"})
_PLAIN = (bool, int, float, str, type(None), tuple, list, dict, SimpleNamespace)


def state_sha256(module: nn.Module, version: str | None = None) -> str | None:
    """sha256 of class, configuration and every tensor (buffers too); None without parameters.

    Of modules that no library has also of the code of their classes and of their plain attributes, or of
    ``version``, the caller's name for these, in their place. Of a module in parts it is that of the whole,
    and for all ranks at once.
    """
    if not any(True for _ in module.parameters()):
        return None
    cls = lent.own_class(module)
    digest = hashlib.sha256(f"{cls.__module__}.{cls.__qualname__}\n".encode())
    if lent.is_transformers(module):
        config: Any = module.config
        digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    elif version is None:
        digest.update(json.dumps(list(dict.fromkeys(_own_code(module)))).encode())
    if version is not None:
        digest.update(f"version {version}\n".encode())
    held = dict(module.state_dict()) | dict(module.named_buffers())
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in held.items()}  # of torch.compile
    for name in sorted(tensors):
        found = tensors[name] if not tensors[name].is_meta else _offloaded(module, name)
        for part, values in _plain_tensors(name, lent.whole(found.detach())):
            tensor = values.cpu().contiguous()
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own_code(module: nn.Module) -> Iterator[str]:
    """Of each part of no library the code of its class, without comments, and its plain attributes."""
    for path, part in module.named_modules():
        cls = lent.own_class(part)
        attributes = vars(part)
        if isinstance(part, Decoder):
            attributes = {"config": part.config}
        elif cls.__module__.partition(".")[0] in _LIBRARIES:
            continue
        else:
            yield _source(cls)
        for name, value in sorted(attributes.items()):
            told = repr(value) if isinstance(value, _PLAIN) or is_dataclass(value) else ""
            hidden = name.startswith("_") or name == "training" or " at 0x" in told  # an object's address
            if told and not hidden:
                yield f"{path.replace('_orig_mod.', '')}.{name} = {told}"


def _source(cls: type) -> str:
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    except (OSError, TypeError, SyntaxError):  # typed in, or made by a program: there is no source
        return cls.__qualname__


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
