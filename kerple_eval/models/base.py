"""What every checkpoint format offers: a description without weights, then a model to score with.

Opening a checkpoint validates it whole (configuration, tensor names, shapes, sizes on disk) without
putting weights on a device, so that a run refuses a broken one before its first cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.models.feeding import Feeding
from kerple_eval.types import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kerple_eval.models.decoder.network import Decoder
    from kerple_eval.models.decoder.pruning import PrunedShare


#: Logits formed at once, by device: 32 MB in float32 on the CPU, where more gains nothing; half a gigabyte in
#: two bytes on a card, whose matrix units want thousands of rows.
HEAD_CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}


def head_rows(device: torch.device, batch: int, vocabulary: int) -> int:
    """How many positions of each of ``batch`` windows the head takes at once."""
    elements = HEAD_CHUNK_ELEMENTS.get(device.type, HEAD_CHUNK_ELEMENTS["cpu"])
    return max(1, elements // (batch * vocabulary))


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that decide how much memory and work a window takes."""

    layers: int
    width: int  # hidden size
    heads: int
    kv_heads: int  # fewer than heads where queries share keys and values
    head_dim: int
    mlp_width: int


@dataclass(frozen=True)
class Description:
    """What a checkpoint is. ``seed`` and ``train_length`` (tokens) are None where unknown.

    ``details`` belong to the run's specification: whatever else decides the losses, without file paths.
    ``warnings`` are for people: what was changed or left out in reading.
    """

    format: str
    scheme: str
    vocab_size: int
    parameters: int
    train_length: int | None
    seed: int | None
    prefix_invariant: bool
    max_length: int | None  # longest window its positions are defined for; None: no limit
    weights_sha256: str
    architecture: str
    shape: Shape
    stored_dtypes: tuple[str, ...]  # as safetensors spells them: F32, BF16, F16, ...
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    eager: bool = False  # whether attention forms its whole matrix of scores [B, H, L, L]


class LanguageModel(ABC):
    """A model on its device, ready to score."""

    device: torch.device
    dtype: torch.dtype
    attention: str = "own"  # the backend that computes it ("own": the model's own code); cells record it
    feeding: Feeding | None = None  # how windows longer than a piece are fed; None: each in one pass
    together: bool = False  # whether each rank holds a part of it, so that all of them score the same windows

    def take_pruned(self) -> PrunedShare | None:
        """What attention left out since the last call; None where it leaves nothing out."""
        return None

    @abstractmethod
    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        """Logits of the last ``rows`` positions of ``inputs [B, N]`` (int64, on ``device``).

        Yields consecutive chunks ``[B, r, V]`` whose r add up to ``rows``, so that [rows, V] need
        never exist at once. The logits at position p predict token p + 1. Two of these iterators may be
        read in turns (a model compared with itself).
        """


class Checkpoint(ABC):
    """A validated checkpoint on disk."""

    tokenizer_option: str = ""  # how a tokeniser is given where the checkpoint has none
    attention: str = "auto"  # how the loaded model computes attention; see ``set_attention``
    feeds_pieces: bool = False  # whether the loaded model can be fed a window in pieces
    feeding: Feeding | None = None  # what the loaded model begins with as its own; for ``feeds_pieces`` alone

    @classmethod
    @abstractmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether ``folder`` looks like this format, from its contents alone."""

    @classmethod
    @abstractmethod
    def open(cls, location: str, options: dict[str, str]) -> Checkpoint:
        """The checkpoint at ``location`` (a folder, a name or an id), validated.

        Raises:
            UserError: what is wrong with which file or option.
        """

    @property
    @abstractmethod
    def description(self) -> Description: ...

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """None where the checkpoint has none; then only token ids can be scored."""

    def scheme_parameters(self) -> dict[str, list[float]]:
        """The scheme's learned parameters by name, flattened (KERPLE: r1 and r2, one number per head)."""
        return {}

    def decoder(self) -> Decoder:
        """The native decoder, on CPU, that computes the same function as this checkpoint.

        Raises:
            UserError: the native decoder cannot compute it.
        """
        raise UserError(
            f"{self.description.format}: {self.description.architecture} has no native form, "
            "so it cannot be converted"
        )

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        """Choose how the model that ``load`` returns computes attention.

        ``attention`` is one of :data:`kerple_eval.models.decoder.backends.ATTENTION_CHOICES`. Call it before
        reading ``description``, which may record the choice.

        Raises:
            UserError: this model, device or dtype cannot be computed by the named backend.
        """
        self.attention = attention

    def check_ranks(self, count: int) -> None:  # noqa: B027 - most can be scored by any number
        """The model can be scored by ``count`` processes.

        Raises:
            UserError: it is to be held in parts, and cannot be cut into so many.
        """

    def auto_dtype(self, device: torch.device) -> torch.dtype:
        """What ``--dtype auto`` scores the model in on ``device``."""
        import torch  # noqa: PLC0415 - a checkpoint can be described without it

        return torch.float32

    def check_weights(self, device: torch.device, dtype: torch.dtype) -> None:  # noqa: B027 - few need it
        """Check what can be known from the weights alone; called before the first cell of a run.

        Raises:
            UserError: the model cannot be scored.
        """

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The precision in which the model that ``load`` returns for ``dtype`` computes."""
        return dtype

    @abstractmethod
    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """Weights to ``device`` in ``dtype``."""
