"""Block sizes of FlexAttention's compiled loop: the widest whose program fits the card's shared memory.

torch's own choice does not look at what the score reads. At head size 64 in two bytes it is 128 x 128 with
three stages: with one table in the score that asks for 245,760 bytes, where an H100 allows 232,448, and every
call fails. With M queries and N keys a block, d the head size rounded up to a power of two, b bytes a number
and S stages, a forward program holds the block's queries, S blocks of keys and of values, and S - 1 blocks of
each table's values in float32:

    M d b + 2 S N d b + tables (S - 1) M N 4

Compiled for sm_90 (torch 2.11, Triton 3.6) that is the figure to the byte in two bytes, and above it in four.
The backward program's blocks do not follow from the forward's: what its widest case (head size 128, a table
and a weight) was compiled to stands in :data:`BACKWARD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from kerple_eval.schemes.base import Scheme


@dataclass(frozen=True)
class BlockSizes:
    """Queries and keys of a block, and stages of the loop that loads keys ahead."""

    queries: int
    keys: int
    stages: int

    def shared_memory(self, head_dim: int, itemsize: int, tables: int) -> int:
        """Bytes of the forward program."""
        dim = max(16, 1 << (head_dim - 1).bit_length())
        own = self.queries * dim * itemsize
        loaded = 2 * self.stages * self.keys * dim * itemsize
        return own + loaded + tables * (self.stages - 1) * self.queries * self.keys * 4

    def options(self, limit: int) -> dict[str, int]:
        """``kernel_options`` of ``flex_attention`` on a card that allows ``limit`` bytes."""
        forward = {"BLOCK_M": self.queries, "BLOCK_N": self.keys, "num_stages": self.stages}
        backward = next((o for size, o in BACKWARD if size + RESERVED <= limit), BACKWARD[-1][1])
        return {f"fwd_{name}": value for name, value in forward.items()} | {
            f"bwd_{name}": value for name, value in backward.items()
        }


#: Widest first. 128 x 64 with two stages serves every scheme at head sizes up to 128 on an H100.
CHOICES = (BlockSizes(128, 64, 2), BlockSizes(64, 64, 2), BlockSizes(64, 32, 2), BlockSizes(32, 32, 2))
#: Bytes of the backward program and its options, the fastest first; torch chooses what is not named.
BACKWARD: tuple[tuple[int, dict[str, int]], ...] = (
    (200_704, {"num_stages": 2}),
    (114_688, {"num_stages": 1}),
    (32_768, {"num_stages": 1, "BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32}),
)
RESERVED = 2048  # bytes that the card and the compiler keep: 1024 and some alignment


def tables_of(scheme: Scheme) -> int:
    """How many tables of distance the loop reads for a score."""
    looked_up = scheme.implements("kernel") and not scheme.implements("inline")
    return int(looked_up) + int(scheme.implements("weight"))


def choose(head_dim: int, itemsize: int, tables: int, limit: int) -> BlockSizes | None:
    """The widest of :data:`CHOICES` within ``limit`` bytes of shared memory; None where none is.

    In four bytes wide blocks overflow the registers (15,624 bytes a thread at 128 x 64, 352 at 64 x 32).
    """
    choices = CHOICES if itemsize < 4 else CHOICES[2:]
    fitting = (c for c in choices if c.shared_memory(head_dim, itemsize, tables) + RESERVED <= limit)
    return next(fitting, None)


@lru_cache
def shared_memory_limit(device: torch.device) -> int:
    """Bytes of shared memory that a block of threads may ask for."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 49152))  # torch has no promise of it
