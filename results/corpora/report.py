"""Tables and figures of ``results/corpora`` from what is committed there: no weights, no cells, no torch.

    python results/corpora/report.py [FOLDER]        (this folder)

Reads ``sums/*.parquet`` and ``cards/*.json`` (written by ``run.py``, whichever models there are) and writes

    tables.md        perplexity against length in the KERPLE paper's form, and bits per byte at 512 to 16384
    comparisons.md   every scheme against kerple-log, Holm's correction over the whole family
    protocols.md     kerple-log by KERPLE's protocol and by DAPE's, from the same losses
    reach.md         how far each model holds, and how much context it uses
    kernels.md       reach and far ends of the learned kernels
    precision.md     two models trained in float32 and in bfloat16
    curve.png, position.png, kernels.png
    report.md        all of it on one page

Statistics are the package's own (``kerple_eval.stats``): the paper's paired t-test over seeds for daggers;
seeds and documents as crossed random effects for intervals and verdicts.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image
from scipy.special import stdtr

from kerple_eval.stats.documents import effective_documents
from kerple_eval.stats.intervals import Interval, ratio_interval
from kerple_eval.stats.reach import MARGIN, losses_hold
from kerple_eval.stats.seeds import crossed
from kerple_eval.stats.significance import below_p, dagger, effect_size, holm, seed_test, sign_flip_p

mpl.use("Agg")
import matplotlib.pyplot as plt

CORPORA = {"sotu": "prose (sotu)", "code": "code", "latex": "TeX manuals"}
SCHEMES = ("kerple-log", "kerple-log-per-layer", "kerple-power", "alibi", "t5", "rope")
COLORS = dict(
    zip(SCHEMES, ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7"), strict=True)
)  # Okabe and Ito's
REFERENCE = "kerple-log"
PER_LAYER = "kerple-log-per-layer"
PROTOCOLS = {
    "full-context": "every target once, contexts 1..L (the KERPLE paper's)",
    "aligned:k=256": "the last 256 of the first 16,384 targets of each document, the same at every length",
    "aligned:k=256,every=2048": "256 targets before every 2,048th byte from 4,096 on, the same at every L",
    "last:k=256": "the last 256 targets of each whole window (DAPE's): other targets at each length",
}
FAMILY = ("full-context", "aligned:k=256")  # what is compared and corrected together
BFLOAT16 = "-bfloat16"  # ends the name of a model trained in float32 as well
TRAINED = 512
ALPHA = 0.05


@dataclass(frozen=True)
class Scores:
    """One model's sums: a row a (protocol, length, document), and by context where there is no document."""

    scheme: str
    corpus: str
    seed: int
    frame: pd.DataFrame
    parameters: dict[str, Any]

    def by_document(self, protocol: str, length: int) -> pd.DataFrame | None:
        """``targets`` and ``loss`` by document, in order of name; None where not scored."""
        f = self.frame
        found = f[(f.protocol == protocol) & (f.length == length) & f.document.notna()]
        return None if found.empty else found.set_index("document").sort_index()[["targets", "loss", "hash"]]

    def loss(self, protocol: str, length: int) -> float | None:
        """Mean loss, nats a target."""
        found = self.by_document(protocol, length)
        return None if found is None else float(found.loss.sum() / found.targets.sum())


def read(folder: Path, ending: str = "") -> list[Scores]:
    """All models whose names end so; what was scored apart on packed samples joins its model."""
    parts: dict[tuple[str, str, int], list[tuple[pd.DataFrame, dict[str, Any]]]] = {}
    for path in sorted((folder / "sums").glob("*.parquet")):
        if path.stem.endswith(BFLOAT16) != bool(ending):
            continue
        scheme, corpus, seed = path.stem.removesuffix("-packed").removesuffix(ending).rsplit("-", 2)
        table = pq.read_table(path)
        frame = table.to_pandas().rename(columns={"targets_hash": "hash"})
        held = json.loads(table.schema.metadata[b"parameters"])
        parts.setdefault((scheme, corpus, int(seed[1:])), []).append((frame, held))
    return [
        Scores(*key, pd.concat([f for f, _ in found], ignore_index=True), found[0][1])
        for key, found in sorted(parts.items(), key=lambda item: (SCHEMES.index(item[0][0]), item[0]))
    ]


def grouped(models: Sequence[Scores], corpus: str) -> dict[str, list[Scores]]:
    """Seeds of each scheme on a corpus, in order of seed."""
    found: dict[str, list[Scores]] = {}
    for model in models:
        if model.corpus == corpus:
            found.setdefault(model.scheme, []).append(model)
    return found


def lengths_of(members: Sequence[Scores], protocol: str) -> list[int]:
    frames = (m.frame[(m.frame.protocol == protocol) & m.frame.document.notna()] for m in members)
    return sorted({int(n) for frame in frames for n in frame.length.unique()})


def losses(members: Sequence[Scores], protocol: str, length: int) -> dict[int, float]:
    """Mean loss by seed."""
    found = {m.seed: m.loss(protocol, length) for m in members}
    return {seed: loss for seed, loss in found.items() if loss is not None}


# --- tables


def mean_std(values: Sequence[float]) -> str:
    """``2.844 ± 0.023``: the deviation to two digits, the mean to as many places; one value alone to four."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:#.4g}"
    std = float(np.std(values, ddof=1))
    places = max(0, 1 - math.floor(math.log10(std))) if std > 0 else 4
    return f"{mean:.{places}f} ± {std:.{places}f}"


def tables(models: Sequence[Scores]) -> Iterator[str]:
    yield "# Perplexity against length\n"
    yield (
        "Mean ± standard deviation (n - 1) over training seeds; a cell of one seed stands without. † "
        "kerple-log is significantly better (paired two-sided t-test over seeds, p < 0.05, uncorrected, as "
        "in the KERPLE paper). **Bold**: lowest mean of the column. \\* trained length.\n"
    )
    for corpus, title in CORPORA.items():
        for protocol, words in PROTOCOLS.items():
            members = grouped(models, corpus)
            if any(lengths_of(m, protocol) for m in members.values()):
                yield f"## {title}, `{protocol}`: {words}\n"
                yield from grid(members, protocol, math.exp(1), "perplexity")
                if protocol == "full-context":
                    yield from grid(members, protocol, None, "bits per byte")
                yield counts(members, protocol)


def grid(members: dict[str, list[Scores]], protocol: str, base: float | None, unit: str) -> Iterator[str]:
    lengths = lengths_of([m for found in members.values() for m in found], protocol)
    values = {
        (scheme, length): {
            seed: math.exp(loss) if base else loss / math.log(2)
            for seed, loss in losses(found, protocol, length).items()
        }
        for scheme, found in members.items()
        for length in lengths
    }
    head = [f"{n}\\*" if n == TRAINED else str(n) for n in lengths]
    yield f"| {unit} | seeds | {' | '.join(head)} |"
    yield f"|---|---|{'---:|' * len(lengths)}"
    for scheme, found in members.items():
        cells = []
        for length in lengths:
            mine, theirs = values[scheme, length], values.get((REFERENCE, length), {})
            text = mean_std(list(mine.values())) if mine else ""
            lowest = min(float(np.mean(list(v.values()))) for k, v in values.items() if k[1] == length and v)
            if mine and float(np.mean(list(mine.values()))) == lowest:
                text = f"**{text}**"
            shared = sorted(set(mine) & set(theirs))
            if scheme != REFERENCE and dagger(
                seed_test([mine[s] for s in shared], [theirs[s] for s in shared])
            ):
                text += "†"
            cells.append(text)
        yield f"| {scheme} | {', '.join(str(m.seed) for m in found)} | {' | '.join(cells)} |"
    yield ""


def counts(members: dict[str, list[Scores]], protocol: str) -> str:
    """How many targets, and whether they are the same everywhere."""
    told = {}
    for found in members.values():
        for model in found:
            for length in lengths_of([model], protocol):
                frame = model.by_document(protocol, length)
                assert frame is not None
                told.setdefault(length, set()).add(
                    (len(frame), int(frame.targets.sum()), str(frame.hash.iloc[0]))
                )
    every = {entry for entries in told.values() for entry in entries}
    if len(every) == 1:
        documents, targets, digest = every.pop()
        return (
            f"{documents} documents, {targets:,} targets, the same for all at every length (hash {digest})\n"
        )
    if all(len(entries) == 1 for entries in told.values()):
        parts = [f"{n}: {t:,} targets ({h})" for n, entries in told.items() for _, t, h in entries]
        documents = next(iter(every))[0]
        return f"{documents} documents; the same for all models, not at every length: {', '.join(parts)}\n"
    return "**Targets differ between models: not comparable.**\n"


# --- comparisons


def comparisons(models: Sequence[Scores]) -> Iterator[str]:
    rows = [row for corpus in CORPORA for row in compared(grouped(models, corpus), corpus)]
    family = [row for row in rows if row["scheme"] != PER_LAYER]
    sizes = {key: correct(family, key) for key in ("p", "p_seeds")}
    correct([row for row in rows if row["scheme"] == PER_LAYER], "p")
    correct([row for row in rows if row["scheme"] == PER_LAYER], "p_seeds")
    yield f"# Every scheme against {REFERENCE}\n"
    yield (
        f"Difference: nats a target, scheme - {REFERENCE}, same targets, same seeds; above zero the scheme "
        "is worse. Its 95 % interval and p count seeds and documents as crossed random effects. p Holm: "
        f"corrected over the whole family, {sizes['p']} comparisons of all corpora, protocols "
        f"{' and '.join(FAMILY)} and lengths; the verdict is by it at {ALPHA}. p documents: sign flips of "
        "the documents' differences, of these models as they are, uncorrected. p seeds: the paper's paired "
        f"t-test of perplexities over seeds, with Holm's correction over its own {sizes['p_seeds']}. "
        f"{PER_LAYER} asks another question: it is corrected apart. Effect: mean over "
        "standard deviation of the documents' differences (Cohen's d), averaged over seeds first. Where "
        "there is one seed in common the interval is over documents alone and says nothing of the scheme; "
        "there is no p.\n"
    )
    for corpus, title in CORPORA.items():
        for protocol in FAMILY:
            mine = [r for r in rows if r["corpus"] == corpus and r["protocol"] == protocol]
            if mine:
                yield f"## {title}, `{protocol}`\n"
                yield (
                    "| scheme | length | seeds | difference | 95 % interval | perplexity | effect | worse on "
                    "| p documents | p seeds | p seeds Holm | p | p Holm | verdict |"
                )
                yield "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
                yield from (compared_row(r) for r in mine)
                yield ""


def correct(rows: Sequence[dict[str, Any]], key: str) -> int:
    """Write Holm's correction of the p values under ``key``, over these rows; how many there are."""
    tested = [row for row in rows if row[key] is not None]
    for row, p in zip(tested, holm([row[key] for row in tested]), strict=True):
        row[f"{key}_holm"] = p
    return len(tested)


def compared(members: dict[str, list[Scores]], corpus: str) -> Iterator[dict[str, Any]]:
    for protocol in FAMILY:
        for length in lengths_of(members.get(REFERENCE, []), protocol):
            theirs = {m.seed: m.by_document(protocol, length) for m in members[REFERENCE]}
            for scheme, found in members.items():
                mine = {m.seed: m.by_document(protocol, length) for m in found}
                seeds = sorted(s for s in mine if mine[s] is not None and theirs.get(s) is not None)
                if scheme != REFERENCE and seeds:
                    pairs = [(mine[s], theirs[s]) for s in seeds]
                    yield {"corpus": corpus, "protocol": protocol, "scheme": scheme, "length": length} | (
                        difference(pairs, seeds)
                    )


def difference(pairs: Sequence[tuple[Any, Any]], seeds: list[int]) -> dict[str, Any]:
    """Of frames by document, scheme and reference by seed."""
    first = pairs[0][1]
    for frame in [f for pair in pairs for f in pair]:
        if set(frame.hash) != set(first.hash) or list(frame.index) != list(first.index):
            raise SystemExit("targets differ between two models that are to be compared")
    counts = first.targets.to_numpy(dtype=np.int64)
    sums = np.stack([(a.loss - b.loss).to_numpy() for a, b in pairs])
    mean = sums.mean(axis=0)
    pooled = crossed(sums, counts) if len(seeds) > 1 else None
    interval = pooled.interval if pooled else ratio_interval(mean, counts)
    perplexities = [[math.exp(f.loss.sum() / f.targets.sum()) for f in side] for side in zip(*pairs)]  # noqa: B905
    over_seeds = seed_test(*perplexities)
    return {
        "seeds": seeds,
        "interval": interval,
        "effect": effect_size(mean, counts),
        "worse_on": f"{int((mean > 0).sum())}/{len(mean)}",
        "p_documents": sign_flip_p(mean),
        "p_seeds": over_seeds.p if over_seeds else None,
        "p": two_sided(interval) if pooled else None,
        "p_holm": None,
        "p_seeds_holm": None,
    }


def two_sided(interval: Interval) -> float:
    assert interval.freedom is not None
    return float(2 * stdtr(interval.freedom, -abs(interval.estimate) / interval.error))


def change(nats: float) -> str:
    """A difference of losses as one of perplexities."""
    ratio = math.exp(nats)
    return f"x {ratio:.3g}" if ratio >= 2 else f"{100 * (ratio - 1):+.2f} %"


def compared_row(row: dict[str, Any]) -> str:
    i = row["interval"]
    verdict = "one seed" if row["p_holm"] is None else "no difference shown"
    if row["p_holm"] is not None and row["p_holm"] < ALPHA:
        verdict = "worse" if i.estimate > 0 else "**better**"
    ps = [row[k] for k in ("p_documents", "p_seeds", "p_seeds_holm", "p", "p_holm")]
    cells = [
        *(row["scheme"], str(row["length"]), ", ".join(map(str, row["seeds"])), f"{i.estimate:+.4f}"),
        *(f"{i.low:+.4f} to {i.high:+.4f}", f"{change(i.low)} to {change(i.high)}"),
        *(f"{row['effect']:+.2f}", row["worse_on"], *map(p_value, ps), verdict),
    ]
    return "| " + " | ".join(cells) + " |"


def p_value(p: float | None) -> str:
    return "" if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


# --- effective lengths


def reach(models: Sequence[Scores]) -> Iterator[str]:
    yield "# How far each model holds, and how much context it uses\n"
    yield (
        "By `kerple-eval reach`'s tests over documents (`kerple_eval.stats.reach`). Holds to: the longest "
        f"length up to which perplexity is shown to stay within {MARGIN:.0%} of the best shorter one, each "
        "length in turn at 0.05; then what stopped it: `lost`, shown to be above the margin, or `few`, the "
        "documents do not suffice to say. Uses: the longest length whose gain over the next shorter one on "
        "`aligned:k=256` is shown (one-sided, Holm over the lengths at 0.05), with the gain in nats a target "
        "and its 95 % interval. `>=`: the longest length scored.\n"
    )
    for corpus, title in CORPORA.items():
        members = grouped(models, corpus)
        if not members:
            continue
        yield f"## {title}\n"
        yield "| scheme | seed | holds to, `full-context` | holds to, `aligned:k=256` | uses |"
        yield "|---|---:|---|---|---|"
        for scheme, found in members.items():
            for model in found:
                cells = [holds(model, protocol) for protocol in FAMILY]
                yield f"| {scheme} | {model.seed} | {' | '.join(cells)} | {uses(model)} |"
        counts = next(iter(members.values()))[0].by_document("full-context", TRAINED)
        assert counts is not None
        yield f"\n{len(counts)} documents, as good as {effective_documents(counts.targets):.0f} of one size\n"


def holds(model: Scores, protocol: str) -> str:
    lengths, frames = by_length(model, protocol)
    steps = losses_hold(
        [(n, f.loss.to_numpy()) for n, f in zip(lengths, frames, strict=True)], frames[0].targets.to_numpy()
    )
    held = [step.length for step in steps if step.outcome == "holds"] or lengths[:1]
    if held[-1] == lengths[-1]:
        return f">= {held[-1]}"
    last = steps[-1]
    assert last.change is not None
    why = "lost" if last.outcome == "lost" else "few"
    return f"{held[-1]} ({why} at {last.length}: {change(last.change)} against {last.against})"


def uses(model: Scores) -> str:
    lengths, frames = by_length(model, "aligned:k=256")
    gains = [(a.loss - b.loss).to_numpy() for a, b in itertools.pairwise(frames)]
    counts = frames[0].targets.to_numpy()
    adjusted = holm([below_p(-gain, counts, 0.0) for gain in gains])
    shown = [i for i, p in enumerate(adjusted) if p <= ALPHA]
    if not shown:
        return "no gain shown"
    i = ratio_interval(gains[shown[-1]], counts)
    more = ">= " if shown[-1] == len(gains) - 1 else ""
    return f"{more}{lengths[shown[-1] + 1]} ({i.estimate:.4f}, {i.low:.4f} to {i.high:.4f})"


def by_length(model: Scores, protocol: str) -> tuple[list[int], list[pd.DataFrame]]:
    """Every length, with the same targets at each."""
    found = {n: model.by_document(protocol, n) for n in lengths_of([model], protocol)}
    frames = [frame for frame in found.values() if frame is not None]
    if len({str(digest) for frame in frames for digest in frame.hash}) != 1:
        raise SystemExit(f"{model.scheme} {model.corpus} s{model.seed}: {protocol}: targets differ by length")
    return list(found), frames


# --- KERPLE's protocol and DAPE's


def protocols(models: Sequence[Scores]) -> Iterator[str]:
    yield "# One set of losses, two protocols\n"
    yield (
        "KERPLE reports 6.07 at 512 and 5.01 at 8,192 for kerple-log (ArXiv, every target of packed "
        "windows); DAPE 4.57 and 9.08 for what it calls Kerple (ArXiv, the last 256 targets of each window, "
        "a kernel a layer). Here both read the same losses of the same models. Perplexity, mean ± standard "
        "deviation over seeds; change: of the mean loss from 512 to 8,192, as perplexity, by seed. DAPE "
        "averages over batches of 32, 16, 8 and 1 whole windows; with full batches, and windows of as many "
        "targets, that is the mean over targets given here. Targets differ between lengths in all of these "
        "but `full-context` and `aligned`.\n"
    )
    for corpus, title in CORPORA.items():
        members = grouped(models, corpus)
        names = [s for s in SCHEMES if s in members]
        seen = sorted({str(p) for s in names for m in members[s] for p in m.frame.protocol.unique()})
        if not names:
            continue
        yield f"## {title}\n"
        yield "| scheme | protocol | seeds | 512\\* | 1024 | 2048 | 4096 | 8192 | change, 512 to 8192 |"
        yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
        for scheme in names:
            for protocol in [p for p in seen if "every" not in p]:
                found = members[scheme]
                by_length = {n: losses(found, protocol, n) for n in (512, 1024, 2048, 4096, 8192)}
                if all(by_length.values()):
                    seeds = sorted(by_length[512])
                    cells = [mean_std([math.exp(x) for x in v.values()]) for v in by_length.values()]
                    steps = [change(by_length[8192][s] - by_length[512][s]) for s in seeds]
                    yield (
                        f"| {scheme} | `{protocol}` | {', '.join(map(str, seeds))} | "
                        + " | ".join([*cells, ", ".join(steps)])
                        + " |"
                    )
        yield ""


# --- kernels


def kernel(model: Scores, distance: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Learned or fixed bias ``[heads, n]``, of all layers' heads where each has its own; None where none."""
    parts: dict[str, list[Any]] = {}
    for name, value in sorted(model.parameters.items()):
        parts.setdefault(name.rsplit(".", 1)[-1], []).append(value)
    p = {name: np.concatenate(values) for name, values in parts.items()}
    if model.scheme in (REFERENCE, PER_LAYER):
        return np.array(-p["r1"][:, None] * np.log1p(p["r2"][:, None] * distance))
    if model.scheme == "t5":
        bucket = 16 + np.floor(np.log(np.maximum(distance, 1) / 16) / math.log(128 / 16) * 16 + 1e-9)
        bucket = np.where(distance < 16, distance, np.minimum(bucket, 31)).astype(int)
        return np.array(p["relative_bias"][bucket].T)
    if model.scheme == "alibi":  # four heads
        return np.array(-(0.25 ** np.arange(1, 5))[:, None] * distance)
    return None


def kernels(models: Sequence[Scores]) -> Iterator[str]:
    yield "# What the kernels have learned\n"
    yield (
        "By head, flattest last: the kernel's reach (the first distance at which the kernel lies more than 2 "
        "below its value at 0, of 20,480; the paper's figure 6), and the kernel's value at distances 512 and "
        "16,384 less that at 0. alibi's are fixed. One set of kernels for all layers; of "
        "kerple-log-per-layer the four sets together.\n"
    )
    yield "| model | reach | at 512 | at 16384 |"
    yield "|---|---|---|---|"
    distance = np.arange(20481)
    for model in models:
        value = kernel(model, distance)
        if value is None or (model.scheme == "alibi" and model.seed > 1):
            continue
        below = value - value[:, :1]
        ends = [int(np.argmax(head < -2)) if (head < -2).any() else None for head in below]
        order = sorted(range(len(ends)), key=lambda h: (ends[h] or math.inf, below[h, 16384]))
        told = [
            ", ".join(str(ends[h]) if ends[h] else "beyond" for h in order),
            *(", ".join(f"{below[h, n]:.1f}" for h in order) for n in (512, 16384)),
        ]
        yield f"| {model.scheme} {model.corpus} s{model.seed} | " + " | ".join(told) + " |"
    yield ""


# --- precision


def precision(models: Sequence[Scores], others: Sequence[Scores]) -> Iterator[str]:
    yield "# What the precision of training changes\n"
    yield (
        "The zoo's models, those of prose, were trained with matrix products in bfloat16, those of code and "
        "of TeX in float32; every comparison is within one corpus, and all are scored in float32. Two models "
        "of code were trained in both, from the same seed: difference in nats a target, bfloat16 - float32, "
        "over the same targets, with its 95 % interval over documents. Such a pair differs as two seeds do "
        "that share their first weights and the order of the text. Seeds: the standard deviation of the "
        "float32 models' losses over seeds, nats.\n"
    )
    yield "| model | protocol | length | difference | 95 % interval | seeds |"
    yield "|---|---|---:|---:|---:|---:|"
    for other in others:
        found = grouped(models, other.corpus).get(other.scheme, [])
        for mine in (m for m in found if m.seed == other.seed):
            for protocol in FAMILY:
                for length in lengths_of([other], protocol):
                    pair = other.by_document(protocol, length), mine.by_document(protocol, length)
                    i = difference([pair], [other.seed])["interval"]
                    spread = list(losses(found, protocol, length).values())
                    std = f"{np.std(spread, ddof=1):.4f}" if len(spread) > 1 else ""
                    yield (
                        f"| {other.scheme} {other.corpus} s{other.seed} | `{protocol}` | {length} "
                        f"| {i.estimate:+.4f} | {i.low:+.4f} to {i.high:+.4f} | {std} |"
                    )
    yield ""


# --- figures


def panels(ylabel: str) -> tuple[Any, list[Any]]:
    plt.rcParams.update({"font.size": 7.5, "axes.titlesize": 8, "legend.fontsize": 6.5})
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.4), layout="constrained")
    for axis, title in zip(axes, CORPORA.values(), strict=True):
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return figure, list(axes)


def save(figure: Any, path: Path) -> None:
    """As PNG of 64 colours, which takes a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def band(axis: Any, x: Sequence[float], runs: np.ndarray[Any, Any], scheme: str, marker: str = "") -> None:
    """Mean of the runs ``[seeds, n]`` of losses, and a standard deviation to either side; perplexity."""
    mean = np.exp(runs).mean(axis=0)
    axis.plot(x, mean, marker=marker or None, markersize=3, linewidth=1.1, color=COLORS[scheme],
              label=f"{scheme} ({len(runs)})")  # fmt: skip
    if len(runs) > 1:
        std = np.exp(runs).std(axis=0, ddof=1)
        axis.fill_between(x, mean - std, mean + std, color=COLORS[scheme], alpha=0.25, linewidth=0)


def logarithmic(axis: Any, runs: Sequence[np.ndarray[Any, Any]]) -> None:
    """Perplexity on a log scale with plain numbers, where there is anything to show."""
    if runs:
        axis.set_yscale("log")
        ticks = [
            t
            for t in (1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500)
            if t <= 1.3 * max(np.exp(r).max() for r in runs)
        ]
        axis.set_yticks([t for t in ticks if t >= 0.8 * min(np.exp(r).min() for r in runs)])
        axis.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.legend(frameon=False)


def draw_curve(models: Sequence[Scores], path: Path) -> None:
    figure, axes = panels("perplexity (full-context)")
    for corpus, axis in zip(CORPORA, axes, strict=True):
        drawn = []
        for scheme, found in grouped(models, corpus).items():
            lengths = lengths_of(found, "full-context")
            runs = np.array([[m.loss("full-context", n) for n in lengths] for m in found])
            band(axis, lengths, runs, scheme, "o")
            drawn.append(runs)
        axis.set_xscale("log", base=2)
        axis.set_xticks(
            [512, 1024, 2048, 4096, 8192, 16384], ["512\\*".replace("\\", ""), "1k", "2k", "4k", "8k", "16k"]
        )
        axis.set_xlabel("length (bytes; * trained)")
        logarithmic(axis, drawn)
    save(figure, path)


def by_context(found: Sequence[Scores], length: int) -> tuple[list[float], np.ndarray[Any, Any]]:
    """Mean loss ``[seeds, points]`` by context; a point joins bins up to a sixth above its first's end."""
    frames = [m.frame[(m.frame.length == length) & m.frame.context.notna()] for m in found]
    frames = [f.sort_values("context") for f in frames]
    ends = frames[0].context.to_numpy()
    firsts = [0]
    for at, end in enumerate(ends):
        if end > ends[firsts[-1]] * 7 / 6:
            firsts.append(at)
    sums = [[np.add.reduceat(f[c].to_numpy(), firsts) for c in ("loss", "targets")] for f in frames]
    contexts = [float(ends[part].mean()) for part in np.split(np.arange(len(ends)), firsts[1:])]
    return contexts, np.array([loss / targets for loss, targets in sums])


def draw_position(models: Sequence[Scores], path: Path, length: int = 16384) -> None:
    figure, axes = panels(f"perplexity, windows of {length:,}")
    for corpus, axis in zip(CORPORA, axes, strict=True):
        drawn = []
        for scheme, found in grouped(models, corpus).items():
            contexts, runs = by_context(found, length)
            band(axis, contexts, runs, scheme)
            drawn.append(runs)
        axis.axvline(TRAINED, color="0.6", linewidth=0.6, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks([128, 512, 2048, 8192], ["128", "512*", "2k", "8k"])
        axis.set_xlabel("context (bytes; * trained)")
        logarithmic(axis, drawn)
    save(figure, path)


def draw_kernels(models: Sequence[Scores], path: Path) -> None:
    figure, axes = panels("kernel - its value at 0 (kerple-log)")
    distance = np.unique(np.geomspace(1, 16385, 160).astype(int)) - 1
    looks = {1: "-", 2: "--", 3: ":"}
    for corpus, axis in zip(CORPORA, axes, strict=True):
        for model in grouped(models, corpus).get("kerple-log", []):
            value = kernel(model, distance)
            assert value is not None
            for head, row in enumerate(value):
                label = None if head else f"seed {model.seed}"
                look = looks[model.seed]
                axis.plot(distance + 1, row, look, color=COLORS[REFERENCE], linewidth=0.9, label=label)
        axis.axvline(TRAINED, color="0.6", linewidth=0.6, linestyle=":")
        axis.axhline(-2, color="0.6", linewidth=0.6)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("distance + 1 (bytes); four heads")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    save(figure, path)


def hours(folder: Path) -> Iterator[str]:
    yield "# The models trained for this\n"
    yield ("| model | precision | bits a byte | 3-gram | last tenth's gain | hours | weights' sha256 |")
    yield "|---|---|---:|---:|---:|---:|---|"
    for path in sorted((folder / "cards").glob("*.json")):
        card = json.loads(path.read_text())
        t, weights = card["training"], card["weights_sha256"][:16]
        yield (
            f"| {path.stem} | {t['recipe']['precision']} "
            f"| {t['held_out']['bits_per_byte']:.4f} | {t['ngram']['bits_per_byte']:.4f} "
            f"| {t['held_out']['gain_of_last_tenth']:.4f} | {t['hours']:.2f} | `{weights}` |"
        )
    yield ""


def main(folder: Path) -> None:
    models = read(folder)
    if not models:
        raise SystemExit(f"{folder}/sums holds no model yet")
    sections = {
        "tables": tables, "comparisons": comparisons, "reach": reach, "protocols": protocols,
        "kernels": kernels,
    }  # fmt: skip
    texts = {name: "\n".join(make(models)).rstrip() + "\n" for name, make in sections.items()}
    texts["precision"] = "\n".join(precision(models, read(folder, BFLOAT16))).rstrip() + "\n"
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    draw_curve(models, folder / "curve.png")
    draw_position(models, folder / "position.png")
    draw_kernels(models, folder / "kernels.png")
    figures = {
        "tables": "![perplexity against length; band: a standard deviation over seeds](curve.png)",
        "comparisons": "![perplexity against context in windows of 16,384](position.png)",
        "kernels": "![learned kernels of kerple-log against distance](kernels.png)",
    }
    page = [f"{len(models)} models are in, of 39 in all. Made by `python results/corpora/report.py`.\n"]
    for name, text in texts.items():
        title, rest = text.split("\n", 1)
        page += [title, "", figures.get(name, ""), rest.replace("\n## ", "\n### ")]
    (folder / "report.md").write_text("\n".join([*page, *hours(folder)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
