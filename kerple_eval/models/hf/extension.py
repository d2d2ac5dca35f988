"""``extend=NAME,...`` of a transformers model: the methods and options of a native one.

    hf:DIR,extend=self-extend,group=4         another attention, in the model's own (``attention.py``)
    hf:DIR,extend=yarn,factor=4               other frequencies, by transformers' parameters (``rope.py``)
    hf:DIR,extend=yarn,factor=4,window=512    both

    from_module(model, extend="self-extend,group=4")        of a model in memory

``rope=NAME,factor=F`` is another spelling of ``extend=NAME,factor=F``. Options are read by
:mod:`kerple_eval.models.decoder.extend`, the trained length being the configuration's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kerple_eval.models.base import Shape
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.extend import extend_options, extended
from kerple_eval.models.hf import config_facts
from kerple_eval.models.hf.config import text_config
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.rope import (
    LENGTH_DEPENDENT,
    LOCAL_MASKS,
    Extension,
    far_dicts,
    original_length,
    rope_dicts,
    rotated,
    serves,
)
from kerple_eval.models.hf.rotation import rotary_modules
from kerple_eval.schemes.assembly import build_scheme
from kerple_eval.schemes.rope_longrope import RopeLongrope
from kerple_eval.schemes.rotary import Rotary
from kerple_eval.schemes.spelling import format_scheme
from kerple_eval.types import Geometry, UserError

#: Layers that have no attention of this kind, or one that is left as it is.
_OTHERS = ("recurrent", "conv", "mlp")

#: Options of schemes under transformers' names, where they differ.
_THEIR_NAMES = {"low": "low_freq_factor", "high": "high_freq_factor"}


@dataclass(frozen=True, slots=True)
class Method:
    """What ``extend=`` and modifiers ask for: other frequencies, modifiers of attention, or both."""

    frequencies: Extension | None
    modifiers: dict[str, dict[str, Any]]
    geometry: Geometry

    def details(self) -> dict[str, Any]:
        """For the run's specification."""
        said: dict[str, Any] = {}
        if self.frequencies is not None:
            said["extension"] = self.frequencies.record()
        if self.modifiers:
            said |= {"modifiers": self.modifiers, "attention": "chunks"}
        return said

    def renamed(self, layers: Sequence[str], config: Any) -> list[str]:
        """The schemes of ``layers`` (of the changed ``config``) as the method makes them."""
        if self.frequencies is not None:
            layers = self.frequencies.renamed(layers, config)
        if not self.modifiers:
            return list(layers)
        added = format_scheme("", {}, self.modifiers)
        parts = [name.split("&") for name in layers]  # a layer may have attention beside a recurrent state
        attending = {part for layer in parts for part in layer if part not in _OTHERS}
        changed = {part for part in attending if not _is_local(part)} or attending
        return ["&".join(part + added if part in changed else part for part in layer) for layer in parts]

    @property
    def prefix_invariant(self) -> bool:
        if self.frequencies is not None and self.frequencies.kind in LENGTH_DEPENDENT:
            return False
        return build_scheme("rope", {}, self.modifiers, self.geometry).prefix_invariant


def read_method(
    options: Mapping[str, str], config: Any, shape: Shape, train_length: int | None, where: str,
    format_options: tuple[str, ...],
) -> Method:  # fmt: skip
    """The method that ``options`` name for the model that ``config`` (its part on text) describes.

    ``format_options`` are those that a checkpoint of this format reads itself, for the message about an
    unknown one.

    Raises:
        UserError: an unknown method or option, or one that does not fit the model.
    """
    parameters = next(iter(far_dicts(config).values()), None)
    if parameters is None:
        raise UserError(
            f"{where}: {next(iter(options))}= extends rotary positions that a config's rope_parameters "
            "describe, and this model's has none"
        )
    if train_length is None:
        raise UserError(f"{where}: its config names no trained length, which extend= goes by")
    fraction = rotated(config, parameters) / shape.head_dim
    stored = DecoderConfig(
        vocab_size=1,
        layers=shape.layers,
        width=shape.heads * shape.head_dim,
        heads=shape.heads,
        mlp_width=1,
        train_length=train_length,
        scheme="rope",
        scheme_options={"base": float(parameters.get("rope_theta", 10000.0)), "fraction": fraction},
    )
    changed = extended(stored, _respelt(options), "Hugging Face", format_options)
    frequencies = None
    if changed.scheme != stored.scheme:
        original = original_length(config, parameters) or train_length
        geometry = Geometry(shape.heads, shape.head_dim, stored.width, shape.layers, original)
        made = build_scheme(changed.scheme, changed.scheme_options, {}, geometry)
        assert isinstance(made, Rotary)
        given = {k: v for k, v in changed.scheme_options.items() if k not in stored.scheme_options}
        frequencies = _frequencies(changed.scheme.removeprefix("rope-"), given, made)
    return Method(frequencies, changed.modifiers, stored.geometry)


def method_of(text: str, model: Any, train_length: int | None, where: str) -> Method:
    """The method ``text`` (what stands after ``extend=``, or modifiers alone) for a model in memory."""
    options = extend_options(text)
    config = text_config(model.config, where)
    trained = train_length or config_facts.train_length(config, {})
    with foreign(where, "its sizes cannot be read"):
        return read_method(options, config, config_facts.shape(config), trained, where, ())


def with_frequencies(model: Any, method: Method, where: str) -> tuple[Any, dict[str, nn.Module]]:
    """For a model in memory: a copy of its configuration with the method's frequencies, and rotary modules
    of that copy by the names of the model's own, which they answer for; none where the method has none.

    Raises:
        UserError: the model's rotary modules do not take their frequencies from the configuration.
    """
    config = copy.deepcopy(model.config)
    if method.frequencies is None:
        return config, {}
    text = text_config(config, where)
    if any(part.get("mscale_all_dim") for _, part in rope_dicts(text)):
        raise UserError(
            f"{where}: {type(model).__name__} was built with a scale of its scores that goes with its "
            "frequencies (mscale_all_dim); save it and extend it by hf:DIR,extend="
        )
    with foreign(where, f"{method.frequencies.kind} cannot be set"):
        method.frequencies.apply(text, where)
    made: dict[str, nn.Module] = {}
    for name, module in rotary_modules(model).items():
        with foreign(where, "its rotary module cannot be made anew"):
            made[name] = type(module)(text).to(next(module.buffers()).device).eval()
    if not serves(model, method.frequencies, made.values()):
        kind = method.frequencies.kind
        raise UserError(f"{where}: {type(model).__name__} has no rotary positions that {kind} could extend")
    return config, made


def _respelt(options: Mapping[str, str]) -> dict[str, str]:
    """``options`` with ``extend=`` in place of ``rope=``."""
    rest = dict(options)
    if "extend" in rest:
        if "rope" in rest:
            raise UserError("rope= is another spelling of extend=; give one of them")
        return rest
    extension = Extension.from_options(rest)
    return rest if extension is None else extension.options() | rest


def _frequencies(kind: str, given: Mapping[str, Any], made: Rotary) -> Extension:
    """The scheme ``made`` of the options ``given`` as parameters of transformers."""
    more = {key: value for key, value in given.items() if key not in ("factor", "original")}
    if isinstance(made, RopeLongrope):
        parameters: dict[str, Any] = {
            "long_factor": made.long, "short_factor": made.short, "attention_factor": made.attention_factor,
        }  # fmt: skip
    elif kind == "theta":
        parameters = {"rope_theta": made.base}
    else:
        named = {_THEIR_NAMES.get(key, key): value for key, value in more.items()}
        parameters = {key: value for key, value in named.items() if value != 0 or value is False}
    return Extension(kind, getattr(made, "factor", None), given.get("original") or None, more, parameters)


def _is_local(name: str) -> bool:
    return any(mask in name for mask in LOCAL_MASKS)
