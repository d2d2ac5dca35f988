"""GPT-NeoX's tensors, sharded over m model-parallel ranks, to the native decoder's.

Source: EleutherAI/gpt-neox and chijames/KERPLE, ``megatron/mpu/layers.py`` (which axis each layer is
split along), ``megatron/model/transformer.py`` (packing and residuals) and
``tools/ckpts/convert_neox_to_hf.py`` (norms averaged over ranks).

W hidden size, H heads, d = W / H, F the MLP's width, V padded vocabulary, P positions, R buckets:

    word_embeddings.weight          [V/m, W]    rows
    position_embeddings.weight      [P, W]      copies
    attention.query_key_value.*     [3W/m(, W)] rows, packed [H/m, 3, d]: a head's q, k and v together
    attention.dense.weight          [W, W/m]    columns; its bias [W] copies
    mlp.dense_h_to_4h.*             [F/m(, W)]  rows (geglu: [2F/m], each shard's two halves apart)
    mlp.dense_4h_to_h.weight        [W, F/m]    columns; its bias [W] copies
    *norm.weight, .bias, .scale     [W]         copies
    attention.rpe.weight            [R, H/m]    columns
    attention.rpe.{bias,wei}_{a,p}  [H/m, 1, 1] rows
    final_linear.weight             [V/m, W] or [V, W/m], as its shape says

Copies must be equal. Two exceptions, both reported: norms that differ are averaged, as GPT-NeoX's
converter does; and with ``gpt_j_residual`` the copies of a bias are *summed*, since there every rank
adds its own before the one reduction over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

Shards = Sequence[Mapping[str, Tensor]]

ROWS, COLUMNS, COPIES, NORM, SUMMED, HALVES = "rows", "columns", "copies", "norm", "summed", "halves"

#: Buffers that the configuration also determines; they are compared with it, not merged.
BUFFERS = {
    "position_embeddings.inv_freq", "attention.rotary_emb.inv_freq", "attention.alibi_embed.slopes",
    "attention.alibi_c_embed.slopes", "attention.alibi_dapev2.slopes",
}  # fmt: skip
#: Later GPT-NeoX's names of the MLP's layers -> those of the release.
_RENAMED = {"mlp.linear1.": "mlp.dense_h_to_4h.", "mlp.linear2.": "mlp.dense_4h_to_h."}
_WHOLE_NUMBERS = ("init_L",)  # FIRE's threshold in the DAPE fork: a count of tokens


@dataclass(frozen=True, slots=True)
class Rule:
    """Shape of one shard's part and how the parts are put together."""

    shape: tuple[int, ...]
    how: str


@dataclass
class Notes:
    """What the reading changed, each once, for the description's warnings."""

    lines: dict[str, None] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self.lines.setdefault(line)


def flat(loaded: Any, path: Path) -> dict[str, Tensor]:
    """A layer file's tensors by name."""
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise UserError(f"{path}: not a layer's tensors by name, but a {type(loaded).__name__}")
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {quoted(name)} is no tensor but a {type(tensor).__name__}")
        if not tensor.is_floating_point() and not name.endswith(_WHOLE_NUMBERS):
            raise UserError(f"{path}: tensor {name} is {tensor.dtype}, expected floating point")
    return {_release_name(name): tensor.detach() for name, tensor in loaded.items()}


def _release_name(name: str) -> str:
    for later, release in _RENAMED.items():
        if name.startswith(later):
            return release + name.removeprefix(later)
    return name


def check(shards: Shards, rules: Mapping[str, Rule], paths: Sequence[Path], notes: Notes) -> None:
    """Names, shapes and equal copies, without building anything."""
    for tensors, path in zip(shards, paths, strict=True):
        missing = [name for name in rules if name not in tensors]
        if missing:
            raise UserError(f"{path}: missing tensor {_some(missing)}")
        extra = [name for name in tensors if name not in rules and name not in BUFFERS]
        if extra:
            raise UserError(f"{path}: tensor not claimed by the model: {_some(extra)}")
        for name, rule in rules.items():
            if tuple(tensors[name].shape) != rule.shape:
                shape = list(tensors[name].shape)
                raise UserError(f"{path}: tensor {name} has shape {shape}, expected {list(rule.shape)}")
    for name, rule in rules.items():
        if rule.how in (COPIES, NORM) and len(shards) > 1:
            _check_copies([tensors[name] for tensors in shards], name, rule, paths, notes)
        if rule.how == SUMMED and len(shards) > 1:
            notes.add(
                f"the {len(shards)} shards' copies of attention.dense.bias and mlp.dense_4h_to_h.bias are "
                "summed: with gpt_j_residual each rank adds its own"
            )


def _check_copies(parts: list[Tensor], name: str, rule: Rule, paths: Sequence[Path], notes: Notes) -> None:
    for part, path in zip(parts[1:], paths[1:], strict=True):
        if not torch.equal(part, parts[0]):
            if rule.how == NORM:
                notes.add("norms that differ between model-parallel shards are averaged, as GPT-NeoX does")
            else:
                raise UserError(
                    f"{path}: {name} differs from {paths[0].name}'s; the shards' copies must agree"
                )


def merge(name: str, shards: Shards, rule: Rule, wide: torch.dtype) -> Tensor:
    """One whole tensor in ``wide``, from checked parts."""
    parts = [tensors[name].to(wide) for tensors in shards]
    if rule.how == ROWS:
        return torch.cat(parts, dim=0)
    if rule.how == COLUMNS:
        return torch.cat(parts, dim=1)
    if rule.how == HALVES:  # each shard's output is [u; g]: all u, then all g
        halves = [part.chunk(2, dim=0) for part in parts]
        return torch.cat([torch.cat([h[i] for h in halves]) for i in range(2)])
    if rule.how == SUMMED:
        return torch.stack(parts).sum(dim=0)
    return torch.stack(parts).mean(dim=0) if rule.how == NORM and len(parts) > 1 else parts[0].clone()


def norm_rules(prefix: str, width: int, norm: str) -> dict[str, Rule]:
    names = ("weight", "bias") if norm == "layernorm" else ("scale",)
    return {f"{prefix}.{name}": Rule((width,), NORM) for name in names}


def layer_rules(
    *, width: int, mlp_width: int, shards: int, norm: str, gated: bool, summed: bool, tied_norms: bool
) -> dict[str, Rule]:
    """The tensors of one transformer layer, but for the positional scheme's."""
    w, f = width // shards, mlp_width // shards
    inner, part, copies = (2 * f if gated else f), (HALVES if gated else ROWS), (SUMMED if summed else COPIES)
    return {
        **norm_rules("input_layernorm", width, norm),
        **({} if tied_norms else norm_rules("post_attention_layernorm", width, norm)),
        "attention.query_key_value.weight": Rule((3 * w, width), ROWS),
        "attention.query_key_value.bias": Rule((3 * w,), ROWS),
        "attention.dense.weight": Rule((width, w), COLUMNS),
        "attention.dense.bias": Rule((width,), copies),
        "mlp.dense_h_to_4h.weight": Rule((inner, width), part),
        "mlp.dense_h_to_4h.bias": Rule((inner,), part),
        "mlp.dense_4h_to_h.weight": Rule((width, f), COLUMNS),
        "mlp.dense_4h_to_h.bias": Rule((width,), copies),
    }


_LAYER_NAMES = {
    "attention.dense": "attention.out",
    "mlp.dense_h_to_4h": "mlp_in",
    "mlp.dense_4h_to_h": "mlp_out",
}


def native_layer(index: int, merged: Mapping[str, Tensor], heads: int, tied_norms: bool) -> dict[str, Tensor]:
    """One layer's merged tensors under the native decoder's names."""
    out = {}
    prefix = f"layers.{index}."
    for name, tensor in merged.items():
        module, _, kind = name.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        if module == "attention.query_key_value":
            out[f"{prefix}attention.qkv.{kind}"] = _unpack(tensor, heads)
        elif module == "input_layernorm":
            out[f"{prefix}attention_norm.{kind}"] = tensor
            if tied_norms:
                out[f"{prefix}mlp_norm.{kind}"] = tensor.clone()
        elif module == "post_attention_layernorm":
            out[f"{prefix}mlp_norm.{kind}"] = tensor
        else:
            out[f"{prefix}{_LAYER_NAMES[module]}.{kind}"] = tensor
    return out


def _unpack(packed: Tensor, heads: int) -> Tensor:
    """Rows ``[H, 3, d]`` -> ``[3, H, d]``: all queries, then all keys, then all values."""
    dim = packed.shape[0] // (3 * heads)
    parts = packed.view(heads, 3, dim, *packed.shape[1:])
    return parts.transpose(0, 1).reshape(packed.shape).contiguous()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
