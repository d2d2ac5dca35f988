"""Builds a positional scheme from its name, options and modifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.schemes.composite import Combined, Mixed, Stacked
from kerple_eval.schemes.layers import parse_layers
from kerple_eval.schemes.spelling import MIX
from kerple_eval.support.specs import typed_options
from kerple_eval.types import Geometry, UserError

PER_LAYER = "per_layer"


def build_scheme(
    name: str,
    options: Mapping[str, Any],
    modifiers: Mapping[str, Mapping[str, Any]],
    geometry: Geometry,
) -> Scheme:
    """The scheme ``name`` for a model of ``geometry``, with ``modifiers`` (name -> options) applied in order.

    A ``per_layer`` scheme is built once a layer, and so is one with the option ``per_layer=true``
    (:func:`may_be_per_layer`): each layer then has its own parameters. Of a mix (``layers``) each scheme that
    differs is built once, for the layers that have it.

    Raises:
        UserError: a wrong name, option or combination.
    """
    options = dict(options)
    per_layer = _per_layer(name, options.pop(PER_LAYER)) if PER_LAYER in options else False
    parts = {modifier: _modifier(modifier, given, geometry) for modifier, given in modifiers.items()}
    for modifier in parts:
        if not SCHEMES.entry(modifier).stands_on:
            raise UserError(f"{modifier} is no modifier: it cannot be combined with {name}")
    if name == MIX:
        base: Scheme = _mixed(options, geometry)
    elif stands_on := SCHEMES.entry(name).stands_on:  # a modifier alone
        parts = {name: _modifier(name, options, geometry), **parts}
        base = _made(stands_on, {}, geometry)
    elif SCHEMES.load(name).per_layer or per_layer:
        base = Stacked(_made(name, options, geometry) for _ in range(geometry.layers))
    else:
        base = _made(name, options, geometry)
    return Combined(base, parts) if parts else base


def _modifier(name: str, options: Mapping[str, Any], geometry: Geometry) -> Scheme:
    if not SCHEMES.load(name).per_layer:
        return _made(name, options, geometry)
    return Stacked(_made(name, options, geometry) for _ in range(geometry.layers))


def _mixed(options: Mapping[str, Any], geometry: Geometry) -> Mixed:
    specs = parse_layers(dict(options), geometry.layers)
    counts = Counter(specs)
    parts = {
        spec: build_scheme(
            spec.name, dict(spec.options), spec.modifier_options, replace(geometry, layers=count)
        )
        for spec, count in counts.items()
    }
    for spec, part in parts.items():
        if part.implements("embed"):
            raise UserError(
                f"{MIX}: {spec.name} changes the embeddings, which come before all layers; it can be no part"
            )
    order = list(parts)
    return Mixed(geometry, list(parts.values()), [order.index(spec) for spec in specs])


def may_be_per_layer(name: str) -> bool:
    """Whether ``per_layer=true`` means something: the scheme has parameters that the layers share.

    Not where it changes the embeddings, which come before all layers.
    """
    entry, cls = SCHEMES.entry(name), SCHEMES.load(name)
    shared = entry.parameters != "0" and not (entry.stands_on or entry.text_option or cls.per_layer)
    return shared and cls.embed is Scheme.embed


def _per_layer(name: str, value: Any) -> bool:
    if not may_be_per_layer(name):
        able = ", ".join(known for known in SCHEMES if may_be_per_layer(known))
        raise UserError(f"{name}: it takes no {PER_LAYER}; these do: {able}")
    if value not in (True, False, "true", "false"):
        raise UserError(f"{name}: {PER_LAYER}={value}: expected true or false")
    return value in (True, "true")


def _made(name: str, options: Mapping[str, Any], geometry: Geometry) -> Scheme:
    cls = SCHEMES.load(name)
    scheme: Scheme = cls(geometry, **typed_options(cls.__init__, options, name))
    return scheme
