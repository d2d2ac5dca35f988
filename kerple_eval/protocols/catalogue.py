"""The protocols, one entry each, and how one is made from its name."""

from __future__ import annotations

from kerple_eval.protocols.base import Protocol
from kerple_eval.support.registry import Entry, Registry
from kerple_eval.support.specs import parse_spec, typed_options

PROTOCOLS = Registry("protocol", "kerple_eval.protocols", Entry, (
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
        "[split=test,seed=1234,samples=320]: the samples that the KERPLE release draws; better: aligned",
    ),
    Entry(
        "lm-eval-rolling", "kerple_eval.protocols.lm_eval_rolling:LmEvalRolling",
        "[prefix_token_id=ID]: lm-evaluation-harness, disjoint windows after a prefix token; "
        "better: sliding-window",
    ),
    Entry(
        "yarn", "kerple_eval.protocols.yarn:Yarn",
        "[stride=256,truncate=false]: YaRN's script, BOS in every window, unweighted mean over windows; "
        "better: sliding-window",
    ),
    Entry(
        "hf-guide", "kerple_eval.protocols.hf_guide:HfGuide",
        "[stride=512]: the Hugging Face perplexity guide, with its miscount of one target per window; "
        "better: sliding-window",
    ),
    Entry(
        "dape", "kerple_eval.protocols.dape:Dape",
        "[k=256,batch=1]: DAPE, the last min(k, L) targets of whole windows, mean over batches; "
        "better: aligned",
    ),
    Entry(
        "llama-cpp", "kerple_eval.protocols.llama_cpp:LlamaCpp",
        "llama.cpp's perplexity tool: the second half of each chunk of n_ctx; better: sliding-window",
    ),
    Entry(
        "gptq", "kerple_eval.protocols.gptq:Gptq",
        "the quantisation papers (GPTQ, AWQ, ...): chunks of L tokens of one joined text; better: "
        "sliding-window",
    ),
    Entry(
        "answer", "kerple_eval.protocols.answer:AnswerProtocol",
        "for synthetic tasks (passkey, ...): the answer at the end of each window, its loss and exact match",
    ),
))  # fmt: skip


def make_protocol(text: str) -> tuple[Protocol, str]:
    """``NAME:key=value`` -> the protocol and its canonical string, options in the order of its parameters."""
    spec = parse_spec(text)
    cls = PROTOCOLS.load(spec.name)
    options = typed_options(cls.__init__, dict(spec.options), spec.name)
    written = ",".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())
    protocol: Protocol = cls(**options)
    return protocol, spec.name + (f":{written}" if written else "")
