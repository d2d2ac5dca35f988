"""The generators of synthetic documents, one entry each, and how a name becomes one."""

from __future__ import annotations

from kerple_eval.data.synthetic.base import Generator
from kerple_eval.support.registry import Entry, Registry
from kerple_eval.support.specs import parse_spec, typed_options
from kerple_eval.types import Spec

GENERATORS = Registry("generator", "kerple_eval.generators", Entry, (
    Entry(
        "passkey", "kerple_eval.data.synthetic.passkey:Passkey",
        "[digits=5]: a number given once in repeated prose",
    ),
    Entry("needle", "kerple_eval.data.synthetic.needle:Needle", "a sentence once in varied prose"),
    Entry(
        "copy", "kerple_eval.data.synthetic.copying:Copy",
        "[cue=8,answer=8,ids=all]: random ids, a part of them repeated at the end",
    ),
    Entry(
        "associative-recall", "kerple_eval.data.synthetic.associative_recall:AssociativeRecall",
        "[pairs=8,ids=all]: keys with values among noise, one key asked for",
    ),
))  # fmt: skip


def make_generator(text: str) -> tuple[Generator, str]:
    """``NAME:key=value`` -> the generator and its canonical string."""
    spec = parse_spec(text)
    cls = GENERATORS.load(spec.name)
    options = typed_options(cls.__init__, dict(spec.options), spec.name)
    made: Generator = cls(**options)
    return made, str(Spec(spec.name, tuple((k, str(v)) for k, v in options.items())))
