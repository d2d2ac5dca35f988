"""Train, score and keep the models of ``results/corpora``, one after another; ``make corpora`` runs it.

    python results/corpora/run.py [--out DIR] [--device cuda] [--list] [NAME...]    (every model, out/corpora)

For each model, named SCHEME-CORPUS-sSEED, in the order of ``--list``:

1. train it by the zoo's recipe (prose: it is in the zoo already) into OUT/models/NAME;
2. score it on 20 held-out documents of 16,385 bytes into OUT/runs/NAME;
3. keep in ``results/corpora`` what tables are made of: ``cards/NAME.json`` (the checkpoint's
   config.json), ``sums/NAME.parquet`` (see ``keep``) and its rows of ``summary.csv``.

Stopped (Ctrl-C, SIGTERM, a crash) and started again it goes on: training from its last saved step,
scoring after its last cell. ``report.py``, called at the end, makes the tables and figures. Everything runs
from the top of the clone, so that the commands in the cards are those a user would type. Both use the
threads that torch is given; the results here are of one (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("results/corpora")
SCHEMES = ("kerple-log", "alibi", "t5", "rope")
PER_LAYER = "kerple-log-per-layer"  # one kernel a layer, as DAPE has it; on prose only
SPELLED = {PER_LAYER: "kerple-log:per-layer=true"}  # name: --scheme, where they differ
TASKS = {"code": str(HERE / "tasks/code.yaml"), "latex": str(HERE / "tasks/latex.yaml"), "sotu": "sotu"}
SEEDS = (1, 2, 3)
# The zoo's models, of prose, have matrix products in bfloat16 (autocast). The others are trained in float32,
# which is faster on a CPU without such instructions; two of them in bfloat16 as well.
BFLOAT16_TOO = (("kerple-log", "code", 1), ("alibi", "code", 1))
RECIPE = [
    "--steps",
    "8000",
    "--batch",
    "4",
    "--lr",
    "1e-3",
    "--threads",
    "1",
    "--store",
    "float16",
    "--ngram",
    "3",
]
# DAPE's targets (last:k=256) and those of aligned:k=256 are windows of full-context: no further work.
# aligned at 2048 shares M = 4096 with every second length; it has seven times as many targets.
SCORING = [
    *("--documents", "20", "--max-tokens", "16385", "--length", "512,1024,2048,4096,8192,16384"),
    *("--protocol", "full-context", "--protocol", "last:k=256", "--protocol", "aligned:k=256"),
    *("--protocol", "aligned:k=256,every=2048@4096"),
]
# The KERPLE release's draw takes whole documents, so it is a run of its own: 64 samples a length, as 320 of
# 16,384 bytes would be three times the held-out text and two hours a model.
PACKED = ["--length", "512,1024,2048,4096,8192", "--protocol", "kerple-release:split=all,samples=64"]
POSITIONS = {4096: 128, 16384: 128}  # length: contexts a bin of the position-wise loss
LAST = 256  # DAPE's eval_last


@dataclass(frozen=True)
class Model:
    scheme: str
    corpus: str
    seed: int
    packed: bool = False  # scored on packed samples, after the models themselves
    bfloat16_too: bool = False  # trained a second time, to see what the precision changes

    @property
    def trained(self) -> str:
        return f"{self.scheme}-{self.corpus}-s{self.seed}" + ("-bfloat16" if self.bfloat16_too else "")

    @property
    def precision(self) -> str:
        return "bfloat16" if self.corpus == "sotu" or self.bfloat16_too else "float32"

    @property
    def name(self) -> str:
        return self.trained + ("-packed" if self.packed else "")

    @property
    def in_zoo(self) -> str | None:
        """The zoo's own name of a model trained on prose; None where it is trained here."""
        if self.corpus != "sotu" or self.scheme not in SCHEMES:
            return None
        return self.scheme if self.seed == 1 else f"{self.scheme}-s{self.seed}"


def models() -> list[Model]:
    """In the order they are made: a whole comparison of one seed is there first."""
    order = [Model(scheme, corpus, seed) for seed in SEEDS for corpus in TASKS for scheme in SCHEMES]
    order += [Model(PER_LAYER, "sotu", seed) for seed in SEEDS]
    order += [Model(*model, bfloat16_too=True) for model in BFLOAT16_TOO]
    return order + [Model(s, "sotu", seed, packed=True) for seed in SEEDS for s in ("kerple-log", PER_LAYER)]


def train(model: Model, out: Path, device: str) -> None:
    folder = out / "models" / model.trained
    if model.in_zoo or ((folder / "config.json").exists() and not (folder / "training-state.pt").exists()):
        return
    kerple_eval(
        *("train", "--scheme", SPELLED.get(model.scheme, model.scheme), "--task", TASKS[model.corpus]),
        *("--length", "512", "--seed", str(model.seed), *RECIPE),
        *("--precision", model.precision, "--device", device, "--out", str(folder)),
    )


def score(model: Model, out: Path, device: str) -> None:
    path = f"zoo:{model.in_zoo}" if model.in_zoo else f"native:{out / 'models' / model.trained}"
    kerple_eval(
        *("run", f"{model.trained}={path}", "--task", TASKS[model.corpus]),
        *(PACKED if model.packed else SCORING),
        *("--device", device, "--out", str(out / "runs" / model.name)),
    )


def kerple_eval(*arguments: str) -> None:
    """Run the command; Ctrl-C and SIGTERM are for it to answer: it keeps what it has, then ends."""
    print("$ kerple-eval", *arguments, flush=True)
    command = [sys.executable, "-m", "kerple_eval", *arguments]
    with subprocess.Popen(command) as child:
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the child as well
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        status = child.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if status:
        sys.exit(status if status > 0 else 128 - status)  # the command has said why


def keep(model: Model, out: Path) -> None:
    """What the tables are made of, small enough to commit.

    ``sums/NAME.parquet``: one row a (protocol, length, document): ``targets``, ``loss`` (their sum, nats),
    ``targets_hash`` (of all documents' targets); and with ``context`` c, of full-context, all documents
    together: the targets whose context is in (c - 128, c]. Its metadata hold the documents (name, tokens,
    sha256) and the scheme's parameters by name, where it has any. Of packed samples also the last 256
    targets of each window.
    """
    folder = out / "runs" / model.name
    with (folder / "summary.csv").open() as file:
        summary = list(csv.DictReader(file))
    if failed := [f"{row['protocol']} at {row['length']}" for row in summary if row["status"] != "ok"]:
        raise SystemExit(f"{model.name}: failed: {', '.join(failed)}")
    rows: list[dict[str, Any]] = []
    documents: dict[str, Any] = {}
    hashes = {(row["protocol"], int(row["length"])): row["targets_hash"] for row in summary}
    for path in sorted((folder / "cells").glob("*.parquet")):
        table = pq.read_table(path)
        header = json.loads(table.schema.metadata[b"kerple_eval"])
        key = header["cell"]["protocol"], header["cell"]["length"]
        documents |= {d["name"]: [d["tokens"], d["sha256"][:16]] for d in header["documents"]}
        rows += sums(*key, hashes[key], table)
    weights = None if model.in_zoo else out / "models" / model.trained / "model.safetensors"
    if model.in_zoo:
        weights = Path("kerple_eval/zoo") / model.in_zoo / "model.safetensors"
    order = ["protocol", "length", "document", "context"]
    rows.sort(key=lambda row: tuple(str(row[k] or "").rjust(6, " ") for k in order))
    kept = pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            {
                "protocol": pa.string(),
                "length": pa.int32(),
                "document": pa.string(),
                "context": pa.int32(),
                "targets": pa.int32(),
                "loss": pa.float64(),
                "targets_hash": pa.string(),
            }
        ),
    )
    for place in ("sums", "cards"):
        (HERE / place).mkdir(exist_ok=True)
    dictionaries = ["protocol", "length", "document", "targets", "context", "targets_hash"]
    with pq.ParquetWriter(
        HERE / "sums" / f"{model.name}.parquet", kept.schema, compression="zstd", compression_level=19,
        use_dictionary=dictionaries, write_statistics=False, store_schema=False,
    ) as writer:  # fmt: skip
        writer.write_table(kept)
        writer.add_key_value_metadata(
            {
                "documents": json.dumps(documents, sort_keys=True),
                "parameters": json.dumps(parameters(weights), sort_keys=True),
            }
        )
    if not model.in_zoo and not model.packed:
        card = (out / "models" / model.trained / "config.json").read_text()
        (HERE / "cards" / f"{model.name}.json").write_text(card)
    add_to_summary(summary)


def sums(protocol: str, length: int, targets_hash: str, table: pa.Table) -> Iterator[dict[str, Any]]:
    names = table["document"].to_pylist()
    windows = [np.asarray(row, dtype=np.float64) for row in table["losses"].to_pylist()]
    base = {"protocol": protocol, "length": length, "context": None, "targets_hash": targets_hash}
    parts = {protocol: windows}
    if protocol.startswith("kerple-release"):
        parts[f"{protocol} last {LAST}"] = [row[-LAST:] for row in windows]
    for part, losses in parts.items():
        for name in sorted(set(names)):
            mine = [row for row, owner in zip(losses, names, strict=True) if owner == name]
            yield base | {
                "protocol": part,
                "targets_hash": targets_hash if part == protocol else None,
                "document": name,
                "targets": sum(map(len, mine)),
                "loss": float(sum(row.sum() for row in mine)),
            }
    if protocol == "full-context" and length in POSITIONS:
        width = POSITIONS[length]
        for first in range(0, length, width):
            pieces = [row[first : first + width] for row in windows]
            yield base | {
                "document": None,
                "context": first + width,
                "targets": sum(map(len, pieces)),
                "loss": float(sum(piece.sum() for piece in pieces)),
            }


def parameters(weights: Path) -> dict[str, Any]:
    """The scheme's own parameters, such as r1 and r2 by head, to seven digits."""
    if not weights.exists():  # an installed package keeps its zoo elsewhere
        import kerple_eval  # noqa: PLC0415

        weights = Path(str(kerple_eval.__file__)).parents[1] / weights
    with safe_open(weights, "np") as file:
        names = [name for name in file.keys() if "scheme." in name]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    return {
        name: np.array([float(f"{x:.7g}") for x in tensor.ravel()]).reshape(tensor.shape).tolist()
        for name, tensor in tensors.items()
    }


def add_to_summary(rows: list[dict[str, str]]) -> None:
    with (HERE / "summary.csv").open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # models may be made side by side
        file.seek(0)
        new = {(row["model"], row["protocol"], row["length"]) for row in rows}
        held = [r for r in csv.DictReader(file) if (r["model"], r["protocol"], r["length"]) not in new] + rows
        held.sort(key=lambda row: (row["task"], row["protocol"], row["model"], int(row["length"])))
        file.truncate(0)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(held)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("out/corpora"), help="weights and cells")
    options.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train, and to score in float32"
    )
    options.add_argument("--list", action="store_true", help="the names, in order")
    options.add_argument("names", nargs="*", metavar="NAME", help="these models only")
    given = options.parse_args()
    known = {model.name: model for model in models()}
    if given.list:
        print("\n".join(known))
        return
    for name in given.names:
        if name not in known:
            options.error(f"{name}: no such model; --list names them")
    os.chdir(ROOT)
    if not Path("out/corpora/texts/latex").is_dir():
        subprocess.run([sys.executable, str(HERE / "texts.py")], check=True)
    for name in given.names or known:
        finished = given.out / "runs" / f"{name}.kept"
        if not finished.exists():
            train(known[name], given.out, given.device)
            score(known[name], given.out, given.device)
            keep(known[name], given.out)
            finished.touch()
    if not given.names:
        subprocess.run([sys.executable, str(HERE / "report.py")], check=True)


if __name__ == "__main__":
    main()
