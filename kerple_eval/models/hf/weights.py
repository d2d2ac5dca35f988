"""Weight files of a Hugging Face checkpoint: checked from their headers, then loaded by transformers.

The check gives transformers' own loader tensors without storage, so that renamings, merged experts,
tied embeddings and ignored buffers are what they will be at loading; what it reports as missing,
unclaimed or wrongly shaped is refused. Loading gives the same loader the tensors themselves, never
the folder: nothing else in it (adapters, generation settings, code) is looked at.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kerple_eval.models.hf import gguf
from kerple_eval.models.hf.files import StoredTensor, Weights
from kerple_eval.models.hf.foreign import foreign, one_line
from kerple_eval.models.hf.gguf import some
from kerple_eval.models.hf.gguf_reader import quick_reader
from kerple_eval.models.hf.loaded import claimed_names
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: Safetensors' names of dtypes; GGUF blocks have ggml's names and are never made tensors of here.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_SCORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_COMPILED, _PARALLEL = "_orig_mod.", "module."
#: Buffers that older releases of transformers stored; left out where the model has no such buffer.
_OLD_BUFFERS = (
    ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "inv_freq",
    ".position_ids",
)  # fmt: skip


def headers(weights: Weights) -> dict[str, StoredTensor]:
    """Every stored tensor by name, from headers alone; truncated and damaged files are refused.

    Names are the model's: without what a wrapper put before each of them.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weights.files:
        if weights.kind == "safetensors":
            part = safetensors_headers(path)
        elif weights.kind == "gguf":
            part = gguf.tensors(path)
        else:
            stored = _pickle(path, meta=True)
            part = {
                name: StoredTensor(tuple(tensor.shape), _NAMES.get(tensor.dtype, str(tensor.dtype)))
                for name, tensor in stored.items()
            }
        twice = next((name for name in part if name in tensors), None)
        if twice is not None:
            raise UserError(f"{path}: tensor {twice} is also in another file of the checkpoint")
        if weights.index is not None:
            _agree(weights.index, path, part)
        tensors |= part
    return _unwrapped(tensors)


def _unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Names without what wrappers put into them: torch.compile anywhere, data parallel before every name."""
    renamed = {name.replace(_COMPILED, ""): value for name, value in tensors.items()}
    while renamed and all(name.startswith(_PARALLEL) for name in renamed):
        renamed = {name.removeprefix(_PARALLEL): value for name, value in renamed.items()}
    return renamed if len(renamed) == len(tensors) else dict(tensors)


def _agree(index: Mapping[str, str], path: Path, part: Mapping[str, StoredTensor]) -> None:
    for tensor, name in index.items():
        if name == path.name and tensor not in part:
            raise UserError(f"{path}: missing tensor {tensor}, which the index assigns to it")


def stored_dtype(tensors: Mapping[str, StoredTensor], config: Any) -> torch.dtype:
    """What most of the weights are stored in; of packed ones what the configuration says, else float32."""
    counts: Counter[str] = Counter()
    for header in tensors.values():
        counts[header.dtype] += math.prod(header.shape)
    stated = getattr(config, "dtype", None)
    for found in (_DTYPES.get(counts.most_common(1)[0][0]), stated):
        if isinstance(found, torch.dtype) and found in _SCORED:
            return found
    return torch.float32


def safetensors_headers(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: StoredTensor(tuple(p.get_shape()), str(p.get_dtype())) for n, p in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None


def _pickle(path: Path, *, meta: bool) -> dict[str, Tensor]:
    from kerple_eval.models.pickles import load_tensors  # noqa: PLC0415

    tensors: Any = load_tensors(path, meta=meta)
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path}: must hold tensors by name")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {quoted(name)} is {type(value).__name__}, expected a tensor with a name"
            )
    return tensors


# --- Against the model ---------------------------------------------------------------------------


def empty(model_class: Any, config: Any, where: str) -> Any:
    """The model without weights, on the meta device."""
    with foreign(where, "transformers cannot build this model"), torch.device("meta"):
        return model_class._from_config(config)


def check(
    model_class: Any, config: Any, weights: Weights, tensors: Mapping[str, StoredTensor]
) -> tuple[Any, list[str]]:
    """The model on the meta device, after transformers' loader found a target for every tensor.

    Also the names of tensors that transformers' own class leaves out, or that no release needs.

    Raises:
        UserError: names what is missing, not claimed, or of another shape or kind.
    """
    where = str(weights.files[0] if len(weights.files) == 1 else weights.files[0].parent)
    model, info = load(model_class, config, meta_state(tensors), where, meta=True)
    refuse_gaps(info, where)
    kept = model.state_dict()
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])
    claimed = claimed_names(model, tensors)
    left_out = [
        name
        for name in sorted(tensors)
        if name not in kept
        and claimed[name] not in kept
        and (name.endswith(_OLD_BUFFERS) or any(re.search(pattern, name) for pattern in patterns))
    ]
    for name, header in tensors.items():
        if header.dtype.startswith(("F", "BF")) or name in left_out:
            continue
        target = kept.get(claimed[name] or "")
        if target is None or target.is_floating_point():
            raise UserError(f"{where}: tensor {name} is {header.dtype}, expected floating point")
    return model, left_out


def meta_state(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Tensors of these shapes and dtypes, without values."""
    return {
        name: torch.empty(header.shape, dtype=_DTYPES.get(header.dtype, torch.float32), device="meta")
        for name, header in tensors.items()
    }


def load(
    model_class: Any,
    config: Any,
    state: Mapping[str, Any],
    where: str,
    *,
    dtype: torch.dtype = torch.float32,
    meta: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """A model of ``state`` (tensors by stored name) and what transformers reports of the loading.

    On CPU; with ``meta`` on the meta device, where ``state`` must be too.
    """
    device = {"": torch.device("meta")} if meta else None
    with foreign(where, "transformers cannot build this model"), _placing_without_accelerate():
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            device_map=device,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return model, info


@contextlib.contextmanager
def _placing_without_accelerate() -> Iterator[None]:
    """transformers asks for accelerate wherever a device is named, also where one device needs none of it."""
    from transformers.integrations import accelerate as placing  # noqa: PLC0415

    original = placing.is_accelerate_available
    placing.is_accelerate_available = lambda *_: True
    try:
        yield
    finally:
        placing.is_accelerate_available = original


def refuse_gaps(info: Mapping[str, Any], where: str) -> None:
    """One line for what transformers reports as missing, mismatched or unclaimed.

    Unclaimed buffers of older releases are left out.
    """
    if info["missing_keys"]:
        raise UserError(f"{where}: missing tensor {some(info['missing_keys'])}")
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"], key=lambda item: str(item[0]))
        raise UserError(f"{where}: tensor {name} has shape {list(stored)}, expected {list(expected)}")
    unclaimed = [str(name) for name in info["unexpected_keys"]]
    if more := [name for name in unclaimed if not name.endswith(_OLD_BUFFERS)]:
        raise UserError(f"{where}: tensor not claimed by the model: {some(more)}")
    if info["error_msgs"]:
        raise UserError(f"{where}: {' '.join(str(info['error_msgs'][0]).split())[:200]}")


def read_state(weights: Weights) -> dict[str, Any]:
    """Stored tensors by name; safetensors' are read when the loader asks for them."""
    state: dict[str, Any] = {}
    for path in weights.files:
        if weights.kind == "pickle":
            state |= _pickle(path, meta=False)
            continue
        try:
            file: Any = safe_open(path, framework="pt")
            state |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return _unwrapped(state)


def load_gguf(model_class: Any, config: Any, path: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Blocks unpacked to ``dtype``: kernels for packed ones would come from the hub, and are not used."""
    from transformers import GgufConfig  # noqa: PLC0415
    from transformers import modeling_gguf_pytorch_utils as legacy  # noqa: PLC0415

    bar, legacy.tqdm = legacy.tqdm, lambda items, **_: items  # its progress bar has no switch
    try:
        with foreign(str(path), "transformers cannot load it"), quick_reader():
            model, info = model_class.from_pretrained(
                str(path.parent),
                config=config,
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
            )
    finally:
        legacy.tqdm = bar
    return model, info
