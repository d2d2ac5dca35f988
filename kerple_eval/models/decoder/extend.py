"""What MODEL may lay on a trained decoder: ``zoo:rope,extend=yarn,factor=8``, ``zoo:kerple-log,window=512``.

``extend=NAME`` takes the place of the scheme where that has no parameters (RoPE by one of its extensions
``rope-NAME``, whose base and turned fraction stay the trained ones) or is laid on it (the
modifiers ``window``, ``self-extend``, ...); the options after it are NAME's. A modifier may also be
named by itself. No weight is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.network import scheme_of
from kerple_eval.schemes.catalogue import SCHEMES
from kerple_eval.schemes.spelling import parse_modifiers
from kerple_eval.support.registry import unknown
from kerple_eval.support.specs import typed_options
from kerple_eval.types import UserError

#: The scheme without parameters whose place others may take: those whose names begin with its own.
REPLACEABLE = "rope"
#: Options that a trained model settles.
TRAINED = ("base", "fraction")


def extended(
    config: DecoderConfig, options: Mapping[str, str], what: str = "native", own: tuple[str, ...] = ()
) -> DecoderConfig:
    """``config`` with the scheme that ``options`` ask for; all of them are used up or refused.

    ``what`` format it is, and which options that has of its own, are for the refusal of a wrong one.
    """
    rest = dict(options)
    laid = {name: dict(keys) for name, keys in config.modifiers.items()}
    name = rest.pop("extend", None)
    choices = [*own, "extend"]
    if name is not None:
        target = _target(config.scheme, name)
        choices = _keywords(target)
        mine = {key: rest.pop(key) for key in list(rest) if key in choices}
        if SCHEMES[target].stands_on:
            laid[target] = mine
        else:
            config = _replaced(config, name, target, mine)
    try:
        named = parse_modifiers(rest.items())
    except UserError:
        whose = f"a {what} checkpoint" if name is None else name
        raise unknown(f"option of {whose}", next(iter(rest)), [*choices, *_modifiers()]) from None
    laid |= {modifier: {k: v for k, v in pairs if v} for modifier, pairs in named}
    for modifier in laid.keys() - config.modifiers.keys() - set(_modifiers()):
        raise UserError(f"{modifier} has parameters: it is trained (kerple-eval train --scheme), not laid on")
    config = replace(config, modifiers={name: _typed(name, keys) for name, keys in laid.items()})
    scheme_of(config)  # refuses what does not fit
    return config


def _target(scheme: str, name: str) -> str:
    """The scheme that ``extend=name`` means for a model trained with ``scheme``."""
    fits = _extensions(scheme)
    for target in (f"{scheme}-{name}", name):
        if target in fits:
            return target
    shown = [fit.removeprefix(f"{scheme}-") for fit in fits]
    if name in SCHEMES:
        raise UserError(
            f"extend={name} does not fit a model trained with {scheme}; these do: {', '.join(shown)}"
        )
    raise unknown(f"extension of {scheme}", name, shown)


def _replaced(config: DecoderConfig, name: str, target: str, mine: dict[str, str]) -> DecoderConfig:
    """``target`` in the scheme's place, with the options that were trained."""
    kept = {key: value for key, value in config.scheme_options.items() if key in _keywords(target)}
    clash = [key for key in mine if key in TRAINED]
    if clash:
        raise UserError(f"extend={name}: {clash[0]} is the trained model's own; leave it out")
    if SCHEMES.load(target).needs_factor and "factor" not in mine:
        raise UserError(f"extend={name} needs factor=F, as in extend={name},factor=8")
    return replace(config, scheme=target, scheme_options=_typed(target, kept | mine))


def _typed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return typed_options(SCHEMES.load(name).__init__, options, name)


def _keywords(name: str) -> list[str]:
    """Options of a scheme."""
    return list(SCHEMES.load(name).__init__.__kwdefaults__ or ())


def _modifiers() -> list[str]:
    """Those without parameters: what is to be trained cannot be laid on."""
    return [name for name, entry in SCHEMES.items() if entry.stands_on and entry.parameters == "0"]


def _extensions(scheme: str) -> list[str]:
    """What ``extend=`` may name for a model trained with ``scheme``."""
    taking = [name for name in SCHEMES if scheme == REPLACEABLE and name.startswith(f"{REPLACEABLE}-")]
    return [*taking, *_modifiers()]
