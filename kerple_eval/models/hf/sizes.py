"""Sizes that a configuration states, bounded by what its weight files hold, before anything is built.

A configuration of 2^31 layers would be built for hours, one of 2^40 heads would take all memory; neither
can be the one of a file with two hundred tensors. The bounds are wide on purpose: whether every size is
right is told by the shapes of the model that is built from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

#: Keys that count modules, each of which stores at least one tensor (or shares one).
_COUNTS = re.compile(r"(layers?|blocks?|block_count|experts?|expert_count|num_stages|n_layer|loops?)$")
#: Keys that count positions or tokens: no tensor need be as long.
_POSITIONS = re.compile(
    r"(position|context|window|chunk|length|seq|_len$|distance|token|_id$|max_|time|seed)"
)
_FRACTIONS = re.compile(r"(rotary_pct|partial_rotary_factor|rotary_percent|rotary_emb_fraction)$")
_LEAST = 512  # layers, experts: built in a second, whatever the file holds
_MOST_POSITIONS = 1 << 40
#: Types that make a table of so many positions in memory when they are loaded.
_TABLES = ("gptj", "codegen", "ctrl", "xglm")
_LONGEST_TABLE = 1 << 24


def check_sizes(stated: Mapping[str, Any], shapes: list[tuple[int, ...]], where: str) -> None:
    """Refuse a number in ``stated`` (nested) that no checkpoint with tensors of these ``shapes`` can have."""
    elements = sum(_product(shape) for shape in shapes)
    largest = max((extent for shape in shapes for extent in shape), default=1)
    counted = max(_LEAST, len(shapes), largest if any(len(shape) > 2 for shape in shapes) else 0)
    tabled = stated.get("model_type") in _TABLES
    positions = _LONGEST_TABLE if tabled else _MOST_POSITIONS
    todo: list[tuple[str, Any]] = list(stated.items())
    while todo:
        key, value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.items()
        elif isinstance(value, list):
            todo += [(key, item) for item in value]
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif _FRACTIONS.search(key):
            if not 0 <= value <= 1:
                raise UserError(f"{where}: {key} is {quoted(value)}; it must be between 0 and 1")
        elif isinstance(value, int) and _COUNTS.search(key):
            if value > counted:
                raise UserError(
                    f"{where}: {key} is {quoted(value)}, but the weight files hold {len(shapes)} tensors"
                )
        elif isinstance(value, int) and _POSITIONS.search(key):
            if value > positions and "token" not in key:
                raise UserError(f"{where}: {key} is {quoted(value)}; at most {positions:,} are supported")
        elif isinstance(value, int) and value > max(elements, 1 << 20):
            raise UserError(
                f"{where}: {key} is {quoted(value)}, but the weight files hold {elements:,} numbers"
            )


def _product(shape: tuple[int, ...]) -> int:
    elements = 1
    for extent in shape:
        elements *= extent
    return elements
