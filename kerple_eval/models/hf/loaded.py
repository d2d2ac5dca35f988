"""After transformers has loaded a model: its tensors are the file's, its computed buffers computed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.hf.foreign import foreign
from kerple_eval.types import UserError


@torch.no_grad()
def take_over(model: Any, state: Mapping[str, Any], where: str) -> None:
    """Compare each tensor with the file's after the cast to the model's dtype; where they differ, copy.

    transformers' classes may write into weights after loading them (some zero an embedding's row of padding).
    ``state`` must have been read anew: tensors that were given to the loader share the model's memory.
    Tensors that are merged or reordered on loading have passed through its own conversion; those on disk (a
    meta tensor stands for them) are read from the file at each use.
    """
    own = model.state_dict()
    for name, claimed in claimed_names(model, state).items():
        target = None if claimed is None else own.get(claimed)
        if target is None or target.is_meta:
            continue
        value = state[name]
        stored = value if isinstance(value, Tensor) else value[...]
        stored = stored.to(target.device, target.dtype)
        if stored.shape != target.shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(target.shape)} in the model, "
                f"{list(stored.shape)} in the file"
            )
        if not torch.equal(torch.nan_to_num(stored), torch.nan_to_num(target)):
            target.copy_(stored)


def claimed_names(model: Any, stored: Iterable[str]) -> dict[str, str | None]:
    """Each stored name's tensor in the model, by transformers' renamings; None where values are converted.

    As ``core_model_loading.convert_and_load_state_dict_in_model`` of release 5.24 finds them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415
    from transformers.core_model_loading import (  # noqa: PLC0415
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    own, prefix = model.state_dict(), model.base_model_prefix
    names: dict[str, str | None] = {}
    for name in stored:
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if renamed not in own and name in own:
            renamed, pattern = rename_source_key(name, [], [], prefix, own)
        names[name] = renamed if pattern is None else None
    return names


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
