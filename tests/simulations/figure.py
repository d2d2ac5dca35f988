"""The tables and the figure of results/statistics, from its CSV files.

python -m tests.simulations.figure results/statistics
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from kerple_eval.reports.figures.style import with_palette

METHODS = {
    "delta": "default: leave-one-out, effective documents",
    "delta-plain": "textbook: t, n - 1",
    "bootstrap": "bootstrap (BCa)",
}
COLOURS = {"one size": "#0072B2", "sigma 0.5": "#009E73", "sigma 1": "#D55E00"}


def main(folder: Path) -> None:
    coverage = pd.read_csv(folder / "coverage.csv")
    draw(coverage, folder / "coverage.png")
    seeds = pd.read_csv(folder / "seeds.csv")
    positives = pd.read_csv(folder / "false_positives.csv")
    stopping = pd.read_csv(folder / "stopping.csv")
    parts = [
        (
            "Coverage of nominal 95 % intervals over n documents, %",
            coverage, ["method", "world"], "n", "percent",
        ),
        (
            "Coverage of the pooled interval, %, by the seeds' share in the error (seed / document)",
            seeds, ["world", "seeds", "n"], "seed / document error", "percent",
        ),
        ("False positives at 0.05, %", positives, ["test", "world"], "n", "percent"),
        ("Coverage at the stop, %, nominal 95", stopping, ["rule", "world"], "precision", "percent"),
        ("Runs that reached the precision, %", stopping, ["rule", "world"], "precision", "reached"),
        (
            "Targets saved against the fixed budget of 160 documents, %",
            stopping, ["rule", "world"], "precision", "saved",
        ),
    ]  # fmt: skip
    text = "\n".join(f"**{title}**\n\n{table(*rest)}" for title, *rest in parts)
    (folder / "tables.md").write_text(text, encoding="utf-8")


def table(frame: pd.DataFrame, down: list[str], across: str, value: str) -> str:
    order = list(dict.fromkeys(frame[across]))
    if across == "n":
        order.sort()
    wide = frame.pivot_table(index=down, columns=across, values=value, sort=False)[order]
    head = [*down, *map(str, order)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(down) + "---:|" * len(order)]
    for index, row in wide.iterrows():
        numbers = ["" if pd.isna(x) else f"{x:.1f}" for x in row]
        lines.append("| " + " | ".join([*map(str, index), *numbers]) + " |")
    return "\n".join(lines) + "\n"


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Coverage against n: a panel a method, a line a world; 93 to 97 % shaded."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, (method, title) in zip(axes, METHODS.items(), strict=True):
        axis.axhspan(93, 97, color="0.92")
        axis.axhline(95, color="0.6", linewidth=0.8)
        for world, rows in frame[frame["method"] == method].groupby("world", sort=False):
            name = str(world)
            colour = next(c for start, c in COLOURS.items() if name.startswith(start))
            dashes = ":" if "skewed" in name else "-"
            marker = "^" if "+0.3" in name else "v" if "-0.3" in name else "o"
            axis.plot(
                rows["n"], rows["percent"], dashes, color=colour, marker=marker, markersize=4, linewidth=1.2,
                label=name,
            )  # fmt: skip
        axis.set(xscale="log", xlabel="documents", ylim=(76, 98))
        axis.set_title(title, fontsize=9)
        axis.set_xticks([5, 10, 20, 50, 100, 200], labels=["5", "10", "20", "50", "100", "200"])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    percentile = frame[frame["method"] == "percentile bootstrap"]
    axes[2].plot(
        percentile["n"], percentile["percent"], "--", color="0.3", linewidth=1.2, label="percentile bootstrap"
    )
    axes[0].set_ylabel("coverage of nominal 95 %, %")
    handles = {}
    for axis in axes:
        lines, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    path.write_bytes(with_palette(drawn))
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
