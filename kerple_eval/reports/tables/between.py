"""Why two protocols give one model two numbers: see :mod:`kerple_eval.stats.between_protocols`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kerple_eval.records.reader import RunReader
from kerple_eval.records.reductions import perplexity
from kerple_eval.reports.numbers import number, signed
from kerple_eval.reports.typeset import Table, TableCell, TableRow, check_format, records_table, typeset
from kerple_eval.reports.words import listing
from kerple_eval.stats.between_protocols import Effect, Kind, ProtocolDifference, between
from kerple_eval.support.specs import whole_number
from kerple_eval.types import UserError

HEAD = ("", "targets", "context", "nats", "perplexity")
COLUMNS = (
    "model", "task", "protocol_from", "length_from", "nll_from", "protocol_to", "length_to", "nll_to",
    "effect", "targets", "context_from", "context_to", "nats",
)  # fmt: skip
#: The sentence names effects that are at least this share of the largest one.
NAMED = 0.02
SAME = 1e-6  # nats: rounding


def parse_lengths(text: str | None) -> tuple[int, ...]:
    """``512`` for both cells, or ``512,2048`` for the first and the second."""
    lengths = [] if text is None else [whole_number(word.strip()) for word in text.split(",")]
    found = tuple(length for length in lengths if length is not None)
    if len(found) != len(lengths) or len(found) > 2:
        raise UserError(f"--length {text}: with --between expected one length or two, as in 512 or 512,2048")
    return found


def make(
    folders: Sequence[str | Path], style: str = "text", *, between: Sequence[str], model: str | None = None,
    length: str | None = None,
) -> str:  # fmt: skip
    """The difference of two protocols' numbers of one model, effect by effect, and in a sentence."""
    check_format(style)
    if isinstance(between, str) or len(between) != 2:
        raise UserError("explain --between takes two protocols: --between PROTOCOL --between PROTOCOL")
    found = _between(folders, (between[0], between[1]), model, length)
    if style == "csv":
        return typeset(records_table(COLUMNS, [r for one in found for r in _records(one)]), style)
    return "\n".join(typeset(_table(one), style) for one in found)


def _between(
    folders: Sequence[str | Path], protocols: tuple[str, str], model: str | None, length: str | None
) -> list[ProtocolDifference]:
    return between(RunReader(folders), protocols, model=model, lengths=parse_lengths(length))


def _names(one: ProtocolDifference) -> tuple[str, str]:
    """The protocols, with their lengths where those differ or the protocols do not."""
    first, second = one.keys
    if first.length == second.length:
        return first.protocol, second.protocol
    return f"{first.protocol} at {first.length}", f"{second.protocol} at {second.length}"


def _table(one: ProtocolDifference) -> Table:
    key, (first, second) = one.keys[0], _names(one)
    at = f" at {key.length}" if key.length == one.keys[1].length else ""
    rows = [_end(first, one.targets[0], one.nlls[0]), *(_row(one, effect) for effect in one.effects)]
    rows.append(_end(second, one.targets[1], one.nlls[1]))
    notes = (
        f"{key.model}: {sentence(one)}",
        "effects are in nats per target and add up to the difference exactly; as factors of perplexity they "
        "multiply",
        "context: tokens of the text before these targets, on average, in the first and in the second",
        *(
            f"{name} reports the {reduction}"
            for name, reduction in zip((first, second), one.reductions, strict=True)
            if reduction is not None
        ),
    )
    return Table(f"{key.task}{at}: {key.model}, from {first} to {second}", HEAD, tuple(rows), notes)


def _end(name: str, targets: int, nll: float) -> TableRow:
    ppl = perplexity(nll)
    cells = (TableCell(f"{targets:,}", targets), TableCell(""), TableCell(f"{nll:.4f}", nll))
    return TableRow((TableCell(name), *cells, TableCell(number(ppl), ppl)), rule_below=True)


def _row(one: ProtocolDifference, effect: Effect) -> TableRow:
    factor, (first, second) = perplexity(effect.nats), _names(one)
    return TableRow(
        (
            TableCell(effect.kind.replace("the first", first).replace("the second", second)),
            TableCell(f"{effect.targets:,}", effect.targets),
            TableCell(_context(effect)),
            TableCell(signed(effect.nats), effect.nats),
            TableCell("" if factor is None else f"x {factor:.4f}", factor),
        ),
        rule_below=effect is one.effects[-1],
    )


def _words(one: ProtocolDifference, effect: Effect) -> str:
    first, second = _names(one)
    if not one.common and effect.kind == "targets of the first alone":
        return f"other targets: {first} and {second} have none in common"
    words: dict[Kind, str] = {
        "averaging of the first": f"the mean over targets in place of {first}'s {one.reductions[0]}",
        "targets of the first alone": f"targets that {first} alone scores",
        "the same inputs": "rounding, on the same targets with the same inputs",
        "other first tokens": "other first tokens before the same targets with the same context",
        "more context": f"more context for the same targets in {second}",
        "less context": f"less context for the same targets in {second}",
        "targets of the second alone": f"targets that {second} alone scores",
        "averaging of the second": f"{second}'s {one.reductions[1]}, in place of the mean over targets",
    }
    return words[effect.kind]


def sentence(one: ProtocolDifference) -> str:
    """``5.470 and 8.710 are the same model because ...``: the effects that matter, the largest first."""
    first, second = (number(perplexity(nll)) or "a perplexity too large to show" for nll in one.nlls)
    largest = max((abs(effect.nats) for effect in one.effects), default=0.0)
    if largest < SAME:
        return f"{first} and {second} are the same number: the same targets with the same inputs"
    ranked = sorted(one.effects, key=lambda effect: -abs(effect.nats))
    reasons = [
        f"{_words(one, effect)} ({effect.targets:,} targets{_context(effect, ' tokens before them')}: "
        f"{signed(effect.nats)} nats)"
        for effect in ranked
        if abs(effect.nats) >= NAMED * largest
    ]
    return f"{first} and {second} are the same model because of {listing(reasons)}"


def _context(effect: Effect, unit: str = "") -> str:
    """``340 -> 1,020``, or the one there is; with a unit as the part of a sentence, empty where unknown."""
    shown = " -> ".join(f"{mean:,.0f}" for mean in effect.contexts if mean is not None)
    return f", {shown}{unit}" if shown and unit else shown


def _records(one: ProtocolDifference) -> list[dict[str, Any]]:
    first, second = one.keys
    whole = {
        "model": first.model, "task": first.task, "protocol_from": first.protocol,
        "length_from": first.length, "nll_from": one.nlls[0], "protocol_to": second.protocol,
        "length_to": second.length, "nll_to": one.nlls[1],
    }  # fmt: skip
    return [
        whole
        | {
            "effect": effect.kind, "targets": effect.targets, "context_from": effect.contexts[0],
            "context_to": effect.contexts[1], "nats": effect.nats,
        }
        for effect in one.effects
    ]  # fmt: skip
