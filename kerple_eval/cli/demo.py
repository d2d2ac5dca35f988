"""``kerple-eval demo``: scores the models that the package ships; ends in a table, figures and a page."""

from __future__ import annotations

import time
from pathlib import Path

from kerple_eval.cli import run as run_command
from kerple_eval.cli.errors import typed_words
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.models.zoo import first_seeds
from kerple_eval.reports.figures import curve, position
from kerple_eval.reports.page import page

DEMO_PROTOCOLS = ("full-context", "sliding-window:stride=512@4096", "aligned:k=128,every=1024@4096")
DOCUMENTS = 2
MAX_TOKENS = 16385


def run(out: str) -> int:
    """Score seven schemes, trained at 512 bytes, up to 16,384 on held-out speeches; the exit status."""
    models = [f"zoo:{name}" for name in first_seeds()]
    print(
        f"{len(models)} decoders trained at 512 bytes, one a positional scheme, on held-out speeches "
        f"of the task sotu: {DOCUMENTS} documents of {MAX_TOKENS:,} bytes"
    )
    began = time.monotonic()
    request = RunRequest.of(
        models=models, out=out, tasks="sotu", protocols=DEMO_PROTOCOLS, documents=DOCUMENTS,
        max_tokens=MAX_TOKENS, typed=typed_words(),
    )  # fmt: skip
    status = run_command.run(request)
    if status == 130:
        return status
    folder = Path(out)
    for kind, make in (("curve", curve.make), ("position", position.make)):
        make([folder], folder / f"{kind}.png")
        print(f"figure: {folder / f'{kind}.png'}")
    for path in page.make([folder]):
        print(f"report: {path}  ({time.monotonic() - began:.0f} s)")
    return status
