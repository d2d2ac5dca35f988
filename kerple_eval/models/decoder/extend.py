"""The options in MODEL that change the positional scheme of a trained decoder, without changing a weight.

    zoo:rope,extend=yarn,factor=8        RoPE replaced by its extension ``rope-yarn``
    zoo:kerple-log,window=512            the modifier ``window`` applied to the trained scheme
    zoo:rope,extend=self-extend,group=4  a modifier may also be named by ``extend=``

``extend=NAME`` replaces a scheme that has no parameters by one that extends it (RoPE, by one of the schemes
``rope-NAME`` or ``theta``; the trained base and rotated fraction stay, ``theta`` being another base) or
applies the modifier NAME to any scheme. Options that follow it belong to NAME. A modifier may also be given
as ``NAME=VALUE``, where VALUE is its main option.
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
from kerple_eval.support.specs import option_pairs, typed_options
from kerple_eval.types import UserError

#: Options of modifiers up to which distances stay as they are.
_KEEPS = {
    "self-extend": ("window",), "rerope": ("window",), "leaky-rerope": ("window",), "dca": ("chunk",),
    "streaming-sink": ("recent",), "lm-infinite": ("recent", "limit"), "string": ("shift",),
}  # fmt: skip

#: Options that keep the value the model was trained with.
TRAINED = ("base", "fraction")


def extend_options(text: str) -> dict[str, str]:
    """``--extend`` as options of MODEL: ``yarn,factor=4,pose=2048``, NAME first or NAME=VALUE throughout."""
    first, *rest = (part.strip() for part in text.split(","))
    named = [f"extend={first}"] if "=" not in first else [first]
    bare = [f"{part}=" if part in SCHEMES else part for part in rest]
    return dict(option_pairs([*named, *bare], text, may_be_empty=SCHEMES))


def extended(
    config: DecoderConfig,
    options: Mapping[str, str],
    format_name: str = "native",
    format_options: tuple[str, ...] = (),
    *,
    training: bool = False,
) -> DecoderConfig:
    """``config`` with its scheme changed as ``options`` ask; every option is used or refused.

    ``format_name`` and ``format_options`` are the checkpoint format and the options it reads itself; both
    appear only in the message about an unknown option. In ``training`` modifiers may be added that have
    parameters, or that act in training alone.

    Raises:
        UserError: an unknown option, or one that does not fit the trained scheme.
    """
    remaining = dict(options)
    modifiers = {name: dict(given) for name, given in config.modifiers.items()}
    name = remaining.pop("extend", None)
    known = [*format_options, "extend"]
    if name is not None:
        target = _target(config.scheme, name, training)
        known = _option_names(target)
        target_options = {key: remaining.pop(key) for key in list(remaining) if key in known}
        if SCHEMES[target].stands_on:
            modifiers[target] = target_options
        else:
            config = _replaced(config, name, target, target_options)
    try:
        parsed = parse_modifiers(remaining.items())
    except UserError:
        owner = f"a {format_name} checkpoint" if name is None else name
        raise unknown(f"option of {owner}", next(iter(remaining)), [*known, *_modifiers(training)]) from None
    modifiers |= {modifier: {k: v for k, v in pairs if v} for modifier, pairs in parsed}
    for modifier in sorted(modifiers.keys() - config.modifiers.keys() - set(_modifiers(training))):
        why = "has parameters" if SCHEMES[modifier].parameters != "0" else "acts in training alone"
        raise UserError(
            f"{modifier} {why}: it is trained (kerple-eval train --scheme, or --from and --extend), "
            "not applied to a trained model"
        )
    typed = {name: _typed(name, given) for name, given in modifiers.items()}
    for trained, given in config.modifiers.items():
        if SCHEMES[trained].parameters != "0" and typed[trained] != _typed(trained, dict(given)):
            raise UserError(
                f"{trained} has parameters that were trained with its options: they stay as they are"
            )
    config = replace(config, modifiers=typed)
    if not training:
        _refuse_untrained_distances(config)
    scheme_of(config)  # refuses what does not fit
    return config


def _refuse_untrained_distances(config: DecoderConfig) -> None:
    """A method that keeps distances known to the model is not given ones that it never saw in training."""
    for name, given in config.modifiers.items():
        for option in _KEEPS.get(name, ()):
            value = given.get(option, 0)
            # the farthest key of the others is one less away; a full cache has its sinks before recent keys
            sinks = given.get("sinks", 4) + 1 if value and name == "streaming-sink" else 0
            if value + sinks > config.train_length:
                beside = f" beside {sinks - 1} sinks" if sinks else ""
                raise UserError(
                    f"{name}: {option}={value}{beside} contradicts the trained length, "
                    f"{config.train_length} tokens: no distance so large was trained"
                )
    original = config.scheme_options.get("original", 0)
    if original > config.train_length:
        raise UserError(
            f"{config.scheme}: original={original} contradicts the trained length, {config.train_length} "
            "tokens: it is the length before any extension"
        )


def _target(scheme: str, name: str, training: bool) -> str:
    """The scheme that ``extend=name`` means for a model trained with ``scheme``."""
    fitting = _extensions(scheme, training)
    for target in (f"{scheme}-{name}", name):
        if target in fitting:
            return target
    shown = [fit.removeprefix(f"{scheme}-") for fit in fitting]
    if name in SCHEMES:
        raise UserError(
            f"extend={name} does not fit a model trained with {scheme}; these do: {', '.join(shown)}"
        )
    raise unknown(f"extension of {scheme}", name, shown)


def _replaced(config: DecoderConfig, name: str, target: str, given: dict[str, str]) -> DecoderConfig:
    """``config`` with the scheme ``target`` and its options ``given``, trained options kept."""
    kept = {key: value for key, value in config.scheme_options.items() if key in _option_names(target)}
    trained = [key for key in given if key in TRAINED]
    if trained:
        raise UserError(
            f"extend={name}: {trained[0]} keeps the value the model was trained with; leave it out"
        )
    if SCHEMES.load(target).needs_factor and "factor" not in given:
        raise UserError(f"extend={name} needs factor=F, as in extend={name},factor=8")
    return replace(config, scheme=target, scheme_options=_typed(target, kept | given))


def _typed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return typed_options(SCHEMES.load(name).__init__, options, name)


def _option_names(scheme: str) -> list[str]:
    return list(SCHEMES.load(scheme).__init__.__kwdefaults__ or ())


def _modifiers(training: bool) -> list[str]:
    """Modifiers that can be applied: to a trained model only those that have no parameters and act there."""
    every = [name for name, entry in SCHEMES.items() if entry.stands_on]
    able = [name for name in every if SCHEMES[name].parameters == "0" and SCHEMES[name].use != "training"]
    return every if training else able


def _extensions(scheme: str, training: bool) -> list[str]:
    """What ``extend=`` may name for a model trained with ``scheme``."""
    replacing = [
        name
        for name, entry in SCHEMES.items()
        if entry.extends == scheme and (training or entry.use == "post-hoc")
    ]
    return [*replacing, *_modifiers(training)]
