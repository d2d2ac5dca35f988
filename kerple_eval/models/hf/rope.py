"""Rotary positions of a transformers model: what the config says, and extensions applied at evaluation.

``extend=NAME,factor=F[,original=N]``, or ``rope=`` in its place, changes the config's ``rope_parameters``
before the model is built; no weight is touched. With theta the base, d the rotated dimensions of a head, L
the original length, and inv_freq_i = theta^(-2i/d), i = 0 .. d/2-1:

linear   inv_freq / F (Chen et al., Position Interpolation, arXiv 2306.15595)
ntk      theta * F^(d/(d-2)) (NTK-aware scaling, bloc97; Peng et al., YaRN, arXiv 2309.00071, section 3.1)
dynamic  theta * ((F n / L) - (F - 1))^(d/(d-2)) for a window of n > L tokens, plain up to L: a loss
         depends on how long its window is
yarn     a ramp over dimensions between inv_freq / F and inv_freq, and cos, sin scaled by
         0.1 ln F + 1 (YaRN, section 3.4; beta 32 and 1)
llama3   inv_freq / F at wavelengths above L, inv_freq below L / 4, smooth between (Llama 3.1 herd of
         models, arXiv 2407.21783; low_freq_factor 1, high_freq_factor 4)

longrope inv_freq_i / lambda_i, one list of lambda for windows of more than L tokens and one for others
         (arXiv 2402.13753)
theta    another base

All but ``ntk`` and ``theta`` are transformers' own (``modeling_rope_utils.py``, release 5.24); options and
their defaults are those of the scheme of that name in :mod:`kerple_eval.schemes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from torch import nn

#: What ``rope=`` may name.
EXTENSIONS = ("linear", "dynamic", "yarn", "llama3", "ntk")
_WITH_ORIGINAL = ("dynamic", "yarn", "llama3")
#: Frequencies that follow the length of the window: a loss then depends on more than its context.
LENGTH_DEPENDENT = ("dynamic", "longrope")
#: Keys of a rope_parameters dict that stay when the type is replaced.
_KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "llama_4_scaling_beta")
#: How the scheme of such a layer says so.
LOCAL_MASKS = (",window=", ",chunk=")
_LOCAL = ("sliding", "chunked")  # in the types of layers that never see far: not extended


@dataclass(frozen=True, slots=True)
class Extension:
    """``extend=kind,factor=F[,original=N][,more]``, or ``rope=``.

    ``more`` are further options as given; ``parameters`` what transformers calls them and their values.
    """

    kind: str
    factor: float | None
    original: int | None = None
    more: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: dict[str, str]) -> Extension | None:
        """Removes its keys from ``options``; None where no extension was asked for."""
        given = {key: options.pop(key) for key in ("rope", "factor", "original") if key in options}
        if not given:
            return None
        if "rope" not in given:
            raise UserError(f"hf: {next(iter(given))}= goes with rope=, one of {', '.join(EXTENSIONS)}")
        kind = given["rope"]
        if kind not in EXTENSIONS:
            raise unknown("rope extension", kind, EXTENSIONS)
        if "factor" not in given:
            raise UserError(f"hf: rope={kind} needs factor=F, as in rope={kind},factor=4")
        factor = _number(given["factor"])
        if factor is None or not 1 <= factor < float("inf"):
            raise UserError(f"hf: factor={given['factor']} must be a number, at least 1")
        if "original" not in given:
            return cls(kind, factor)
        if kind not in _WITH_ORIGINAL:
            raise UserError(f"hf: rope={kind} has no use for original=; {_or(_WITH_ORIGINAL)} have")
        text = given["original"]
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise UserError(f"hf: original={text} must be a whole number of tokens, at least 1")
        return cls(kind, factor, int(text))

    @property
    def has_original(self) -> bool:
        """Whether it goes by the length before any extension."""
        return self.kind in (*_WITH_ORIGINAL, "longrope")

    def options(self) -> dict[str, str]:
        """As ``extend=`` has them."""
        found = {"extend": self.kind, "factor": str(self.factor)}
        return found if self.original is None else found | {"original": str(self.original)}

    def record(self) -> dict[str, Any]:
        """As written, for the run's specification."""
        given: dict[str, Any] = {"rope": self.kind, "factor": self.factor, "original": self.original}
        return {key: value for key, value in given.items() if value is not None} | self.more

    def apply(self, config: Any, where: str) -> str | None:
        """Set ``config.rope_parameters``; what was replaced, if the config had an extension of its own.

        Raises:
            UserError: the model has no rotary positions that transformers can scale.
        """
        parameters = far_dicts(config)
        if not parameters:
            raise UserError(f"{where}: {self.kind} extends rotary positions, and this model has none")
        if vars(config).get("head_dim", 0) is None:  # Mixtral; transformers' functions would multiply it
            config.head_dim = config.hidden_size // config.num_attention_heads
        own = [old for old in parameters.values() if old.get("rope_type", "default") != "default"]
        for name, old in parameters.items():
            new = self._parameters(config, old, where)
            if name:
                config.rope_parameters[name] = new
                if self.kind == "yarn":  # transformers looks for it beside the layer types
                    config.rope_parameters["truncate"] = new.get("truncate", True)
            else:
                config.rope_parameters = new
        replaced = ", ".join(f"{old['rope_type']} (factor {old.get('factor')})" for old in own)
        return replaced or None

    def renamed(self, layers: Sequence[str], config: Any) -> list[str]:
        """``ntk`` or ``theta`` named in the layers: transformers sees another base, of the default type."""
        if self.kind not in ("ntk", "theta"):
            return list(layers)
        local = len(dict(rope_dicts(config))) > 1  # local layers have frequencies of their own
        return [
            name
            if local and any(mask in name for mask in LOCAL_MASKS)
            else re.sub(r"\brope\b(?!-)", f"rope-{self.kind}", name)
            for name in layers
        ]

    def _parameters(self, config: Any, old: dict[str, Any], where: str) -> dict[str, Any]:
        new = {key: old[key] for key in _KEPT if key in old}
        if "llama_4_scaling_beta" in new:  # Ministral's temperature goes by the original length too
            new["original_max_position_embeddings"] = old["original_max_position_embeddings"]
        if old.get("rope_type") == "proportional":
            raise UserError(
                f"{where}: {self.kind} cannot extend its rotary positions, which are of the type "
                "proportional (other pairs of components, most of them at rest)"
            )
        if self.kind == "theta":
            return new | {"rope_type": "default"} | self.parameters
        if self.kind == "ntk":
            assert self.factor is not None
            d = rotated(config, old)
            if d <= 2:
                raise UserError(f"{where}: rope=ntk needs more than 2 rotated dimensions, got {d}")
            theta = float(old["rope_theta"]) * self.factor ** (d / (d - 2))
            return new | {"rope_type": "default", "rope_theta": theta}
        new |= {"rope_type": self.kind, "factor": self.factor}
        if self.has_original:
            original = self.original or original_length(config, old)
            if original is None:
                raise UserError(f"{where}: its config names no trained length; give original=N")
            if self.kind == "dynamic":  # transformers takes L from there
                config.max_position_embeddings = original
                return new
            new["original_max_position_embeddings"] = original
            # the attribute some configs carry (Phi-3) takes precedence over the entry just made
            if getattr(config, "original_max_position_embeddings", None) is not None:
                config.original_max_position_embeddings = original
        if self.kind == "llama3":
            new |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return new | self.parameters


def rope_dicts(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(layer type, parameters); the layer type is empty where all layers share them."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or not parameters:
        return
    if "rope_theta" in parameters or "rope_type" in parameters:
        yield "", parameters
    else:
        yield from ((name, layer) for name, layer in parameters.items() if isinstance(layer, dict))


def far_dicts(config: Any) -> dict[str, dict[str, Any]]:
    """Those of :func:`rope_dicts` whose layers see far; all of them where no layer does."""
    parts = dict(rope_dicts(config))
    far = {name: part for name, part in parts.items() if not any(word in name for word in _LOCAL)}
    return far or parts


def original_length(config: Any, parameters: dict[str, Any]) -> int | None:
    """The length before any extension of the config's own."""
    for value in (
        parameters.get("original_max_position_embeddings"),
        getattr(config, "original_max_position_embeddings", None),
        getattr(config, "max_position_embeddings", None),
    ):
        if isinstance(value, int):
            return value
    return None


def rotated(config: Any, parameters: dict[str, Any]) -> int:
    """d: how many dimensions of a head are rotated."""
    from kerple_eval.models.hf.config_facts import shape  # noqa: PLC0415 - torch

    return int(shape(config).head_dim * (parameters.get("partial_rotary_factor") or 1.0))


def rope_types(config: Any) -> list[str]:
    """Types over all layers, without repetition, ``default`` where positions are not scaled."""
    return sorted({str(part.get("rope_type", "default")) for _, part in rope_dicts(config)})


def serves(model: nn.Module, extension: Extension, modules: Iterable[nn.Module] | None = None) -> bool:
    """Whether a module of the built model, or one of ``modules``, makes frequencies as ``extension`` says."""
    if getattr(model.config, "alibi", False):  # Falcon keeps rotary settings that it does not use
        return False
    kind = "default" if extension.kind in ("ntk", "theta") else extension.kind
    for module in model.modules() if modules is None else modules:
        own = getattr(module, "rope_type", None)
        if own == kind or (isinstance(own, dict) and kind in own.values()):
            return True
    return False


def forget_lengths(model: nn.Module) -> None:
    """Put dynamic frequencies back to those of a fresh model.

    transformers keeps the frequencies of the longest window seen until a window shorter than L comes, so
    that a window between would be scored with another's. ``inv_freq`` is [d/2] on the model's device.
    """
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        layers = types.items() if isinstance(types, dict) else [("", types)]
        for layer, kind in layers:
            if not (isinstance(kind, str) and "dynamic" in kind):
                continue
            prefix = f"{layer}_" if layer else ""
            fresh = getattr(module, f"{prefix}original_inv_freq")
            now = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", fresh.to(now.device).clone())
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _or(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]
