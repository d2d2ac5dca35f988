"""double[:cue=0]: random ids 1..V-1, one of them twice in a row at ``depth``; then cue, and that id."""

from pathlib import Path

import numpy as np

from kerple_eval.data.synthetic.base import Generator, SyntheticDocument
from kerple_eval.data.task import TaskFile
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.support.registry import Entry
from kerple_eval.types import UserError


class Double(Generator):
    of_ids = True  # documents are token ids: no tokeniser is needed

    def __init__(self, *, cue: int = 0) -> None:
        self.cue = cue

    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        size = length + 1 - 2
        if size < 2:
            raise UserError(f"double: length {length} is too short; use lengths from 3 on")
        ids = rng.integers(1, model.vocabulary, size=size)
        at = round(depth * (size - 2))
        ids[at + 1] = ids[at]
        return SyntheticDocument(np.concatenate([ids, [self.cue, ids[at]]]), answer=1)


ENTRY = Entry("double", "kerple_double:Double", "[cue=0]: an id that stands twice in a row")
TASK = TaskFile("double", str(Path(__file__).with_name("double.yaml")))
