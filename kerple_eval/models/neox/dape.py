"""Positions of the DAPE authors' fork of GPT-NeoX, in native schemes.

Source: chuanyang-Zheng/DAPE, ``megatron/model/positional_embeddings.py`` and ``transformer.py`` (commit
5667d28). H heads, d a head's size, M ``mlp_width``, C ``dapev2_kernel``. Unlike in the KERPLE release,
each layer has parameters of its own, in the attention's module of the name below:

    kerple         kerple        bias_p, bias_a [H, 1, 1]                       kerple-log, per layer
    kerple_c       kerple_c      the same, mlp2.0 [M, 2H], mlp2.2 [H, M]        dape, static=kerple-log
    kerple_dapev2  kerple_dapev2 the same, mlp2.0 [M, 2H, 1, C], ...            dape-v2, static=kerple-log
    alibi_c        alibi_c_embed mlp2.*                                         dape, static=alibi
    alibi_dapev2   alibi_dapev2  mlp2.*                                         dape-v2, static=alibi
    nope_c         nope_c        mlp2.0 [M, H], mlp2.2 [H, M]                   dape, static=none
    fire           fire          mlp.0 [M, 1], mlp.2 [H, M], c, L_multiplier    fire, per layer; init_L its
                                                                                threshold
    cope           cope          pos_emb [1, d, P]                              cope: table = sqrt(d) pos_emb

CoPE's term is not divided by sqrt(d) there, as it is in the native scheme: hence the factor. The others
of the fork (``fire_c``, ``fire_dapev2``, ``xl_bias``, ``rope_dapev1``, ``rope_dapev2``, ``nope_c_ffn``)
have no native scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.neox.tensors import COPIES, Rule
from kerple_eval.types import UserError

#: ``pos-emb`` -> (module inside the attention, native scheme, options).
MODULES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kerple": ("kerple", "kerple-log", {"per_layer": True}),
    "kerple_c": ("kerple_c", "dape", {"static": "kerple-log"}),
    "kerple_dapev2": ("kerple_dapev2", "dape-v2", {"static": "kerple-log"}),
    "alibi_c": ("alibi_c_embed", "dape", {"static": "alibi"}),
    "alibi_dapev2": ("alibi_dapev2", "dape-v2", {"static": "alibi"}),
    "nope_c": ("nope_c", "dape", {"static": "none"}),
    "fire": ("fire", "fire", {"per_layer": True}),
    "cope": ("cope", "cope", {}),
}
#: Stored name -> native name, where a scheme has it.
_NAMES = {
    "bias_p": "r1", "bias_a": "r2", "c": "c", "L_multiplier": "multiplier", "pos_emb": "table",
    "mlp.0.weight": "into.weight", "mlp.0.bias": "into.bias",
    "mlp.2.weight": "out.weight", "mlp.2.bias": "out.bias",
    "mlp2.0.weight": "into.weight", "mlp2.0.bias": "into.bias",
    "mlp2.2.weight": "out.weight", "mlp2.2.bias": "out.bias",
}  # fmt: skip


@dataclass(frozen=True)
class ForkScheme:
    """One ``pos-emb`` of the fork: its tensors in every layer's attention, by stored name."""

    pos_emb: str
    scheme: str
    options: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    learned: bool = False
    shared: dict[str, str] = field(default_factory=dict)
    per_layer: bool = True

    def layer_rules(self, config: Any, shards: int) -> dict[str, Rule]:
        if shards > 1:
            raise UserError(f"pos-emb {self.pos_emb} in {shards} model-parallel shards is not supported")
        return {name: Rule(shape, COPIES) for name, shape in self.shapes.items()}

    def embedding_rules(self, config: Any) -> dict[str, Rule]:
        return {}

    def native(self, merged: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The scheme's parameters by native name from ``LAYER.STORED NAME``."""
        state: dict[str, Tensor] = {}
        for full, tensor in merged.items():
            layer, stored = full.split(".", 1)
            name = stored.split(".", 2)[2]  # after attention.MODULE
            if name == "init_L":
                if int(tensor) != self.options["threshold"]:
                    raise UserError(f"{stored} of layer {layer} differs from the first layer's")
                continue
            state[f"layers.{layer}.{_NAMES[name]}"] = self._converted(name, tensor, config.heads)
        return state

    def _converted(self, name: str, tensor: Tensor, heads: int) -> Tensor:
        if name in ("bias_p", "bias_a"):
            return tensor.flatten()
        if name == "pos_emb":
            return tensor[0] * math.sqrt(tensor.shape[1])
        if self.pos_emb == "nope_c" and name == "mlp2.0.weight":  # the native one sees a bias of zeros too
            return torch.cat([tensor, torch.zeros_like(tensor)], dim=1)
        return tensor


def fork_scheme(pos_emb: str, layer: Mapping[str, Tensor], heads: int, where: str) -> ForkScheme:
    """``pos_emb`` of the fork, its sizes from the tensors of the first ``layer``."""
    module, scheme, options = MODULES[pos_emb]
    prefix = f"attention.{module}."
    stored = {name.removeprefix(prefix): t for name, t in layer.items() if name.startswith(prefix)}
    shapes = _shapes(pos_emb, stored, heads)
    options = dict(options)
    missing = [name for name in shapes if name not in stored]
    if missing:
        raise UserError(f"{where}: missing tensor {prefix}{missing[0]}, which pos-emb {pos_emb} has")
    if scheme == "fire":
        threshold = float(stored["init_L"])
        if not (threshold >= 1 and threshold == int(threshold)):
            raise UserError(f"{where}: {prefix}init_L is {threshold}, expected a whole number of tokens")
        options |= {"units": shapes["mlp.0.weight"][0], "threshold": int(threshold)}
    elif scheme == "cope":
        options |= {"positions": shapes["pos_emb"][2]}
    elif scheme != "kerple-log":
        options |= {"units": shapes["mlp2.0.weight"][0]}
        if scheme == "dape-v2":
            options |= {"columns": shapes["mlp2.0.weight"][3]}
    return ForkScheme(pos_emb, scheme, options, {prefix + name: shape for name, shape in shapes.items()})


def _shapes(pos_emb: str, stored: Mapping[str, Tensor], heads: int) -> dict[str, tuple[int, ...]]:
    """Name inside the module -> shape; free sizes as the first layer has them."""

    def size(name: str, axis: int) -> int:
        return int(stored[name].shape[axis]) if name in stored and stored[name].dim() > axis else 1

    kernel = {"bias_p": (heads, 1, 1), "bias_a": (heads, 1, 1)}
    shapes: dict[str, tuple[int, ...]] = dict(kernel) if pos_emb.startswith("kerple") else {}
    if pos_emb == "cope":
        return {"pos_emb": (1, size("pos_emb", 1), size("pos_emb", 2))}
    if pos_emb == "fire":
        units = size("mlp.0.weight", 0)
        return {
            "c": (), "L_multiplier": (), "init_L": (), "mlp.0.weight": (units, 1), "mlp.0.bias": (units,),
            "mlp.2.weight": (heads, units), "mlp.2.bias": (heads,),
        }  # fmt: skip
    if pos_emb == "kerple":
        return shapes
    units, seen = size("mlp2.0.weight", 0), heads if pos_emb == "nope_c" else 2 * heads
    columns = (1, size("mlp2.0.weight", 3)) if pos_emb.endswith("v2") else ()
    return shapes | {
        "mlp2.0.weight": (units, seen, *columns), "mlp2.0.bias": (units,),
        "mlp2.2.weight": (heads, units, *columns), "mlp2.2.bias": (heads,),
    }  # fmt: skip
