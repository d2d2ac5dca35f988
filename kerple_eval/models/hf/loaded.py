"""After transformers has loaded a model: its tensors are the file's, its computed buffers computed."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.hf.foreign import foreign
from kerple_eval.types import UserError


@torch.no_grad()
def take_over(model: Any, state: Mapping[str, Any], where: str) -> None:
    """Compare each tensor with the file's after the cast to the model's dtype; where they differ, copy.

    transformers' classes may write into weights after loading them (some zero an embedding's row of padding).
    Tensors that are stored under other names, or in parts, have passed through its own conversion; those on
    disk (a meta tensor stands for them) are read from the file at each use.
    """
    converted = _converted_patterns(model)
    own = model.state_dict()
    for name, value in state.items():
        target = own.get(name)
        if target is None or target.is_meta or any(re.search(pattern, name) for pattern in converted):
            continue
        stored = value if isinstance(value, Tensor) else value[...]
        stored = stored.to(target.device, target.dtype)
        if stored.shape != target.shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(target.shape)} in the model, "
                f"{list(stored.shape)} in the file"
            )
        if not torch.equal(torch.nan_to_num(stored), torch.nan_to_num(target)):
            target.copy_(stored)


def _converted_patterns(model: Any) -> list[str]:
    """Names, as patterns, whose values transformers converts on loading (merged or reordered weights)."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415
        from transformers.core_model_loading import WeightConverter  # noqa: PLC0415
    except ImportError:
        return []
    mapping = get_model_conversion_mapping(model)
    return [p for entry in mapping if isinstance(entry, WeightConverter) for p in entry.source_patterns]


def compute_buffers(model: Any, model_class: Any, config: Any, dtype: torch.dtype, where: str) -> None:
    """Give a model of foreign code the tensors that its constructor computes and no file stores.

    transformers builds on the meta device and then fills what it knows of; frequencies, slopes and tables
    that are non-persistent buffers (or plain attributes) of other code stay uninitialised memory. Here the
    model is built once more off the meta device, and these tensors are copied from it.
    """
    with foreign(where, "its own code fails"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = model_class._from_config(copy.deepcopy(config), dtype=dtype)
    sources = dict(fresh.named_modules())
    for path, module in model.named_modules():
        source = sources.get(path)
        if source is None:
            raise UserError(f"{where}: its own code builds another model each time: no {path}")
        for name in module._non_persistent_buffers_set:
            if source._buffers.get(name) is not None:
                old = module._buffers.get(name)
                new = source._buffers[name].clone()
                module._buffers[name] = new if old is None or old.is_meta else new.to(old.device)
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_meta:
                setattr(module, name, getattr(source, name))
