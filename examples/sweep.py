"""A sweep with a table for a paper: ``python sweep.py [DOCUMENTS]``.

Models by lengths under two protocols, with a LaTeX table, a figure and the answer to "is it real?". Started
again after a stop, it goes on.
"""

import sys
from pathlib import Path

import kerple_eval

documents = int(sys.argv[1]) if len(sys.argv) > 1 else 10
models = {
    "KERPLE-log": "zoo:kerple-log",
    "ALiBi": "zoo:alibi",
    "RoPE": "zoo:rope",
    "RoPE + window": "zoo:rope,window=512",
    "RoPE + YaRN": "zoo:rope,extend=yarn,factor=4",
}
run = kerple_eval.evaluate(
    models,
    tasks="sotu",
    documents=documents,
    max_tokens=2049,
    lengths=[512, 1024, 2048],
    protocols=["full-context", "aligned:k=256,every=256"],
    out="runs/sweep",
)
Path("table.tex").write_text(run.table("latex"))
print(run.table())
print(run.compare(against="KERPLE-log", protocol="full-context"))
print(run.plot("curve", "curve.pdf"), run.report("page.html")[0])
