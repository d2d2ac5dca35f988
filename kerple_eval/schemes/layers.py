"""The schemes of a model's layers as one text, ``rope 3/4 + nope 1/4``. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def format_layers(layers: Sequence[str]) -> str:
    """What tables and ``inspect`` show as the scheme of a model whose layers have the schemes ``layers``.

    One scheme is its own name. Several are joined by `` + ``, each with its number of layers of all layers,
    the most frequent first, then in the order of the layers: ``rope,window=512 15/18 + rope 3/18``.
    """
    counts = Counter(layers)
    if len(counts) == 1:
        return layers[0]
    return " + ".join(f"{name} {count}/{len(layers)}" for name, count in counts.most_common())
