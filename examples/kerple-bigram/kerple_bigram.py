"""bigram:FILE.json, {"counts": [[...], ...]}: P(b | a) = (counts[a][b] + 1) / (sum of counts[a] + V)."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kerple_eval.models.base import Checkpoint, Description, LanguageModel, Shape
from kerple_eval.support.registry import Entry
from kerple_eval.types import UserError


class BigramModel(LanguageModel):
    def __init__(self, logarithms: Tensor) -> None:
        self.table = logarithms  # [V, V]
        self.device = logarithms.device
        self.dtype = logarithms.dtype

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        yield self.table[inputs[:, -rows:]]  # [B, rows, V]; position p predicts token p + 1


class BigramCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
            self.counts = torch.tensor(json.loads(content)["counts"], dtype=torch.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a table of counts ({error})") from None
        if self.counts.ndim != 2 or self.counts.shape[0] != self.counts.shape[1]:
            raise UserError(f"{path}: counts must be V x V, got {list(self.counts.shape)}")
        self.sha256 = hashlib.sha256(content).hexdigest()

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return False  # always named: bigram:FILE.json

    @classmethod
    def open(cls, location: str, options: dict[str, str]) -> "BigramCheckpoint":
        if options:
            raise UserError(f"bigram: takes no options, got {', '.join(options)}")
        return cls(Path(location))

    @property
    def description(self) -> Description:
        size = self.counts.shape[0]
        return Description(
            format="bigram",
            scheme="none",
            vocab_size=size,
            parameters=size * size,
            train_length=None,
            seed=None,
            prefix_invariant=True,
            max_length=None,
            weights_sha256=self.sha256,
            architecture="bigram table",
            shape=Shape(layers=1, width=size, heads=1, kv_heads=1, head_dim=size, mlp_width=size),
            stored_dtypes=("F64",),
        )

    @property
    def tokenizer(self) -> None:
        return None  # token ids only; see kerple_eval.data.tokenizer.BYTE_TOKENIZER for bytes

    def load(self, device: torch.device, dtype: torch.dtype) -> BigramModel:
        probability = (self.counts + 1) / (self.counts.sum(dim=1, keepdim=True) + len(self.counts))
        return BigramModel(probability.log().to(device, dtype))


ENTRY = Entry("bigram", "kerple_bigram:BigramCheckpoint", "bigram:FILE.json, a table of counts")
