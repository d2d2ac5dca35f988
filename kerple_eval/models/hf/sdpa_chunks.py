"""transformers' SDPA on a card, without its two forms that need memory for every score.

    a local mask       transformers forms it as a matrix [B, 1, L, L], and the kernel reads a float a score;
                       here queries go by chunks over the keys that one of them may see, with the model's own
                       rule of the mask: work and memory are O(L window)
    grouped queries    in four bytes, or on a card before compute capability 8.0, torch has no fused kernel
                       that shares keys among heads, and forms all scores (34 GB a layer of 32 heads at
                       16,384); here keys and values are repeated, which its memory-efficient kernel serves

All else goes on to transformers' own function. A model takes this way where it has one of the two forms and
its logits are those it gave before (:func:`install`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.hf.model import HfModel
from kerple_eval.models.lent import without_gradients

NAME = "sdpa-chunks"
MOST_ROWS, LEAST_ROWS = 1024, 128  # queries of a chunk: as many as the window is wide, within these
PAST = 19  # tokens past a local mask, in the comparison
LONGEST = 4200  # tokens of the comparison at most: it forms the matrix once
ROWS = 64  # last positions whose logits are compared


@dataclass(frozen=True)
class LocalMask:
    """The rule of a local mask in place of its matrix; positions as in transformers' ``sdpa_mask``."""

    function: Callable[[Any, Any, Any, Any], Tensor]
    local: int  # no key at this distance or beyond is seen
    first_query: int
    first_key: int


_FOUND: set[int] = set()  # of the model that is being installed: widths of its local masks; 0: keys repeated


def install(made: HfModel, longest: int | None) -> None:
    """Let ``made`` compute attention here where its own has one of the two forms and the logits agree.

    ``longest``: the longest window its positions serve. ``made.attention`` says what became of it.
    """
    if made.attention != "sdpa":
        return
    _register()
    configs = [m.config for m in made.model.modules() if getattr(m, "config", None) is not None]
    theirs = {id(config): (config, config._attn_implementation) for config in configs}
    _FOUND.clear()
    if not _agrees(made, theirs, 24) or not _FOUND:
        return
    most = min(longest or LONGEST, LONGEST)
    past = [width + PAST for width in sorted(_FOUND) if 24 < width + PAST <= most]
    if all(_agrees(made, theirs, length) for length in past):
        _set(theirs, NAME)
        made.attention = NAME


@without_gradients()
def _agrees(made: HfModel, theirs: dict[int, tuple[Any, str]], length: int) -> bool:
    """Whether logits of a few rows are the same both ways; the model is afterwards as it was."""
    ids = torch.randint(made.vocabulary, (1, length), generator=torch.Generator().manual_seed(length))
    ids, rows = ids.to(made.device), min(length, ROWS)
    try:
        own = made._forward(ids, rows).float()
        _set(theirs, NAME)
        here = made._forward(ids, rows).float()
    except Exception:  # its code does something of its own with masks, or memory is short: it keeps its way
        return False
    finally:
        _set(theirs, None)
    tolerance = 1e-4 if made.dtype == torch.float32 else 5e-2
    return bool((here - own).abs().max() <= tolerance * own.abs().max())


def _set(configs: dict[int, tuple[Any, str]], name: str | None) -> None:
    """``name`` for every configuration that says sdpa; what it said before where None."""
    for config, own in configs.values():
        config._attn_implementation = name if name and own == "sdpa" else own


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **named: Any
) -> tuple[Tensor, None]:
    """What transformers calls: q ``[B, H, Q, d]``, k and v ``[B, H or fewer, K, d]`` -> ``[B, Q, H, d]``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa  # noqa: PLC0415

    if isinstance(attention_mask, LocalMask):
        part = partial(sdpa, module, **named)
        return _by_chunks(part, query, key, value, attention_mask), None
    groups = query.shape[1] // key.shape[1]
    inner: Any = module
    if groups > 1 and not _shares_keys(query):
        _FOUND.add(0)
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        inner = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # it has no groups any more
    out: Tensor = sdpa(inner, query, key, value, attention_mask, **named)[0]
    return out, None


def _by_chunks(sdpa: Any, q: Tensor, k: Tensor, v: Tensor, mask: LocalMask) -> Tensor:
    outs, queries = [], q.shape[2]
    behind = mask.first_query - mask.first_key  # key ``behind + i`` has the position of query ``i``
    rows = min(max(mask.local, LEAST_ROWS), MOST_ROWS)
    zero = torch.zeros((), dtype=torch.int64, device=q.device)
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        lowest, highest = max(0, behind + start - mask.local + 1), min(behind + stop, k.shape[2])
        seen = mask.function(
            zero, zero,
            torch.arange(start, stop, device=q.device)[:, None] + mask.first_query,
            torch.arange(lowest, highest, device=q.device)[None] + mask.first_key,
        )  # fmt: skip
        keys = slice(lowest, highest)
        outs.append(sdpa(q[:, :, start:stop], k[:, :, keys], v[:, :, keys], seen[None, None])[0])
    return torch.cat(outs, dim=1)


def _shares_keys(query: Tensor) -> bool:
    """Whether torch has a fused kernel for grouped queries: FlashAttention's, in two bytes."""
    if query.dtype.itemsize != 2:
        return False
    return query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) >= (8, 0)


def _mask(**named: Any) -> Any:
    """What transformers calls for a mask; a rule where it would form the matrix of a plain local one."""
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    local, padding = named.get("local_size"), named.get("attention_mask")
    plain = named.get("allow_is_causal_skip", True) and not named.get("use_vmap")
    plain = plain and not named.get("allow_is_bidirectional_skip")
    if local is None or not plain or (padding is not None and not padding.all()):
        return sdpa_mask(**named)
    _FOUND.add(local)
    if named["kv_length"] < local:
        return sdpa_mask(**named)
    return LocalMask(named["mask_function"], local, int(named["q_offset"]), int(named["kv_offset"]))


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
