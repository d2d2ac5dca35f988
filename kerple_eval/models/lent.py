"""A module that is lent to scoring and goes on to train: how it is called, and what is put back.

Each rank of a distributed training may hold a part of the module alone (``fully_shard``, tensor parallel).
Its parameters are DTensors then, every forward pass is one of all ranks, and so is reading a whole parameter.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from kerple_eval.types import UserError

_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}
_FSDP_1 = "FullyShardedDataParallel"
_COPIED = 4 << 20  # bytes of a buffer up to which its values are kept: counts and statistics, not weights


@contextmanager
def without_gradients() -> Iterator[None]:
    """No gradients, but ordinary tensors, also inside of torch's inference mode.

    What a module keeps of a call (a table of positions, a gathered weight) may serve its training later, and
    backward passes refuse tensors made in inference mode.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


@contextmanager
def replaced_forwards(given: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each module computes by the function beside it; afterwards by its own, which may be a patch or
    a hook of accelerate rather than its class's."""
    replaced = list(given)
    before = [(vars(module), vars(module).get("forward")) for module, _ in replaced]  # None: the class's
    try:
        for module, function in replaced:
            module.forward = function
        yield
    finally:
        for held, forward in before:
            held.pop("forward", None)
            if forward is not None:
                held["forward"] = forward


def unwrapped(model: Any) -> tuple[Any, str | None]:
    """The module inside of what torch's data parallel, torch.compile and peft put around it; the adapter's
    kind as peft has it (LORA).

    Scored as it is, a compiled module would be compiled again for each length, and those programs would count
    against the number that its training may have. The weights of an adapter are in the module's own layers.
    """
    adapter = None
    while isinstance(model, nn.Module):
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod
        elif _is_adapted(model):
            adapter = str(getattr(model.peft_type, "value", model.peft_type))
            model = model.get_base_model()  # type: ignore[operator]
        else:
            break
    return model, adapter


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has wrapped it, and FSDP not the wrapper again: its hooks belong to a call."""
    return hasattr(module, "_orig_mod") and not _is_fsdp(type(module))


def _is_adapted(model: Any) -> bool:
    """Whether peft has put weights into the model's layers; prompts that are learned stand outside of it."""
    ours = any(c.__name__ == "PeftModel" and c.__module__.startswith("peft.") for c in type(model).__mro__)
    return ours and not model.active_peft_config.is_prompt_learning


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """In eval mode and not compiled inside; afterwards mode, buffers, cached lengths and shards are what they
    were. Of a buffer of over ``_COPIED`` bytes no copy is made: a warning says where a pass changed it.
    """
    wrapped = [
        (part, name, child)
        for part in module.modules()
        for name, child in part._modules.items()
        if child is not None and _is_compiled(child)
    ]
    for part, name, child in wrapped:
        part._modules[name] = child._orig_mod  # type: ignore[assignment]
    before = [(part, part.training, dict(part._buffers), _kept(part)) for part in module.modules()]
    config: Any = getattr(module, "config", None)
    longest = getattr(config, "max_seq_len", None)
    values = [(name, buffer, *_copied(buffer)) for name, buffer in module.named_buffers()]
    module.eval()
    for part, *_, kept in before:
        if "_compiled_call_impl" in kept:
            part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, name, child in wrapped:
            part._modules[name] = child
        if longest is not None:
            config.max_seq_len = longest  # MPT's is raised for windows beyond it
        for part, training, buffers, kept in before:
            part.training = training
            part._buffers.update(buffers)
            for key, value in kept.items():
                setattr(part, key, value)
            if _is_fsdp(type(part)):
                part.reshard()  # type: ignore[operator] # the outermost part stays gathered after a pass
        for name, buffer, version, value in values:
            if version is not None and buffer._version != version:
                if value is None:
                    message = f"buffer {name}: changed in place by a pass, and too large to be put back"
                    warnings.warn(message, stacklevel=2)
                    continue
                with without_gradients():
                    buffer.copy_(value)


def _copied(buffer: Tensor) -> tuple[int | None, Tensor | None]:
    """How often it was changed so far, None where torch does not count, and a copy of it if it is small."""
    if buffer.is_inference():
        return None, None
    small = buffer.numel() * buffer.element_size() <= _COPIED
    return buffer._version, buffer.detach().clone() if small else None


def in_parts(module: nn.Module, where: str) -> bool:
    """Whether each rank holds a part of ``module`` alone.

    Raises:
        UserError: it does in a way that is not read here.
    """
    old = any(cls.__name__ == _FSDP_1 for part in module.modules() for cls in type(part).__mro__)
    if old or any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        raise UserError(
            f"{where}: is in parts by {'FSDP 1' if old else 'DeepSpeed ZeRO-3'}, which is not read; "
            "torch.distributed.fsdp.fully_shard (FSDP 2; accelerate: fsdp_version: 2) is"
        )
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def placement(parameter: Tensor) -> torch.device:
    """The device that a parameter computes on, which of a part may be another than the one it is kept on."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    kind = parameter.device.type if mesh is None else str(mesh.device_type)
    if kind == parameter.device.type:
        return parameter.device
    return torch.device(kind, torch.get_device_module(kind).current_device())


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the matrix products of what is called inside."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[torch.dtype] = Counter()

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of most of them."""
        return self.seen.most_common(1)[0][0] if self.seen else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "overloadpacket", None) in _PRODUCTS:
            self.seen.update([args[-1].dtype])  # of products with a sum, the sum comes first
        return func(*args, **(kwargs or {}))


def whole(tensor: Tensor) -> Tensor:
    """The tensor that ``tensor`` is this rank's part of, or itself; for all ranks at once."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def is_transformers(model: Any) -> bool:
    """Whether ``model`` is a transformers model, without importing transformers."""
    return any(
        cls.__module__.startswith("transformers.") and cls.__name__ == "PreTrainedModel"
        for cls in type(model).__mro__
    )


def own_class(model: object) -> type:
    """The class that the model was before ``fully_shard`` put one of its own over it."""
    return next(cls for cls in type(model).__mro__ if not _is_fsdp(cls))


def _is_fsdp(cls: type) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported where it was used
    return fsdp is not None and issubclass(cls, fsdp.FSDPModule)


def _kept(module: nn.Module) -> dict[str, Any]:
    """What ``Module.compile`` has set, and the longest window a rotary module has seen, which decides dynamic
    frequencies."""
    names = ("_compiled_call_impl", "max_seq_len_cached")
    return {name: vars(module)[name] for name in names if name in vars(module)}
