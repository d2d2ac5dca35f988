"""From a cell's losses to its ``nll``: the reduction of the cell's protocol. Imports no torch.

The mean over all targets, unless the protocol weighs windows otherwise (``Protocol.weights``), as some
tools do; what was done is in the cell's header under ``reduction`` (absent: the mean over targets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kerple_eval.catalogue import PROTOCOLS, entry, load, parse_spec, typed_options
from kerple_eval.protocols.base import Protocol


def make_protocol(text: str) -> tuple[Protocol, str]:
    """``NAME:key=value`` -> the protocol and its canonical string, options in the order of its own."""
    spec = parse_spec(text)
    cls = load(entry("protocol", spec.name, PROTOCOLS).target)
    options = typed_options(cls.__init__, dict(spec.options), spec.name)
    written = ",".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
    protocol: Protocol = cls(**options)
    return protocol, spec.name + (f":{written}" if written else "")


def weighted_mean(losses: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> float:
    """``sum(weight * mean loss of the window) / sum(weights)``; sums in float64, exactly rounded."""
    means = [float(row.sum(dtype=np.float64)) / len(row) for row in losses]
    total = math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True))
    return total / math.fsum(weights)
