"""How many heads' kernels reach at most to distance D (KERPLE, figure 6), a curve a model.

A kernel's reach, the paper's effective length, is the first distance at which it lies more than 2 below its
value at distance 0 (:func:`~kerple_eval.schemes.kernel_view.kernel_reaches`), looked for among all of them. A
curve that ends below the number of heads has heads that see farther than the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from kerple_eval.reports.figures.style import (
    COLORS,
    DASHES,
    PANEL,
    distance_axis,
    look,
    mark_trained,
    panels,
    save,
    wrapped,
)
from kerple_eval.schemes.kernel_view import KernelView, kernel_reaches, title
from kerple_eval.types import UserError

HOOKS = ("kernel",)
LONGEST = 20480  # tokens, the paper's, unless asked


@look()
def make(models: Sequence[KernelView], out: Path, *, length: int | None = None) -> None:
    """``length``: distances below it, 20,481 unless given."""
    longest = LONGEST if length is None else length - 1
    if longest < 2:
        raise UserError(f"--length {length} leaves no distance to draw; it must be at least 3")
    figure, (panel,) = panels(1, size=(PANEL[0], PANEL[1] + 0.14 * len(models)), across=1)
    for index, model in enumerate(models):
        kernel = model.kernel(np.arange(longest + 1))
        assert kernel is not None, "only models that have one are drawn"
        reached = sorted(n for n in kernel_reaches(kernel, model.window) if n is not None)
        panel.plot(
            [1, *reached, longest], [0, *range(1, len(reached) + 1), len(reached)], drawstyle="steps-post",
            color=COLORS[index % len(COLORS)], linewidth=1.6,
            linestyle=DASHES[index % len(DASHES)],  # curves often run on top of one another
            label=f"{wrapped(title(model), 99)}: {len(reached)} of {model.heads} heads",
        )  # fmt: skip
    distance_axis(panel, longest)
    mark_trained(panel, {n for m in models if (n := m.train_length) is not None and n < longest})
    panel.set_ylim(0, 1.08 * max(m.heads for m in models))
    panel.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.set_xlabel("reach of a head's kernel (tokens)")
    panel.set_ylabel("heads within it")
    figure.legend(fontsize=7, loc="outside upper left", frameon=False, handlelength=2.8, labelspacing=0.25)
    save(figure, out)
