"""The attention of a transformers model computed here, so that a positional method can be applied to it.

transformers lets attention be registered by name. The one registered here receives queries and keys that are
not rotated (:mod:`rotation`), and the rule of each layer's mask in place of its matrix, and attends by blocks
of query rows (:mod:`kerple_eval.models.decoder.attention`) with the modifiers of
:mod:`kerple_eval.schemes`: no matrix [L, L] is formed. Grouped queries, partial rotation, scales, soft caps,
sinks and each layer's own mask stay those of the model; norms of queries and keys lie before it.

In a model that has layers with and without a local mask (Gemma 2 and 3, gpt-oss), the modifiers apply to
those without: the others never see far. Where every layer is local (Mistral), they apply to all, within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kerple_eval.models.decoder.attention import SharedScores, attention, make_table
from kerple_eval.models.hf.foreign import one_line
from kerple_eval.models.hf.rotation import Queries, Rotations
from kerple_eval.models.lent import without_gradients
from kerple_eval.schemes.assembly import build_scheme
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.composite import Combined
from kerple_eval.types import Geometry, UserError

NAME = "kerple-eval"


@dataclass(frozen=True)
class MaskRule:
    """Which keys a layer's queries see: transformers' function of positions, not its matrix."""

    function: Callable[[Any, Any, Any, Any], Tensor]
    local: int | None  # no key at this distance or beyond is seen; None: all before the query may be


class ModelPositions(Scheme):
    """What one attention layer of a transformers model does with positions, as a scheme."""

    def __init__(
        self, geometry: Geometry, rotations: Rotations, layer: nn.Module, rule: MaskRule | None,
        softcap: float | None, sinks: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(geometry)
        self._rotations = rotations
        self._layer = [layer]  # in a list, so that it does not become a part of this module
        self._rule = rule
        self._sinks = [sinks]
        self.softcap = softcap
        self.window = None if rule is None else rule.local

    def rotate(self, q: Tensor, k: Tensor, positions_q: Tensor, positions_k: Tensor) -> tuple[Tensor, Tensor]:
        return self._rotations.rotate(self._layer[0], q, k, positions_q, positions_k)

    def visible(self, positions_q: Tensor, positions_k: Tensor) -> Tensor | None:
        if self._rule is None:
            return None
        zero = torch.zeros((), dtype=torch.int64, device=positions_q.device)
        return self._rule.function(zero, zero, positions_q[:, None], positions_k[None])

    def sink(self) -> Tensor | None:
        return self._sinks[0]


class OwnAttention:
    """The attention of ``model``, a transformers model with weights, installed while it runs.

    As made it is the model's own in another way of computing; :meth:`apply` adds modifiers. ``ids [1, N]``
    are tokens of a short pass, which finds out how its layers rotate; ``geometry`` has its sizes and trained
    length; ``where`` is the model in messages.

    Raises:
        UserError: its attention cannot be computed here; says why.
    """

    def __init__(self, model: Any, ids: Tensor, geometry: Geometry, where: str) -> None:
        _register()
        self.model = model
        self.geometry = geometry
        self.rotations = Rotations(model, where)
        self.modifiers: dict[str, Scheme] = {}
        self.local: dict[nn.Module, int | None] = {}
        self._received: list[tuple[nn.Module, Tensor]] | None = None
        #: Of a pass, by mask, whether modified, and soft cap: one for layers that are alike.
        self._tables: dict[tuple[MaskRule | None, bool, float | None], SharedScores | None] = {}

        def received() -> Queries:
            self._received = []
            with self.installed(), without_gradients():
                model(input_ids=ids, use_cache=False)
                return self._received, self.rotations.answers

        try:
            self.rotations.find_layers(received)
        except UserError:
            raise
        except Exception as error:
            reason = f"its code fails with it: {one_line(error)}"
            if MaskRule.__name__ in reason:
                reason = "its code computes with the matrix of its mask"
            raise self.rotations.refusal(reason) from error
        self._received = None
        if not self.local:
            raise self.rotations.refusal("it does not compute attention through transformers' interface")

    def apply(self, modifiers: Mapping[str, Mapping[str, Any]]) -> None:
        """From now on with ``modifiers`` (name -> options)."""
        combined = build_scheme("rope", {}, modifiers, self.geometry)
        self.modifiers = {name: part for name, part in _parts(combined).items() if name}
        moving = [name for name, part in self.modifiers.items() if part.implements("remap")]
        if moving and not any(layer in self.rotations.turns for layer in self.local if self._applies(layer)):
            raise self.rotations.refusal(f"no layer that {moving[0]} applies to has rotary positions")

    def _applies(self, layer: nn.Module) -> bool:
        """Whether the modifiers apply to ``layer``."""
        return self.local[layer] is None or None not in self.local.values()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, calls of the model compute attention here; afterwards it is as it was."""
        configs = {id(m.config): m.config for m in self.model.modules() if hasattr(m, "config")}
        before = [(config, config._attn_implementation) for config in configs.values()]
        token = _INSTALLED.set(self)
        try:
            self.model.config._attn_implementation = NAME
            with self.rotations.unrotated():
                yield
        finally:
            for config, name in before:
                config._attn_implementation = name
            _INSTALLED.reset(token)
            self._tables = {}

    def attend(
        self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, rule: Any, *, scaling: float | None,
        softcap: float | None, sinks: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Attention output ``[B, N, H, d]`` of q ``[B, H, N, d]``, k and v with as many heads or fewer."""
        if rule is not None and not isinstance(rule, MaskRule):
            raise self.rotations.refusal("its mask is a matrix of its own")
        if q.shape[2] != k.shape[2]:
            raise self.rotations.refusal("it has keys without queries")
        self.local[layer] = None if rule is None else rule.local
        groups = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
        if self._received is not None:
            self._received.append((layer, q))
            return v[:, :, :1].expand(-1, -1, q.shape[2], -1).transpose(1, 2).contiguous()
        ratio = 1.0 if scaling is None else scaling * q.shape[-1] ** 0.5  # the decoder's scale is d^-0.5
        if abs(ratio - 1) > 1e-12:
            q = q.to(torch.promote_types(q.dtype, torch.float32)) * ratio
        scheme: Scheme = ModelPositions(self.geometry, self.rotations, layer, rule, softcap, sinks)
        modified = bool(self.modifiers) and self._applies(layer)
        if modified:
            scheme = Combined(scheme, self.modifiers)
        alike = (rule, modified, softcap)
        if alike not in self._tables:
            self._tables[alike] = make_table(scheme, k.shape[2], q.dtype, q.device, "chunks")
        return attention(q, k, v, scheme, self._tables[alike]).transpose(1, 2).contiguous()


def _parts(scheme: Scheme) -> dict[str, Scheme]:
    return scheme.parts if isinstance(scheme, Combined) else {"": scheme}


_INSTALLED: ContextVar[OwnAttention | None] = ContextVar("installed", default=None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *,
    scaling: float | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **further: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls; ``further`` (dropout, the sliding window) is in the mask's rule or unused."""
    own = _INSTALLED.get()
    assert own is not None
    out = own.attend(module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, sinks=s_aux)
    return out, None


def _mask_rule(
    *, mask_function: Callable[[Any, Any, Any, Any], Tensor], attention_mask: Tensor | None = None,
    local_size: int | None = None, **further: Any,
) -> MaskRule:  # fmt: skip
    """What transformers calls for a mask; no window has padding, so ``attention_mask`` is true everywhere."""
    if attention_mask is not None and not attention_mask.all():
        raise UserError("a model that hides tokens of its input cannot be extended")
    return MaskRule(mask_function, local_size)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask_rule)
