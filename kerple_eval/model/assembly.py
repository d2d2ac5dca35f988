"""From a configuration to its positional scheme: one a layer where it must be, modifiers laid on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kerple_eval.catalogue import load, scheme_entry, typed_options
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.composite import Combined, Stacked
from kerple_eval.types import Geometry, UserError

if TYPE_CHECKING:
    from kerple_eval.model.config import DecoderConfig
    from kerple_eval.model.decoder import Decoder


def build_scheme(config: DecoderConfig) -> Scheme:
    """The configured scheme; a wrong name, option or combination is refused."""
    geometry = config.geometry
    entry = scheme_entry(config.scheme)
    modifiers = {name: _made(name, options, geometry) for name, options in config.modifiers.items()}
    for name in modifiers:
        if not scheme_entry(name).stands_on:
            raise UserError(f"{name} is a scheme of its own: it cannot be laid on {config.scheme}")
    if entry.stands_on:  # a modifier alone
        modifiers = {config.scheme: _made(config.scheme, config.scheme_options, geometry), **modifiers}
        base = _made(entry.stands_on, {}, geometry)
    elif load(entry.target).per_layer:
        base = Stacked(_made(config.scheme, config.scheme_options, geometry) for _ in range(geometry.layers))
    else:
        base = _made(config.scheme, config.scheme_options, geometry)
    return Combined(base, modifiers) if modifiers else base


def _made(name: str, options: Mapping[str, Any], geometry: Geometry) -> Scheme:
    cls = load(scheme_entry(name).target)
    scheme: Scheme = cls(geometry, **typed_options(cls.__init__, options, name))
    return scheme


def lay_on(decoder: Decoder, config: DecoderConfig) -> None:
    """Give a loaded decoder the scheme of ``config``, keeping every parameter it has trained.

    ``config`` differs from the decoder's own in scheme and modifiers alone; whatever it adds has no
    parameters.
    """
    scheme = build_scheme(config)
    old = _parts(decoder.scheme)
    for name, part in _parts(scheme).items():
        part.load_state_dict(old[name].state_dict() if name in old else {})
    dtype = decoder.embedding.weight.dtype
    decoder.scheme = scheme.to(dtype)
    decoder.config = config


def _parts(scheme: Scheme) -> dict[str, Scheme]:
    return scheme.parts if isinstance(scheme, Combined) else {"": scheme}
