"""Sizes that a configuration states, bounded by what its weight files hold, before anything is built.

A configuration of 2^31 layers would be built for hours, one of 2^40 heads would take all memory; neither
can be the one of a file with two hundred tensors. The bounds are wide on purpose: whether every size is
right is told by the shapes of the model that is built from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: Keys that count modules, each of which stores at least one tensor (or shares one).
_COUNTS = re.compile(r"(layers?|blocks?|block_count|num_stages|n_layer|loops?)$")
_EXPERTS = re.compile(r"expert")
_MOST_EXPERTS = 1 << 16  # stacked in one tensor, or stated by a default where a model has none
#: Keys that count positions, tokens or hashes of n-grams: no tensor need be as long.
_POSITIONS = re.compile(
    r"(position|context|window|chunk|length|seq|_len$|distance|token|_id$|max_|time|seed|ngram|floor)"
)
#: Ids, and bases of rotary frequencies.
_NO_SIZES = re.compile(r"token|theta|(rope|rotary)\w*_base|base_freq|freq_base")
_FRACTIONS = re.compile(r"(rotary_pct|partial_rotary_factor|rotary_percent|rotary_emb_fraction)$")
_LEAST = 512  # layers: built in a second, whatever the file holds
_MOST_POSITIONS = 1 << 40
#: Types that make a table of so many positions in memory when they are loaded.
_TABLES = ("gptj", "codegen", "ctrl", "xglm")
_LONGEST_TABLE = 1 << 24


def check_sizes(stated: Mapping[str, Any], shapes: list[tuple[int, ...]], where: str) -> None:
    """Refuse a number in ``stated`` (nested) that no checkpoint with tensors of these ``shapes`` can have."""
    elements = sum(math.prod(shape) for shape in shapes)
    largest = max((extent for shape in shapes for extent in shape), default=1)
    positions = _LONGEST_TABLE if stated.get("model_type") in _TABLES else _MOST_POSITIONS
    bounds = (  # the first pattern that a key matches, the most it may be, and why
        (_COUNTS, max(_LEAST, len(shapes)), f"but the weight files hold {len(shapes)} tensors"),
        (_EXPERTS, max(_MOST_EXPERTS, largest), "no model has so many"),
        (_NO_SIZES, math.inf, ""),
        (_POSITIONS, positions, f"at most {positions:,} are supported"),
        (re.compile(""), max(elements, 1 << 20), f"but the weight files hold {elements:,} numbers"),
    )
    for key, value in _numbers(stated):
        if _FRACTIONS.search(key):
            if not 0 <= value <= 1:
                raise UserError(f"{where}: {key} is {quoted(value)}; it must be between 0 and 1")
        elif isinstance(value, int):
            _, most, why = next(bound for bound in bounds if bound[0].search(key))
            if value > most:
                raise UserError(f"{where}: {key} is {quoted(value)}; {why}")


def _numbers(stated: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Key and value of every number, those in lists and in nested objects too."""
    todo: list[tuple[str, Any]] = list(stated.items())
    while todo:
        key, value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.items()
        elif isinstance(value, list):
            todo += [(key, item) for item in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
