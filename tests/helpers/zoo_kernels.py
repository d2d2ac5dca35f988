"""The kernels of the shipped models as formulas, from their files' own parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

from safetensors.torch import load_file

from kerple_eval.models.open import open_model, parse_model
from kerple_eval.models.scheme_view import SchemeView, view
from kerple_eval.models.zoo import ZOO

Formula = Callable[[int, int], float]  # of head and distance


def stored(name: str) -> dict[str, list[float]]:
    """A shipped model's scheme parameters, read from its file."""
    tensors = load_file(ZOO / name / "model.safetensors")
    return {k.removeprefix("scheme."): x.double().tolist() for k, x in tensors.items() if "scheme." in k}


def log_formula() -> Formula:
    r = stored("kerple-log")
    return lambda h, d: -r["r1"][h] * math.log(1 + r["r2"][h] * d)


def power_formula() -> Formula:
    r = stored("kerple-power")
    return lambda h, d: -r["r1"][h] * d ** r["r2"][h] if d else 0.0


def alibi_formula() -> Formula:
    return lambda h, d: -(2.0 ** (-8 * (h + 1) / 4)) * d


def t5_formula() -> Formula:
    """Bucket edges found by whole numbers: D^16 against 16^16 8^k, so that no logarithm decides."""
    table = tensors = stored("t5")["relative_bias"]

    def bucket(d: int) -> int:
        if d < 16:
            return d
        return max(16 + k for k in range(16) if d**16 >= 16**16 * 8**k)

    assert len(tensors) == 32
    return lambda h, d: table[bucket(d)][h]


FORMULAS = {
    "kerple-log": log_formula, "kerple-power": power_formula, "alibi": alibi_formula, "t5": t5_formula,
}  # fmt: skip


def zoo(name: str, hooks: tuple[str, ...] = ("kernel", "bias")) -> SchemeView:
    return view(open_model(parse_model(f"zoo:{name}")), name, hooks)
