"""GPT-NeoX's ``pos-emb`` to a native scheme: which tensors it holds, and what they are called here.

Source: chijames/KERPLE, ``megatron/mpu/layers.py`` (``ParallelKerpleLog``, ``ParallelKerplePower``,
``ParallelRelativePositionBias``) and ``megatron/model/gpt2_model.py``.

D the distance, a and p learned per head, all kept >= 0.01 and a power's p <= 2, by the release at every
forward pass:

    kerple_log             - bias_p log(1 + bias_a D)                             kerple-log
    kerple_power_ap_       - bias_a D^bias_p                                      kerple-power
    kerple_power__ap       score x exp(-wei_a D^wei_p)                            kerple-gauss-2-para-wht
    kerple_power_ap_ap     both                                                   kerple-bias-wht
    kerple_power_original  - bias_a D, bias_a ALiBi's slopes (and clamped too)    kerple-power, r2 = 1
    rpe                    + sqrt(d) b[bucket(D), h]                              t5, scale = sqrt(d)
    alibi, rotary, learned, sinusoidal, none                                      the native ones

Those of the DAPE authors' fork are in :mod:`dape`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.neox.config import NeoxConfig
from kerple_eval.models.neox.dape import MODULES, ForkScheme, fork_scheme
from kerple_eval.models.neox.tensors import COLUMNS, COPIES, ROWS, Notes, Rule
from kerple_eval.schemes.slopes import slopes
from kerple_eval.types import UserError

_RPE = "attention.rpe."
_POSITIONS = "position_embeddings.weight"


@dataclass(frozen=True)
class NeoxScheme:
    pos_emb: str
    scheme: str
    options: dict[str, Any] = field(default_factory=dict)
    #: GPT-NeoX's tensor of every layer -> the native scheme's parameter
    shared: dict[str, str] = field(default_factory=dict)
    learned: bool = False  # position_embeddings.weight beside the embedding
    per_layer: bool = False  # each layer has parameters of its own

    @property
    def biased(self) -> bool:
        """Whether something is added to the scaled scores."""
        return self.pos_emb in ("rpe", "alibi") or (
            self.pos_emb.startswith("kerple") and self.pos_emb != "kerple_power__ap"
        )

    def layer_rules(self, config: NeoxConfig, shards: int) -> dict[str, Rule]:
        heads = config.heads // shards
        if self.scheme == "t5":
            return {_RPE + "weight": Rule((config.buckets, heads), COLUMNS)}
        return {_RPE + name: Rule((heads, 1, 1), ROWS) for name in self.shared}

    def embedding_rules(self, config: NeoxConfig) -> dict[str, Rule]:
        if not self.learned:
            return {}
        assert config.max_positions is not None
        return {_POSITIONS: Rule((config.max_positions, config.width), COPIES)}

    def native(self, merged: Mapping[str, Tensor], config: NeoxConfig) -> dict[str, Tensor]:
        """The scheme's parameters by native name from merged tensors."""
        if self.learned:
            return {"table": merged[_POSITIONS][config.position_offset :].clone()}
        if self.scheme == "t5":
            return {"relative_bias": merged[_RPE + "weight"]}
        state = {new: merged[_RPE + old].flatten() for old, new in self.shared.items()}
        if self.pos_emb == "kerple_power_original":
            state["r2"] = torch.ones_like(state["r1"])
        return state


#: Of the release, or of the DAPE authors' fork.
Position = NeoxScheme | ForkScheme

_KERPLE = {
    "kerple_log": ("kerple-log", {"bias_p": "r1", "bias_a": "r2"}),
    "kerple_power_ap_": ("kerple-power", {"bias_a": "r1", "bias_p": "r2"}),
    "kerple_power__ap": ("kerple-gauss-2-para-wht", {"wei_a": "r1", "wei_p": "r2"}),
    "kerple_power_ap_ap": ("kerple-bias-wht", {"bias_a": "r1", "bias_p": "r2", "wei_a": "r3", "wei_p": "r4"}),
    "kerple_power_original": ("kerple-power", {"bias_a": "r1"}),
}


def choose(
    config: NeoxConfig,
    requested: str | None,
    embedding: Mapping[str, Tensor],
    layer: Mapping[str, Tensor],
    where: str,
    notes: Notes,
) -> Position:
    """The scheme by option, else by configuration, else by the names of the tensors where one fits.

    ``embedding`` and ``layer`` are the tensors of the embedding and of the first layer (first shard); sizes
    that the configuration gives are compared with theirs before anything is built.
    """
    pos_emb = requested or config.pos_emb
    if requested and config.pos_emb and requested != config.pos_emb:
        notes.add(f"pos-emb {requested} as given; the configuration says {config.pos_emb}")
    if pos_emb is None:
        pos_emb = _infer({*embedding, *layer}, where)
        notes.add(f"the configuration has no pos-emb; the tensors are {pos_emb}'s")
    head_dim = config.width // config.heads
    if pos_emb in MODULES:
        return fork_scheme(pos_emb, layer, config.heads, where)
    if pos_emb in _KERPLE:
        scheme, shared = _KERPLE[pos_emb]
        return NeoxScheme(pos_emb, scheme, shared=shared)
    if pos_emb == "rpe":
        _same_rows(where, "rpe-num-buckets", config.buckets, layer, _RPE + "weight")
        options = {"buckets": config.buckets, "max_distance": config.max_distance}
        return NeoxScheme(pos_emb, "t5", {**options, "scale": math.sqrt(head_dim)})
    if pos_emb == "rotary":
        return NeoxScheme(pos_emb, "rope", {"base": config.rotary_base, "fraction": config.rotary_fraction})
    if pos_emb == "learned":
        positions = (config.max_positions or 0) - config.position_offset
        if positions < 1:
            raise UserError(f"{where}: pos-emb learned needs max-position-embeddings")
        _same_rows(where, "max-position-embeddings", config.max_positions or 0, embedding, _POSITIONS)
        return NeoxScheme(pos_emb, "learned", {"positions": positions}, learned=True)
    return NeoxScheme(pos_emb, "nope" if pos_emb == "none" else pos_emb)


def _same_rows(where: str, key: str, count: int, tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse ``key: count`` where the tensor ``name`` has another number of rows."""
    if name in tensors and (tensors[name].dim() != 2 or tensors[name].shape[0] != count):
        raise UserError(f"{where}: {key} is {count}, but {name} has shape {list(tensors[name].shape)}")


def _infer(names: set[str], where: str) -> str:
    fork = [
        name
        for name, (module, *_) in MODULES.items()
        if any(stored.startswith(f"attention.{module}.") for stored in names)
    ]
    if len(fork) == 1:
        return fork[0]
    rpe = {name.removeprefix(_RPE) for name in names if name.startswith(_RPE)}
    fits = [name for name, (_, shared) in _KERPLE.items() if set(shared) == rpe]
    if rpe == {"weight"}:
        fits = ["rpe"]
    elif not rpe:
        traces = {
            "learned": _POSITIONS, "sinusoidal": "position_embeddings.inv_freq",
            "rotary": "attention.rotary_emb.inv_freq", "alibi": "attention.alibi_embed.slopes",
        }  # fmt: skip
        fits = [name for name, tensor in traces.items() if tensor in names]
        fits = fits or ["none", "rotary", "alibi", "sinusoidal"]
    if len(fits) == 1:
        return fits[0]
    candidates = " or ".join(fits) or "no pos-emb known here"
    raise UserError(
        f"{where}: the configuration has no pos-emb, and the tensors fit {candidates}; "
        f"say which: ,pos-emb={fits[0] if fits else '...'}"
    )


def check_buffers(
    scheme: Position,
    config: NeoxConfig,
    shards: Sequence[Mapping[str, Tensor]],
    paths: Sequence[Path],
) -> None:
    """Buffers in the file must be the configuration's, to the rounding of half precision."""
    head_dim = config.width // config.heads
    rotated = int(head_dim * config.rotary_fraction)
    per_shard = config.heads // len(shards)
    for shard, (tensors, path) in enumerate(zip(shards, paths, strict=True)):
        alibi = torch.tensor(
            slopes(config.heads)[shard * per_shard : (shard + 1) * per_shard], dtype=torch.float64
        )
        expected = {
            "attention.rotary_emb.inv_freq": ("rotary", _inverse(rotated, config.rotary_base)),
            "position_embeddings.inv_freq": ("sinusoidal", _inverse(config.width, 10000.0)),
            "attention.alibi_embed.slopes": ("alibi", alibi),
            "attention.alibi_c_embed.slopes": ("alibi_c", alibi),
            "attention.alibi_dapev2.slopes": ("alibi_dapev2", alibi),
        }
        for name, (owner, values) in expected.items():
            if name not in tensors:
                continue
            if scheme.pos_emb != owner:
                raise UserError(f"{path}: holds {name}, which pos-emb {scheme.pos_emb} does not have")
            stored = tensors[name].to(torch.float64).flatten()
            if stored.shape != values.shape or not torch.allclose(stored, values, rtol=0.01, atol=1e-6):
                raise UserError(f"{path}: {name} is not what the configuration gives; is it another model's?")


def _inverse(dim: int, base: float) -> Tensor:
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / max(dim, 1))
