"""What was drawn, read back from matplotlib's axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y; what marks trained lengths has no label."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in lines
    }


def legend(axes: Axes) -> list[str]:
    box = axes.get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]
