"""How often intervals cover and tests reject, by simulation: results/statistics.

    python -m tests.simulations.statistics --seed 1 --out results/statistics

Every draw comes from one generator, seeded on the command line; the functions called are those of the
package. Takes some minutes on one core.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from kerple_eval.stats.compare import _two_sided
from kerple_eval.stats.intervals import ratio_interval
from kerple_eval.stats.looks import half_width, look_level, schedule
from kerple_eval.stats.seeds import crossed
from kerple_eval.stats.significance import holm, seed_test, sign_flip_p
from tests.simulations.worlds import DEVIATION, MEAN, WORLDS, Array, World

SIZES = (5, 10, 20, 30, 50, 100, 200)
Row = dict[str, object]


def coverage(
    rng: np.random.Generator, worlds: Sequence[World], sizes: Sequence[int], repeats: int, method: str
) -> list[Row]:
    """Share of 95 % intervals over documents that hold the truth, in percent."""
    rows: list[Row] = []
    for world in worlds:
        for n in sizes:
            hits = 0
            for _ in range(repeats):
                sums, counts = world.draw(rng, n)
                found = ratio_interval(sums, counts, method=method, seed=int(rng.integers(2**31)))
                hits += found.low <= world.truth <= found.high
            rows.append(
                {
                    "method": method,
                    "world": world.name,
                    "n": n,
                    "repeats": repeats,
                    "percent": 100 * hits / repeats,
                }
            )
    return rows


def percentile_coverage(rng: np.random.Generator, n: int, repeats: int) -> float:
    """What the percentile bootstrap, which the package does not offer, covers: one size, normal losses."""
    world, hits = World(0.0, False), 0
    for _ in range(repeats):
        sums, counts = world.draw(rng, n)
        drawn = rng.integers(n, size=(999, n))
        low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
        hits += low <= world.truth <= high
    return 100 * hits / repeats


def _shifts(rng: np.random.Generator, seeds: int, n: int, of_seed: float, of_rest: float) -> Array:
    """Nats per target ``[S, n]``: one common to a seed's documents, one of each seed and document."""
    return of_seed * rng.standard_normal((seeds, 1)) + of_rest * rng.standard_normal((seeds, n))


def crossed_coverage(rng: np.random.Generator, repeats: int) -> list[Row]:
    """The pooled interval, over how much seeds vary beside the documents' 0.3 / sqrt(n)."""
    rows: list[Row] = []
    for sigma in (0.0, 1.0):
        world = World(sigma, False)
        for seeds in (3, 5):
            for n in (10, 50):
                for share in (0.0, 0.3, 1.0, 3.0):
                    of_seed = share * DEVIATION / np.sqrt(n) * np.sqrt(seeds)
                    hits = 0
                    for _ in range(repeats):
                        sums, counts = world.draw(rng, n)
                        found = crossed(
                            sums + counts * _shifts(rng, seeds, n, of_seed, 0.05), counts
                        ).interval
                        hits += found.low <= world.truth <= found.high
                    rows.append(
                        {"world": world.name, "seeds": seeds, "n": n, "seed / document error": share,
                         "repeats": repeats, "percent": 100 * hits / repeats}
                    )  # fmt: skip
    return rows


def false_positives(rng: np.random.Generator, repeats: int) -> list[Row]:
    """Rejections at 0.05 where there is no difference, in percent."""
    rows: list[Row] = []

    def add(test: str, world: str, n: int, hits: int, count: int = repeats) -> None:
        rows.append({"test": test, "world": world, "n": n, "repeats": count, "percent": 100 * hits / count})

    for world in (World(0.0, False), World(1.0, False), World(0.0, True), World(1.0, True)):
        for n in (5, 6, 10, 50):
            flips = outside = 0
            for _ in range(repeats):
                sums, counts = world.draw(rng, n)
                differences = sums - MEAN * counts
                flips += sign_flip_p(differences, seed=int(rng.integers(2**31)), flips=999) < 0.05
                found = ratio_interval(differences, counts)
                outside += not found.low <= 0 <= found.high
            add("sign flips over documents", world.name, n, flips)
            add("interval without zero", world.name, n, outside)
    for seeds in (3, 5):
        for n in (10, 50):
            hits = pooled = 0
            for _ in range(10 * repeats):
                sums, counts = World(0.5, False).draw(rng, n)  # the documents are common to both
                a, b = (sums + counts * _shifts(rng, seeds, n, 0.05, 0.05) for _ in range(2))
                first, second = (np.exp(x.sum(axis=1) / counts.sum()) for x in (a, b))
                test = seed_test(list(first), list(second))
                hits += test is not None and test.p < 0.05
                pooled += _two_sided(crossed(a - b, counts).interval) < 0.05
            add(f"paired t over {seeds} seeds", World(0.5, False).name, n, hits, 10 * repeats)
            add(f"pooled, {seeds} seeds", World(0.5, False).name, n, pooled, 10 * repeats)
    any_wrong = any_raw = 0
    for _ in range(repeats):  # a table of six comparisons that share a reference
        n = 20
        reference = 0.1 * rng.standard_normal(n)
        p = [sign_flip_p(0.1 * rng.standard_normal(n) - reference, flips=999, seed=i) for i in range(6)]
        any_wrong += min(holm(p)) < 0.05
        any_raw += min(p) < 0.05
    add("any of six comparisons, Holm", "one size, normal losses", 20, any_wrong)
    add("any of six comparisons, uncorrected", "one size, normal losses", 20, any_raw)
    return rows


def stopping(rng: np.random.Generator, worlds: Sequence[World], budget: int, repeats: int) -> list[Row]:
    """The interval at the stop: corrected looks, and plain 95 % looks beside them; targets saved."""
    rows: list[Row] = []
    looks = schedule(budget)
    for world in worlds:
        for precision in (0.2, 0.1, 0.05):
            for rule, level in (("corrected", look_level(len(looks))), ("uncorrected", 0.95)):
                hits, used, reached = 0, 0.0, 0
                for _ in range(repeats):
                    sums, counts = world.draw(rng, budget)
                    for n in looks:
                        found = ratio_interval(sums[:n], counts[:n], level=level)
                        if sure := found.half_width <= half_width(precision):
                            break
                    hits += found.low <= world.truth <= found.high
                    reached += sure
                    used += counts[:n].sum() / counts.sum()
                rows.append(
                    {"rule": rule, "world": world.name, "budget": budget, "looks": len(looks),
                     "precision": f"{100 * precision:g} %", "repeats": repeats,
                     "percent": 100 * hits / repeats, "reached": 100 * reached / repeats,
                     "saved": 100 * (1 - used / repeats)}
                )  # fmt: skip
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()})


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--repeats", default=10000, show_default=True, help="Of the quick ones; the bootstrap takes a tenth."
)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(seed: int, repeats: int, out: Path) -> None:
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    rows = coverage(rng, WORLDS, SIZES, repeats, "delta")
    rows += coverage(rng, WORLDS, SIZES, repeats, "delta-plain")
    for n in SIZES:
        share = percentile_coverage(rng, n, repeats // 10)
        rows.append(
            {"method": "percentile bootstrap", "world": World(0.0, False).name, "n": n,
             "repeats": repeats // 10, "percent": share}
        )  # fmt: skip
    write(out / "coverage.csv", rows)
    write(out / "seeds.csv", crossed_coverage(rng, repeats // 2))
    write(out / "false_positives.csv", false_positives(rng, repeats // 10))
    write(out / "stopping.csv", stopping(rng, WORLDS, 160, repeats // 5))
    few = [w for w in WORLDS if not w.rho]
    write(out / "coverage.csv", rows + coverage(rng, few, SIZES, repeats // 10, "bootstrap"))


if __name__ == "__main__":
    main()
