"""Checkpoints whose weights are packed, loaded by transformers' own quantisers.

What a quantiser stores in place of a layer's ``weight`` is known by name, so that every other tensor is
checked as in a plain checkpoint: a layer without weights, a tensor that nothing takes, a shape that does not
fit. fp8 with scales by block is unpacked into the run's dtype: its kernels would come from the hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kerple_eval.models.hf.files import StoredTensor
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: Method -> the packages that its quantiser needs, as they are imported and as pip names them.
PACKAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"), ("accelerate", "accelerate")),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "awq": (("gptqmodel", "gptqmodel"), ("accelerate", "accelerate")),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "fp8": (("accelerate", "accelerate"),),
    "torchao": (("torchao", "torchao"), ("accelerate", "accelerate")),
    "hqq": (("hqq", "hqq"), ("accelerate", "accelerate")),
}
#: Method -> what follows a layer's name in the names of what it stores, besides ``weight``.
_PIECES = {
    "bitsandbytes": r"weight\.(nested_)?(absmax|quant_map)|weight\.quant_state\.bitsandbytes__\w+|SCB|"
    r"weight_format",
    "gptq": r"qweight|qzeros|scales|g_idx",
    "awq": r"qweight|qzeros|scales",
    "compressed-tensors": r"weight_(packed|scale|zero_point|global_scale|shape|g_idx)|"
    r"(input|output)_(scale|zero_point|global_scale)",
    "fp8": r"weight_scale_inv|weight_scale|activation_scale|input_scale",
    "torchao": r"_weight_\w+",
    "hqq": r"W_q|meta|scale|zero|nbits|group_size|axis|shape|view_as_float|packing|compute_dtype|"
    r"unpack_view_dtype|channel_wise|optimize|round_zero|stores_quant_config|offload_meta|encoded_state_dict",
}
#: Methods of which every packed layer has the same pieces.
_UNIFORM = ("bitsandbytes", "gptq", "awq")


@dataclass(frozen=True)
class Quantisation:
    """How the weights of a checkpoint are packed; ``settings`` as its configuration says."""

    method: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, raw: dict[str, Any], where: str) -> Quantisation | None:
        """Of a raw configuration, from which it is taken out; None of a plain one.

        Raises:
            UserError: a method that is not supported, or whose package is not installed.
        """
        found = None
        for part in (raw, raw.get("text_config")):
            for key in ("quantization_config", "compression_config"):
                if isinstance(part, dict) and part.get(key):
                    found = found or part[key]
                    part.pop(key)
        if found is None:
            return None
        settings = found if isinstance(found, dict) else {"quant_method": found}
        method = settings.get("quant_method")
        if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
            method = "bitsandbytes"
        if not isinstance(method, str) or method not in PACKAGES:
            named = quoted(method)[:60].strip("'")
            raise UserError(
                f"{where}: the weights are quantised ({named}); supported are {', '.join(PACKAGES)} and GGUF"
            )
        absent = [name for module, name in PACKAGES[method] if find_spec(module) is None]
        if absent:
            raise UserError(
                f"{where}: the weights are quantised ({method}), which needs {' and '.join(absent)}: "
                f"pip install {' '.join(absent)}"
            )
        return cls(method, settings | ({"dequantize": True} if method == "fp8" else {}))

    def plain(
        self, tensors: Mapping[str, StoredTensor], model: Any, where: str
    ) -> dict[str, StoredTensor] | None:
        """``tensors`` as a checkpoint without packed weights would hold them.

        ``model`` is the plain model on the meta device. None where layers have other names in the file than
        in the model: then what does not fit is told when it is loaded.

        Raises:
            UserError: a packed layer lacks what others have.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found: dict[str, StoredTensor] = {}
        pieces: dict[str, set[str]] = {}
        for name, header in tensors.items():
            layer, piece = self._split(name, header)
            if piece is None:
                found[name] = header
            elif f"{layer}.weight" not in shapes:
                return None
            else:
                pieces.setdefault(layer, set()).add(piece)
        for layer in pieces:
            shape = shapes[f"{layer}.weight"]
            found[f"{layer}.weight"] = StoredTensor(shape, "F32")
        if self.method in _UNIFORM and pieces:
            every = set.union(*pieces.values())
            for layer in sorted(pieces):
                if lacks := sorted(every - pieces[layer]):
                    raise UserError(f"{where}: missing tensor {layer}.{lacks[0]}")
        self._check_numbers(tensors, pieces, shapes, where)
        return found

    def _split(self, name: str, header: StoredTensor) -> tuple[str, str | None]:
        """The layer that a stored tensor belongs to, and which piece of its packed weight it is, if any."""
        match = re.fullmatch(rf"(?P<layer>.+?)\.(?P<piece>{_PIECES[self.method]})", name)
        if match is not None:
            return match["layer"], match["piece"]
        layer, _, last = name.rpartition(".")
        packed = header.dtype in ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2") and last == "weight"
        return layer, "weight" if packed else None

    def _check_numbers(
        self,
        tensors: Mapping[str, StoredTensor],
        pieces: Mapping[str, set[str]],
        shapes: Mapping[str, tuple[int, ...]],
        where: str,
    ) -> None:
        """A packed ``weight`` of bytes holds one number or two a byte."""
        for layer in pieces:
            header = tensors.get(f"{layer}.weight")
            if header is None or header.dtype == "I32":
                continue
            stored, wanted = math.prod(header.shape), math.prod(shapes[f"{layer}.weight"])
            if stored not in (wanted, -(-wanted // 2)):
                raise UserError(
                    f"{where}: tensor {layer}.weight has shape {list(header.shape)} ({self.method}), the "
                    f"layer's is {list(shapes[f'{layer}.weight'])}"
                )

    def is_piece(self, name: str, header: StoredTensor) -> bool:
        """Whether a stored tensor is part of a packed weight."""
        return self._split(name, header)[1] is not None
