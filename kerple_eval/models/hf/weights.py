"""Weight files of a Hugging Face checkpoint: checked from their headers, then loaded by transformers.

The check gives transformers' own loader tensors without storage, so that renamings, merged experts,
tied embeddings and ignored buffers are what they will be at loading; what it reports as missing,
unclaimed or wrongly shaped is refused. Loading gives the same loader the tensors themselves, never
the folder: nothing else in it (adapters, generation settings, code) is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kerple_eval.models.hf.config import one_line
from kerple_eval.models.hf.files import Weights
from kerple_eval.types import UserError

#: Safetensors' names of dtypes; GGUF blocks have ggml's names and are never made tensors of here.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: Buffers that older releases of transformers stored and no release needs.
_OLD_BUFFERS = (
    ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "inv_freq",
    ".position_ids",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """One stored tensor: its shape and its dtype's name (F32, BF16, ..., or Q4_1 and the like)."""

    shape: tuple[int, ...]
    dtype: str


def headers(weights: Weights) -> dict[str, Header]:
    """Every stored tensor by name, from headers alone; truncated and damaged files are refused."""
    tensors: dict[str, Header] = {}
    for path in weights.files:
        if weights.kind == "safetensors":
            part = _safetensors(path)
        elif weights.kind == "gguf":
            part = _gguf(path)
        else:
            empty = _pickle(path, meta=True)
            part = {k: Header(tuple(t.shape), _NAMES.get(t.dtype, str(t.dtype))) for k, t in empty.items()}
        twice = next((name for name in part if name in tensors), None)
        if twice is not None:
            raise UserError(f"{path}: tensor {twice} is also in another file of the checkpoint")
        if weights.index is not None:
            _agree(weights.index, path, part)
        tensors |= part
    return tensors


def _agree(index: Mapping[str, str], path: Path, part: Mapping[str, Header]) -> None:
    for tensor, name in index.items():
        if name == path.name and tensor not in part:
            raise UserError(f"{path}: missing tensor {tensor}, which the index assigns to it")


def _safetensors(path: Path) -> dict[str, Header]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: Header(tuple(p.get_shape()), str(p.get_dtype())) for n, p in parts.items()}
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
            raise UserError(f"{path}: {name!r} is {type(value).__name__}, expected a tensor with a name")
    return tensors


def _gguf(path: Path) -> dict[str, Header]:
    """Names, shapes and block types; that each tensor ends inside the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415
    from transformers.integrations.gguf import reader  # noqa: PLC0415

    try:
        size = path.stat().st_size
        blob = reader._mapped(str(path))
        metadata, count, end = reader._read_metadata(blob, str(path))
        table, end = reader._read_tensor_table(blob, count, end)
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-end // alignment) * alignment
        tensors: dict[str, Header] = {}
        for name, shape, kind, offset in table:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            elements = 1
            for extent in shape:
                elements *= extent
            if start + offset + elements // block * width > size:
                raise UserError(f"{path}: truncated: tensor {name} ends beyond the file's {size} bytes")
            if name in tensors:
                raise UserError(f"{path}: tensor {name} appears twice")
            tensors[name] = Header(tuple(shape), GGMLQuantizationType(kind).name)
    except (
        OSError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, MemoryError, struct.error,
    ) as error:  # fmt: skip
        raise UserError(f"{path}: truncated or damaged: {one_line(error)}") from None
    return tensors


def refuse_unread_scaling(path: Path, tensors: Mapping[str, Header]) -> None:
    """Rotary scaling that a GGUF file states and transformers leaves out, which would pass for plain rope."""
    from transformers.integrations.gguf.reader import read_gguf_metadata  # noqa: PLC0415

    if any(name.startswith(("rope_freqs", "rope_factors")) for name in tensors):
        raise UserError(
            f"{path}: holds scaled rotary frequencies, which transformers would leave out; say how they "
            "scale, for Llama 3.1 rope=llama3,factor=8,original=8192"
        )
    metadata, _ = read_gguf_metadata(str(path))
    architecture = str(metadata["general.architecture"])
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind != "none" and architecture != "gpt-oss":  # the one whose scaling transformers reads
        factor = metadata.get(f"{architecture}.rope.scaling.factor", "?")
        raise UserError(
            f"{path}: its rotary positions are scaled ({kind}, factor {factor}), which transformers would "
            f"leave out; say rope={kind},factor={factor}"
        )


# --- Against the model ---------------------------------------------------------------------------


def check(model_class: Any, config: Any, weights: Weights, tensors: Mapping[str, Header]) -> Any:
    """The model on the meta device, after transformers' loader found a target for every tensor.

    Raises:
        UserError: names what is missing, not claimed, or of another shape.
    """
    where = weights.files[0] if len(weights.files) == 1 else weights.files[0].parent
    if weights.kind == "gguf":
        return _check_gguf(model_class, config, weights.files[0], tensors)
    for name, header in tensors.items():
        if not header.dtype.startswith(("F", "BF")) and not name.endswith(_OLD_BUFFERS):
            raise UserError(f"{where}: tensor {name} is {header.dtype}, expected floating point")
    empty = {
        name: torch.empty(header.shape, dtype=_DTYPES.get(header.dtype, torch.float32), device="meta")
        for name, header in tensors.items()
        if not name.endswith(_OLD_BUFFERS)
    }
    model, info = load(model_class, config, empty, str(where), meta=True)
    refuse_gaps(info, str(where))
    return model


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
    device = torch.device("meta")
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=dtype,
            device_map={"": device} if meta else None,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except UserError:
        raise
    except Exception as error:  # constructors of models raise what their configuration leads them to
        raise UserError(f"{where}: transformers cannot build this model: {one_line(error)}") from None
    return model, info


def refuse_gaps(info: Mapping[str, Any], where: str) -> None:
    """One line for what transformers reports as missing, mismatched or unclaimed."""
    if info["missing_keys"]:
        raise UserError(f"{where}: missing tensor {_some(info['missing_keys'])}")
    if info["mismatched_keys"]:
        name, stored, wanted = min(info["mismatched_keys"], key=lambda item: str(item[0]))
        raise UserError(f"{where}: tensor {name} has shape {list(stored)}, expected {list(wanted)}")
    if info["unexpected_keys"]:
        raise UserError(f"{where}: tensor not claimed by the model: {_some(info['unexpected_keys'])}")
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
    return {name: value for name, value in state.items() if not name.endswith(_OLD_BUFFERS)}


def load_gguf(model_class: Any, config: Any, path: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Blocks unpacked to ``dtype``: kernels for packed ones would come from the hub, and are not used."""
    from transformers import GgufConfig  # noqa: PLC0415
    from transformers import modeling_gguf_pytorch_utils as legacy  # noqa: PLC0415

    bar, legacy.tqdm = legacy.tqdm, lambda items, **_: items  # its progress bar has no switch
    try:
        model, info = model_class.from_pretrained(
            str(path.parent),
            config=config,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # readers of GGUF raise what they meet
        raise UserError(f"{path}: transformers cannot load it: {one_line(error)}") from None
    finally:
        legacy.tqdm = bar
    return model, info


def _check_gguf(model_class: Any, config: Any, path: Path, tensors: Mapping[str, Header]) -> Any:
    """Names and sizes against transformers' map of GGUF names, for architectures that it covers by one."""
    from transformers.modeling_gguf_pytorch_utils import (  # noqa: PLC0415
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    try:
        with torch.device("meta"):
            model = model_class._from_config(config)
        make = TENSOR_PROCESSORS.get(config.model_type, TensorProcessor)
        names = get_gguf_hf_weights_map(model, make(config=config.to_dict()))
    except NotImplementedError:
        return model  # the loader will name what is missing
    except Exception as error:  # as above
        raise UserError(f"{path}: transformers cannot build this model: {one_line(error)}") from None
    state = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    missing = [name for name, target in names.items() if name not in tensors and target not in tied]
    if missing and config.model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "phi3"):
        raise UserError(f"{path}: missing tensor {_some(missing)}")
    for name, header in tensors.items():
        target = state.get(names.get(name, ""))
        if target is not None and target.numel() != torch.Size(header.shape).numel():
            raise UserError(
                f"{path}: tensor {name} has shape {list(header.shape)}, expected {list(target.shape)}"
            )
    return model


def _some(names: Any) -> str:
    ordered = sorted(str(name) for name in names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more
