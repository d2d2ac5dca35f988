"""How often *holds to* and *uses* claim too much, by simulation: results/statistics/reach.csv.

    python -m tests.simulations.reach --seed 1 --out results/statistics

Documents of a world (``worlds.py``) have five lengths. From one length to the next a document changes by the
mean change and by an effect of its own, which its targets share: documents are the units. Skewed worlds have
a few documents that get much worse, the direction in which both claims err more often. The functions called
are those of the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from kerple_eval.stats.reach import MARGIN, losses_hold
from kerple_eval.stats.significance import ALPHA, below_p, holm
from tests.simulations.statistics import write
from tests.simulations.worlds import DEVIATION, MEAN, Array, World

LENGTHS = (512, 1024, 2048, 4096, 8192)
SIZES = (5, 20, 100)
#: Standard deviation of a document's change between neighbouring lengths, nats.
SPREAD = 0.02
WORLDS = tuple(World(s, k) for s in (0.0, 0.5, 1.0) for k in (False, True))
EDGE = math.log1p(MARGIN)
Row = dict[str, object]

#: Mean loss at each length, nats above the first's, and the longest length that truly holds.
HOLDS: dict[str, tuple[tuple[float, ...], int]] = {
    "at the margin from the second length on": ((0, EDGE, EDGE, EDGE, EDGE), 512),
    "flat, at the margin from the third on": ((0, 0, EDGE, EDGE, EDGE), 1024),
    "better, then back by the margin": ((0, -EDGE, -EDGE / 2, 0, 0), 2048),
    "twice the margin from the third on": ((0, 0, 2 * EDGE, 2 * EDGE, 2 * EDGE), 1024),
    "all the same": ((0, 0, 0, 0, 0), 8192),
}
#: Gains between neighbours, nats, and the longest length whose gain is real.
USES: dict[str, tuple[tuple[float, ...], int]] = {
    "no gain at all": ((0, 0, 0, 0), 512),
    "a gain up to the third": ((0.03, 0.03, 0, 0), 2048),
    "gains throughout": ((0.03, 0.03, 0.03, 0.03), 8192),
}


#: Where a claim too far is as likely as it can be.
EDGE_CASES = ("at the margin from the second length on", "no gain at all")


def draw(rng: np.random.Generator, world: World, n: int, means: Sequence[float]) -> tuple[list[Array], Array]:
    """Summed losses of n documents at each length, and their targets."""
    sums, counts = world.draw(rng, n)
    found = [sums]
    for change in np.diff(means):
        own, sizes = world.draw(rng, n)
        effect = (own / sizes - MEAN) / DEVIATION
        found.append(found[-1] + counts * (change + SPREAD * effect))
    return found, counts


def holds_to(rng: np.random.Generator, world: World, n: int, case: str, repeats: int) -> list[Row]:
    """In percent: claims beyond the truth, claims of just the truth, and false claims that it is lost."""
    means, truth = HOLDS[case]
    beyond = exact = lost = 0
    for _ in range(repeats):
        sums, counts = draw(rng, world, n, means)
        steps = losses_hold(list(zip(LENGTHS, sums, strict=True)), counts)
        held = max((step.length for step in steps if step.outcome == "holds"), default=LENGTHS[0])
        beyond += held > truth
        exact += held == truth
        at = steps[-1].length
        within = means[LENGTHS.index(at)] - min(means[: LENGTHS.index(at)]) <= EDGE
        lost += steps[-1].outcome == "lost" and within
    common: Row = {"case": case, "world": world.name, "n": n, "repeats": repeats}
    return [
        {"claim": "holds to", **common, "wrong": 100 * beyond / repeats, "right": 100 * exact / repeats},
        {"claim": "lost", **common, "wrong": 100 * lost / repeats, "right": ""},
    ]


def uses(rng: np.random.Generator, world: World, n: int, case: str, repeats: int) -> list[Row]:
    """In percent: claims beyond the truth, and claims of just the truth."""
    gains, truth = USES[case]
    beyond = exact = 0
    for _ in range(repeats):
        sums, counts = draw(rng, world, n, np.cumsum((0.0, *(-gain for gain in gains))))
        p = holm([below_p(b - a, counts, 0.0) for a, b in pairwise(sums)])
        used = max((n for n, value in zip(LENGTHS[1:], p, strict=True) if value <= ALPHA), default=LENGTHS[0])
        beyond += used > truth
        exact += used == truth
    return [
        {"claim": "uses", "case": case, "world": world.name, "n": n, "repeats": repeats,
         "wrong": 100 * beyond / repeats, "right": 100 * exact / repeats}
    ]  # fmt: skip


def every(rng: np.random.Generator, repeats: int, worlds: Sequence[World] = WORLDS) -> list[Row]:
    rows: list[Row] = []
    for world in worlds:
        for n in SIZES:
            for case in HOLDS:
                rows += holds_to(rng, world, n, case, repeats)
            for case in USES:
                rows += uses(rng, world, n, case, repeats)
    return rows


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--repeats", default=2000, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(seed: int, repeats: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write(out / "reach.csv", every(np.random.default_rng(seed), repeats))


if __name__ == "__main__":
    main()
