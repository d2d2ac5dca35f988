"""Builds a positional scheme from its name, options and modifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.schemes.composite import Combined, Stacked
from kerple_eval.support.specs import typed_options
from kerple_eval.types import Geometry, UserError


def build_scheme(
    name: str,
    options: Mapping[str, Any],
    modifiers: Mapping[str, Mapping[str, Any]],
    geometry: Geometry,
) -> Scheme:
    """The scheme ``name`` for a model of ``geometry``, with ``modifiers`` (name -> options) applied in order.

    A ``per_layer`` scheme is built once a layer, and so is any with the option ``per_layer=true``.

    Raises:
        UserError: a wrong name, option or combination.
    """
    entry = SCHEMES.entry(name)
    options = dict(options)
    per_layer = options.pop("per_layer", "false")
    if per_layer not in (True, False, "true", "false"):
        raise UserError(f"{name}: per_layer={per_layer}: expected true or false")
    parts = {modifier: _made(modifier, given, geometry) for modifier, given in modifiers.items()}
    for modifier in parts:
        if not SCHEMES.entry(modifier).stands_on:
            raise UserError(f"{modifier} is no modifier: it cannot be combined with {name}")
    if entry.stands_on:  # a modifier alone
        parts = {name: _made(name, options, geometry), **parts}
        base = _made(entry.stands_on, {}, geometry)
    elif SCHEMES.load(name).per_layer or per_layer in (True, "true"):
        base = Stacked(_made(name, options, geometry) for _ in range(geometry.layers))
    else:
        base = _made(name, options, geometry)
    return Combined(base, parts) if parts else base


def _made(name: str, options: Mapping[str, Any], geometry: Geometry) -> Scheme:
    cls = SCHEMES.load(name)
    scheme: Scheme = cls(geometry, **typed_options(cls.__init__, options, name))
    return scheme
