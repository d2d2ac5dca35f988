"""Every catalogue of the project and how a name in it is resolved. Imports no torch.

A catalogue line says where an entry lives (``module:attribute``) and what a listing needs, so that
``kerple-eval list`` imports none of the entries. Names come as ``name`` or ``name:key=value,...``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from kerple_eval.types import Spec, UserError


@dataclass(frozen=True, slots=True)
class SchemeEntry:
    """One positional scheme; ``parameters`` counts in H (heads), R (buckets), P (positions), W (width) and K
    (names in a formula).

    ``text_option`` names the option that takes all the text after ``name:`` (see ``parse_scheme``).
    """

    name: str
    target: str
    year: int
    paper: str
    kind: str
    parameters: str
    prefix_invariant: bool
    text_option: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One protocol, checkpoint format or report."""

    name: str
    target: str
    summary: str


SCHEMES = (
    SchemeEntry(
        "kerple-log", "kerple_eval.schemes.kerple_log:KerpleLog", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-power", "kerple_eval.schemes.kerple_power:KerplePower", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-3-para-log", "kerple_eval.schemes.kerple_3_para_log:Kerple3ParaLog", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "3 H", True,
    ),
    SchemeEntry(
        "kerple-bias-wht", "kerple_eval.schemes.kerple_bias_wht:KerpleBiasWeight", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel and weight", "4 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-2-para-wht", "kerple_eval.schemes.kerple_gauss_2_para_wht:KerpleGauss2ParaWeight", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance weight", "2 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-2-para-bias", "kerple_eval.schemes.kerple_gauss_2_para_bias:KerpleGauss2ParaBias", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "2 H", True,
    ),
    SchemeEntry(
        "kerple-gauss-3-para-bias", "kerple_eval.schemes.kerple_gauss_3_para_bias:KerpleGauss3ParaBias", 2022,
        "Chi et al., KERPLE, arXiv 2205.09921", "distance kernel", "3 H", True,
    ),
    SchemeEntry(
        "kernel", "kerple_eval.schemes.kernel:FormulaKernel", 2022,
        "after Chi et al., KERPLE, arXiv 2205.09921", "distance kernel of one's own, kernel: -r1*D**r2",
        "K H", True, text_option="formula",
    ),
    SchemeEntry(
        "alibi", "kerple_eval.schemes.alibi:Alibi", 2021,
        "Press et al., Train Short, Test Long, arXiv 2108.12409", "distance kernel", "0", True,
    ),
    SchemeEntry(
        "t5", "kerple_eval.schemes.t5:T5", 2019,
        "Raffel et al., T5, arXiv 1910.10683", "distance kernel", "R H", True,
    ),
    SchemeEntry(
        "rope", "kerple_eval.schemes.rope:Rope", 2021,
        "Su et al., RoFormer, arXiv 2104.09864", "rotation", "0", True,
    ),
    SchemeEntry(
        "sinusoidal", "kerple_eval.schemes.sinusoidal:Sinusoidal", 2017,
        "Vaswani et al., Attention Is All You Need, arXiv 1706.03762", "absolute", "0", True,
    ),
    SchemeEntry(
        "learned", "kerple_eval.schemes.learned:Learned", 2017,
        "Gehring et al., arXiv 1705.03122", "absolute", "P W", True,
    ),
    SchemeEntry(
        "nope", "kerple_eval.schemes.nope:Nope", 2022,
        "Haviv et al., arXiv 2203.16634; Kazemnejad et al., arXiv 2305.19466", "none", "0", True,
    ),
)  # fmt: skip

PROTOCOLS = (
    Entry(
        "full-context", "kerple_eval.protocols.full_context:FullContext",
        "non-overlapping windows; every target once, contexts 1..L (KERPLE)",
    ),
    Entry(
        "sliding-window", "kerple_eval.protocols.sliding_window:SlidingWindow",
        "stride=S: every target once, contexts L-S+1..L after the first window (ALiBi, YaRN)",
    ),
    Entry(
        "last", "kerple_eval.protocols.last:Last",
        "k=K: the last K targets of each whole non-overlapping window (DAPE, FIRE)",
    ),
    Entry(
        "aligned", "kerple_eval.protocols.aligned:Aligned",
        "k=K[,every=E]: the same targets at every length, contexts L-K+1..L",
    ),
    Entry(
        "prefix", "kerple_eval.protocols.prefix:Prefix",
        "the first L tokens from the same starts; one pass serves every length where possible",
    ),
    Entry(
        "kerple-release", "kerple_eval.protocols.kerple_release:KerpleRelease",
        "[split=test,seed=1234,samples=320]: the KERPLE release's own draw, faults and all; sound: aligned",
    ),
    Entry(
        "lm-eval-rolling", "kerple_eval.protocols.lm_eval_rolling:LmEvalRolling",
        "[prefix_token_id=ID]: lm-evaluation-harness, disjoint windows after a prefix token; "
        "sound: sliding-window",
    ),
    Entry(
        "yarn", "kerple_eval.protocols.yarn:Yarn",
        "[stride=256,truncate=false]: YaRN's script, BOS in every window, unweighted mean over windows; "
        "sound: sliding-window",
    ),
    Entry(
        "hf-guide", "kerple_eval.protocols.hf_guide:HfGuide",
        "[stride=512]: the Hugging Face perplexity guide, one target a window miscounted; "
        "sound: sliding-window",
    ),
    Entry(
        "dape", "kerple_eval.protocols.dape:Dape",
        "[k=256,batch=1]: DAPE, the last min(k, L) targets of whole windows, mean over batches; "
        "sound: aligned",
    ),
)  # fmt: skip

FORMATS = (
    Entry(
        "native", "kerple_eval.checkpoints.native:NativeCheckpoint",
        "native:DIR, what `kerple-eval train` writes: config.json, model.safetensors",
    ),
    Entry(
        "neox", "kerple_eval.checkpoints.neox:NeoxCheckpoint",
        "neox:DIR, GPT-NeoX and the KERPLE release: latest, global_stepN/layer_XX-model_YY-model_states.pt",
    ),
    Entry(
        "zoo", "kerple_eval.checkpoints.zoo:ZooCheckpoint",
        "zoo:NAME, the checkpoints shipped inside this package",
    ),
    Entry(
        "hf", "kerple_eval.checkpoints.hf:HfCheckpoint",
        "hf:PATH_OR_ID[@revision], causal models of transformers: safetensors, GGUF or pickled",
    ),
)  # fmt: skip

REPORTS = (
    Entry("table", "kerple_eval.reports.table:render", "perplexity against length, models down"),
    Entry(
        "explain",
        "kerple_eval.reports.explain:render",
        "why loss changed with length: dilution, context gain",
    ),
    Entry("curve", "kerple_eval.reports.curve:draw", "perplexity against length, log-log"),
    Entry("position", "kerple_eval.reports.position:draw", "mean loss against context"),
)


@lru_cache(maxsize=1)
def schemes() -> dict[str, SchemeEntry]:
    """Built-in schemes and those of other packages (entry-point group ``kerple_eval.schemes``).

    An entry point's name is the scheme's, its value a :class:`SchemeEntry`.
    """
    found = {entry.name: entry for entry in SCHEMES}
    for point in entry_points(group="kerple_eval.schemes"):
        entry = point.load()
        if not isinstance(entry, SchemeEntry):
            raise UserError(
                f"entry point {point.name!r} ({point.value}) of group kerple_eval.schemes "
                f"must be a kerple_eval.catalogue.SchemeEntry, got {type(entry).__name__}"
            )
        found.setdefault(entry.name, entry)
    return found


def by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """``unknown scheme 'alibbi': did you mean 'alibi'? Available: ...``"""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f" did you mean '{close[0]}'?" if close else ""
    return UserError(f"unknown {what} {name!r}:{hint} available: {', '.join(names) or 'none'}")


def parse_spec(text: str) -> Spec:
    """``name:key=value,key=value`` -> :class:`Spec`."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"no name in {text!r}; expected NAME or NAME:key=value")
    if colon and not rest.strip():
        raise UserError(f"nothing after the colon in {text!r}; expected NAME:key=value")
    return Spec(name, parse_options(rest, text) if colon else ())


def parse_scheme(text: str) -> Spec:
    """As :func:`parse_spec`, but a scheme with a ``text_option`` takes all after the colon as that.

    ``kernel: -r1*log(1+r2*D)`` is ``kernel`` with ``formula=-r1*log(1+r2*D)``, commas and equals signs
    included; ``kernel:formula=...`` says the same, so that ``str`` of the result reads back.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    option = scheme_entry(name).text_option if name else ""
    if not (option and colon):
        return parse_spec(text)
    if not rest:
        raise UserError(f"nothing after the colon in {text!r}; expected {name}: {option.upper()}")
    key, equals, value = (part.strip() for part in rest.partition("="))
    return Spec(name, ((option, value if equals and key == option else rest),))


def parse_options(text: str, where: str) -> tuple[tuple[str, str], ...]:
    """``key=value,key=value`` -> pairs; a repeated or empty key is refused."""
    pairs: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UserError(f"expected key=value, got {part!r} in {where!r}")
        if key in pairs:
            raise UserError(f"option {key!r} given twice in {where!r}")
        pairs[key] = value
    return tuple(pairs.items())


def load(target: str) -> Any:
    """Import ``module:attribute``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def typed_options(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Convert ``options`` by the annotations of ``function``'s keyword-only parameters.

    Strings (from a command line) are converted; values of the right type (from a config file)
    pass. int, float, bool and str are understood. Unknown names and missing ones are refused. The
    result is in the order of the parameters, whatever the order they were written in.
    """
    wanted = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    converted: dict[str, Any] = {}
    for key, value in options.items():
        if key not in wanted:
            raise unknown(f"option of {what}", key, wanted)
        annotation = wanted[key].annotation  # a string only where the module postpones annotations
        kind = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        converted[key] = _convert(value, kind, f"{what}: {key}={value}")
    for name, parameter in wanted.items():
        if parameter.default is inspect.Parameter.empty and name not in converted:
            example = "..." if parameter.annotation in ("str", str) else "256"
            raise UserError(f"{what} needs {name}=..., as in {what}:{name}={example}")
    return {name: converted[name] for name in wanted if name in converted}


def _convert(value: Any, annotation: str, where: str) -> Any:
    kinds = [kind.strip() for kind in annotation.split("|")]
    for kind in kinds:
        if kind == "int" and not isinstance(value, bool):
            if isinstance(value, int):
                return value
            if isinstance(value, str) and value.lstrip("+-").isdecimal():
                return int(value)
        if kind == "float" and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        if kind == "bool":
            if isinstance(value, bool):
                return value
            if value in ("true", "false"):
                return value == "true"
        if kind == "str" and isinstance(value, str):
            return value
    raise UserError(f"{where} is not {'an' if kinds[0] == 'int' else 'a'} {kinds[0]}")


def scheme_entry(name: str) -> SchemeEntry:
    known = schemes()
    if name not in known:
        raise unknown("scheme", name, known)
    return known[name]


def entry(what: str, name: str, entries: Iterable[Entry]) -> Entry:
    known = by_name(entries)
    if name not in known:
        raise unknown(what, name, known)
    return known[name]
