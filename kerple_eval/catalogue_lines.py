"""The lines of every catalogue but the schemes' (``scheme_lines.py``): one entry of one file each.

A line says where an entry lives (``module:attribute``) and what a listing needs, so that
``kerple-eval list`` imports none of the entries.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One protocol, checkpoint format or report; ``takes`` is what a report is made of."""

    name: str
    target: str
    summary: str
    takes: str = "runs"  # or "models"


PROTOCOLS = (
    Entry(
        "full-context", "kerple_eval.protocols.full_context:FullContext",
        "non-overlapping windows; every target once, contexts 1..L (KERPLE)",
    ),
    Entry(
        "sliding-window", "kerple_eval.protocols.sliding_window:SlidingWindow",
        "stride=S: every target once, contexts L-S+1..L after the first window (ALiBi, YaRN)",
    ),
    Entry(
        "last", "kerple_eval.protocols.last:Last",
        "k=K: the last K targets of each whole non-overlapping window (DAPE, FIRE)",
    ),
    Entry(
        "aligned", "kerple_eval.protocols.aligned:Aligned",
        "k=K[,every=E]: the same targets at every length, contexts L-K+1..L",
    ),
    Entry(
        "prefix", "kerple_eval.protocols.prefix:Prefix",
        "the first L tokens from the same starts; one pass serves every length where possible",
    ),
    Entry(
        "kerple-release", "kerple_eval.protocols.kerple_release:KerpleRelease",
        "[split=test,seed=1234,samples=320]: the KERPLE release's own draw, faults and all; sound: aligned",
    ),
    Entry(
        "lm-eval-rolling", "kerple_eval.protocols.lm_eval_rolling:LmEvalRolling",
        "[prefix_token_id=ID]: lm-evaluation-harness, disjoint windows after a prefix token; "
        "sound: sliding-window",
    ),
    Entry(
        "yarn", "kerple_eval.protocols.yarn:Yarn",
        "[stride=256,truncate=false]: YaRN's script, BOS in every window, unweighted mean over windows; "
        "sound: sliding-window",
    ),
    Entry(
        "hf-guide", "kerple_eval.protocols.hf_guide:HfGuide",
        "[stride=512]: the Hugging Face perplexity guide, one target a window miscounted; "
        "sound: sliding-window",
    ),
    Entry(
        "dape", "kerple_eval.protocols.dape:Dape",
        "[k=256,batch=1]: DAPE, the last min(k, L) targets of whole windows, mean over batches; "
        "sound: aligned",
    ),
    Entry(
        "answer", "kerple_eval.protocols.answer:Answer",
        "of made tasks (passkey, ...): the answer at the end of each window, loss and exact match",
    ),
)  # fmt: skip

GENERATORS = (
    Entry(
        "passkey", "kerple_eval.data.synthetic.passkey:Passkey",
        "[digits=5]: a number told once in repeated prose",
    ),
    Entry("needle", "kerple_eval.data.synthetic.needle:Needle", "a town's thing told once in varied prose"),
    Entry(
        "copy", "kerple_eval.data.synthetic.copying:Copy",
        "[cue=8,answer=8,ids=all]: random ids, a stretch of them begun again",
    ),
    Entry(
        "associative-recall", "kerple_eval.data.synthetic.associative_recall:AssociativeRecall",
        "[pairs=8,ids=all]: keys with values among noise, one key asked for",
    ),
)  # fmt: skip

FORMATS = (
    Entry(
        "native", "kerple_eval.checkpoints.native:NativeCheckpoint",
        "native:DIR, what `kerple-eval train` writes: config.json, model.safetensors",
    ),
    Entry(
        "neox", "kerple_eval.checkpoints.neox:NeoxCheckpoint",
        "neox:DIR, GPT-NeoX and the KERPLE release: latest, global_stepN/layer_XX-model_YY-model_states.pt",
    ),
    Entry(
        "zoo", "kerple_eval.checkpoints.zoo:ZooCheckpoint",
        "zoo:NAME, the checkpoints shipped inside this package",
    ),
    Entry(
        "hf", "kerple_eval.checkpoints.hf:HfCheckpoint",
        "hf:PATH_OR_ID[@revision], causal models of transformers: safetensors, GGUF or pickled",
    ),
)  # fmt: skip

REPORTS = (
    Entry("table", "kerple_eval.reports.table:render", "perplexity against length, models down"),
    Entry(
        "explain",
        "kerple_eval.reports.explain:render",
        "why loss changed with length: dilution, context gain",
    ),
    Entry("curve", "kerple_eval.reports.curve:draw", "perplexity against length, log-log"),
    Entry("position", "kerple_eval.reports.position:draw", "mean loss, or perplexity, against context"),
    Entry("ratio", "kerple_eval.reports.ratio:draw", "perplexity as a ratio to one scheme's, by length"),
    Entry("scatter", "kerple_eval.reports.scatter:draw", "two schemes document by document"),
    Entry("page", "kerple_eval.reports.page:write", "one HTML page: tables, figures, provenance of numbers"),
    Entry("depth", "kerple_eval.reports.depth:draw", "exact match and loss of answers by length and depth"),
    Entry("answers", "kerple_eval.reports.answers:render", "exact match and loss of answers, as a table"),
    Entry(
        "longppl", "kerple_eval.reports.longppl:render",
        "perplexity on the tokens that need long context, chosen by a reference model",
    ),
    Entry("kernels", "kerple_eval.reports.kernels:draw", "learned kernels against distance", "models"),
    Entry(
        "effective-length", "kerple_eval.reports.effective_length:draw",
        "how many heads' kernels have fallen by more than 2 within a distance", "models",
    ),
    Entry("matrix", "kerple_eval.reports.matrix:draw", "one head's bias as a causal heat map", "models"),
    Entry(
        "compare", "kerple_eval.reports.compare:render", "schemes against one: difference, interval, tests"
    ),
    Entry("intervals", "kerple_eval.reports.intervals:render", "how sure each number is: text, seeds, both"),
)  # fmt: skip
