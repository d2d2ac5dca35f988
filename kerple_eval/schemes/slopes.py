"""ALiBi's slopes, which other schemes use too: the authors' ``get_slopes`` (see :mod:`alibi`)."""

from __future__ import annotations


def slopes(heads: int) -> list[float]:
    """The authors' slopes m_1..m_H for any number of heads."""
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    if power == heads:
        return first
    return first + slopes(2 * power)[0::2][: heads - power]
