"""``extend=NAME,...`` of a transformers model: the methods and options of a native one.

    hf:DIR,extend=self-extend,group=4         another attention, in the model's own (``attention.py``)
    hf:DIR,extend=yarn,factor=4               other frequencies, by transformers' parameters (``rope.py``)
    hf:DIR,extend=yarn,factor=4,window=512    both

``rope=NAME,factor=F`` is another spelling of ``extend=NAME,factor=F``. Options are read by
:mod:`kerple_eval.models.decoder.extend`, the trained length being the configuration's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kerple_eval.models.base import Shape
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.extend import extended
from kerple_eval.models.hf.rope import LOCAL_MASKS, Extension, original_length, rope_dicts, rotated
from kerple_eval.schemes.assembly import build_scheme
from kerple_eval.schemes.rope_longrope import RopeLongrope
from kerple_eval.schemes.rotary import Rotary
from kerple_eval.schemes.spelling import format_scheme
from kerple_eval.types import Geometry, UserError

#: Layers that have no attention of this kind, or one that is left as it is.
_OTHERS = ("recurrent", "conv", "mlp", "&")

#: Options of schemes under transformers' names, where they differ.
_THEIR_NAMES = {"low": "low_freq_factor", "high": "high_freq_factor"}


@dataclass(frozen=True, slots=True)
class Method:
    """What ``extend=`` and modifiers ask for: other frequencies, modifiers of attention, or both."""

    frequencies: Extension | None
    modifiers: dict[str, dict[str, Any]]
    geometry: Geometry

    def renamed(self, layers: Sequence[str]) -> list[str]:
        """The schemes of ``layers`` with the modifiers after those of attention that they apply to."""
        added = format_scheme("", {}, self.modifiers)
        attending = [name for name in layers if not any(word in name for word in _OTHERS)]
        every = all(_is_local(name) for name in attending)
        return [
            name + added if name in attending and (every or not _is_local(name)) else name for name in layers
        ]

    @property
    def prefix_invariant(self) -> bool:
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
    parts = dict(rope_dicts(config))
    parameters = parts.get("full_attention") or parts.get("") or next(iter(parts.values()), None)
    if parameters is None:
        raise UserError(f"{where}: {next(iter(options))}= extends rotary positions, and this model has none")
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
    changed = extended(stored, options, "Hugging Face", format_options)
    frequencies = None
    if changed.scheme != stored.scheme:
        original = original_length(config, parameters) or train_length
        geometry = Geometry(shape.heads, shape.head_dim, stored.width, shape.layers, original)
        made = build_scheme(changed.scheme, changed.scheme_options, {}, geometry)
        assert isinstance(made, Rotary)
        given = {k: v for k, v in changed.scheme_options.items() if k not in stored.scheme_options}
        frequencies = _frequencies(changed.scheme.removeprefix("rope-"), given, made)
    return Method(frequencies, changed.modifiers, stored.geometry)


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
