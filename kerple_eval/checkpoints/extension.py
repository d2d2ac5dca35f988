"""What MODEL may lay on a trained decoder: ``zoo:rope,extend=yarn,factor=8``, ``zoo:kerple-log,window=512``.

``extend=NAME`` takes the place of the scheme where that has no parameters (RoPE by one of its extensions
``rope-NAME``, whose base and turned fraction stay the trained ones) or is laid on it (the
modifiers ``window``, ``self-extend``, ...); the options after it are NAME's. A modifier may also be
named by itself. No weight is touched.
"""

from __future__ import annotations

from dataclasses import replace

from kerple_eval.catalogue import load, parse_modifiers, schemes, typed_options, unknown
from kerple_eval.model.assembly import build_scheme
from kerple_eval.model.config import DecoderConfig
from kerple_eval.types import UserError

#: Trained scheme -> prefix of the schemes that may take its place.
REPLACEABLE = {"rope": "rope-"}


def extended(
    config: DecoderConfig, options: dict[str, str], what: str = "native", own: tuple[str, ...] = ()
) -> DecoderConfig:
    """``config`` with the scheme that ``options`` ask for; all of them are used up or refused.

    ``what`` format it is, and which options that has of its own, are for the refusal of a wrong one.
    """
    options = dict(options)
    name = options.pop("extend", None)
    first = next(iter(options), None)
    if name is None and first is not None and not (first in schemes() and schemes()[first].stands_on):
        raise unknown(f"option of a {what} checkpoint", first, (*own, "extend", *_modifiers()))
    if name is not None:
        config = _replaced(config, name, options) or _laid(config, {name: ""}, options)
    elif options:
        config = _laid(config, {}, options)
    build_scheme(config)  # refuses what does not fit
    return config


def _replaced(config: DecoderConfig, name: str, options: dict[str, str]) -> DecoderConfig | None:
    known = schemes()
    target = next((n for n in (f"{REPLACEABLE.get(config.scheme, '?')}{name}", name) if n in known), None)
    if target is None:
        raise unknown(f"extension of {config.scheme}", name, extensions(config.scheme))
    if known[target].stands_on:
        return None
    if target not in extensions(config.scheme):
        fits = ", ".join(extensions(config.scheme))
        raise UserError(f"extend={name} does not fit a model trained with {config.scheme}; these do: {fits}")
    wanted = _keywords(target)
    own = {key: options.pop(key) for key in list(options) if key in wanted}
    base = {key: value for key, value in config.scheme_options.items() if key in wanted}
    clash = [key for key in own if key in ("base", "fraction")]
    if clash:
        raise UserError(f"extend={name}: {clash[0]} is the trained model's own; leave it out")
    cls = load(known[target].target)
    if cls.needs_factor and "factor" not in own:
        raise UserError(f"extend={name} needs factor=F, as in extend={name},factor=8")
    typed = typed_options(cls.__init__, {**base, **own}, target)
    config = replace(config, scheme=target, scheme_options=typed)
    return _laid(config, {}, options) if options else config


def _laid(config: DecoderConfig, first: dict[str, str], options: dict[str, str]) -> DecoderConfig:
    """Modifiers: ``first`` (named by extend=, its value among the options), then those named themselves."""
    laid = {name: dict(keys) for name, keys in config.modifiers.items()}
    for name in first:
        wanted = _keywords(name)
        laid[name] = {key: options.pop(key) for key in list(options) if key in wanted}
    try:
        named = parse_modifiers(options.items())
    except UserError:
        key = next(iter(options))
        whose = next(iter(first), None)
        choices = dict.fromkeys([*(_keywords(whose) if whose else ()), *_modifiers()])
        raise unknown(f"option of {whose}", key, choices) from None
    laid |= {name: {k: v for k, v in pairs if v} for name, pairs in named}
    for name in laid.keys() - config.modifiers.keys() - set(_modifiers()):
        raise UserError(f"{name} has parameters: it is trained (kerple-eval train --scheme), not laid on")
    known = schemes()
    typed = {n: typed_options(load(known[n].target).__init__, keys, n) for n, keys in laid.items()}
    return replace(config, modifiers=typed)


def _keywords(name: str) -> dict[str, None]:
    code = load(schemes()[name].target).__init__
    return dict.fromkeys(code.__kwdefaults__ or {})


def _modifiers() -> list[str]:
    """Those without parameters: what is to be trained cannot be laid on."""
    return [name for name, entry in schemes().items() if entry.stands_on and entry.parameters == "0"]


def extensions(scheme: str) -> list[str]:
    """What ``extend=`` may name for a model trained with ``scheme``."""
    prefix = REPLACEABLE.get(scheme)
    found = [n for n in schemes() if prefix and n.startswith(prefix)]
    return [*(n.removeprefix(prefix or "") for n in found), *found, *_modifiers()]
