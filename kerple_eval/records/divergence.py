"""What a cell holds of a model's predictions against a reference's, one value a target, window after window.

Columns of the cell's file beside the losses, all of them or none (formulas and source:
:mod:`kerple_eval.models.divergence`):

    divergence   list<float32>   nats; may lie below 0 by rounding where the predictions are equal
    agreement    list<bool>      whether both models have the same largest logit
    entropy      list<float32>   of the scored model's prediction, nats
    rank         list<int32>     of the target by the scored model; 1 is the largest logit

Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerple_eval.records.header import DivergenceRecord
from kerple_eval.support.differences import Difference, differences
from kerple_eval.support.typed_json import to_json

if TYPE_CHECKING:
    import pyarrow as pa

#: Names, in the order in which they are scored, with the type of a value on disk and in memory.
COLUMNS: Mapping[str, tuple[str, type[np.generic]]] = {
    "divergence": ("float32", np.float32), "agreement": ("bool", np.bool_),
    "entropy": ("float32", np.float32), "rank": ("int32", np.int32),
}  # fmt: skip
ROUNDING = 1e-6  # nats below 0 that a divergence or an entropy may have


@dataclass(frozen=True)
class Divergence:
    """``columns``: name -> of each window, one value a target ``[targets]``."""

    columns: Mapping[str, Sequence[NDArray[Any]]]

    @classmethod
    def of_rows(cls, rows: Sequence[NDArray[np.float32]]) -> Divergence:
        """From what scoring gives of each window: ``[4, targets]`` float32."""
        return cls(
            {
                name: [row[i].astype(kind) for row in rows]
                for i, (name, (_, kind)) in enumerate(COLUMNS.items())
            }
        )

    def rows(self) -> list[NDArray[np.float32]]:
        """:meth:`of_rows` undone: ``[4, targets]`` float32 a window."""
        return [np.stack(parts).astype(np.float32) for parts in zip(*self.columns.values(), strict=True)]

    def flat(self, name: str) -> NDArray[Any]:
        """All targets' values of a column, window after window."""
        return np.concatenate(self.columns[name])

    @property
    def sha256(self) -> str:
        """Of every value, in little-endian order, column by column."""
        digest = hashlib.sha256()
        for name in COLUMNS:
            column = self.flat(name)
            digest.update(len(column).to_bytes(8, "little"))
            digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def check(self) -> None:
        """Raises:
        ValueError: what scoring would not have kept.
        """
        for name in ("divergence", "entropy"):
            values = self.flat(name)
            if not (np.isfinite(values).all() and (values >= -ROUNDING).all()):
                raise ValueError(f"column {name} has a value that is negative or not finite")
        if not (self.flat("rank") >= 1).all():
            raise ValueError("column rank has a value below 1")


def other_reference(held: DivergenceRecord, other: DivergenceRecord) -> list[Difference]:
    """How the references of two cells with divergences differ, by more than labels and feeding."""
    return differences(
        *(
            to_json(replace(one, reference=replace(one.reference, label=""), feeding=None))
            for one in (held, other)
        )
    )


def arrow_type(name: str) -> pa.DataType:
    """Of a column's lists."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.list_(pa.type_for_alias(COLUMNS[name][0]))
