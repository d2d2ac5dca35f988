"""A window in pieces: the model's own cache carries what came before; activations are those of a piece.

The pieces ``inputs[:, a:b]`` go through the model's own ``forward`` one after another, each with the cache
that the call before returned: keys and values of what a query may still see, and the states of recurrent
layers. The model makes the cache (in transformers ``DynamicCache(config=...)``, one kind of layer for each of
its own) and takes positions and masks from its length. The argument is the first of ``CACHE`` that
``forward`` names, since the others are deprecated there: ``cache`` in release 5.24, ``past_key_values`` or
``cache_params`` in earlier ones, ``state`` of RWKV.

Whether a model's cache gives that is measured. Of the first window longer than a piece, and again of each
that is longer than those before, the logits after borders of pieces and at pieces' ends are compared with
those of one pass. transformers' Mamba-1, for one, begins each piece of several tokens with a state of zeros
(``mamba_selective_scan`` takes none, release 5.24). Such a model is scored in one pass, and says why.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kerple_eval.models.feeding import Feeding
from kerple_eval.models.hf.foreign import one_line
from kerple_eval.models.hf.rope import LENGTH_DEPENDENT, rope_types

CACHE = ("cache", "past_key_values", "cache_params", "state")
BORDERS = 3  # borders of pieces that are compared at least, where a window has tokens enough
_MOST_ROWS = 64  # rows of logits kept for the comparison
#: Root mean square of the difference of two rows of logits, over the spread (standard deviation) of the row.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # half precision: 5e-2

#: ``(inputs [B, N], rows, cache arguments)`` -> chunks of logits ``[B, r, V]`` of the last rows, each with
#: what ``forward`` returned.
Pass = Callable[..., Iterator[tuple[Tensor, Any]]]


class NoCacheError(Exception):
    """The model cannot be fed in pieces; the message says why."""


def cache_argument(model: Any) -> str | None:
    """The name of ``forward``'s argument that takes a cache; None where there is none."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in CACHE if name in known), None)


def in_pieces(one_pass: Pass, model: Any, inputs: Tensor, rows: int, piece: int) -> Iterator[Tensor]:
    """Logits of the last ``rows`` positions of ``inputs [B, N]``, ``[B, r, V]`` a chunk, fed piece by piece.

    The head sees scored rows only, as in one pass.

    Raises:
        NoCacheError: ``forward`` takes no cache, or returns none.
    """
    argument = cache_argument(model)
    if argument is None:
        raise NoCacheError(f"{type(model).__name__}.forward takes no cache")
    length = inputs.shape[1]
    cache: dict[str, Any] = {}
    for start in range(0, length, piece):
        stop = min(start + piece, length)
        wanted = min(stop - start, max(0, stop - (length - rows)))
        found = None
        for logits, output in one_pass(inputs[:, start:stop], wanted, use_cache=True, **cache):
            found = getattr(output, argument, None)
            if wanted:
                yield logits
        if found is None:
            raise NoCacheError(f"{type(model).__name__} returns no cache")
        cache = {argument: found}


def serves(feeding: Feeding, one_pass: Pass, model: Any, inputs: Tensor, dtype: torch.dtype) -> bool:
    """Whether to feed ``inputs [B, N]`` in pieces; compares with one pass where that is not yet known."""
    length = inputs.shape[1]
    if length <= feeding.piece or feeding.refused is not None:
        return False
    following = [
        name for name in rope_types(model.config.get_text_config(decoder=True)) if name in LENGTH_DEPENDENT
    ]
    if following:
        feeding.refused = f"its rotary frequencies follow the length of the window ({', '.join(following)})"
        return False
    reach = length if feeding.one_pass is None else min(length, max(feeding.one_pass, _least(feeding.piece)))
    if reach <= feeding.compared:
        return True
    while True:
        try:
            feeding.refused = _difference(one_pass, model, inputs[:1, :reach], feeding.piece, dtype)
            break
        except torch.OutOfMemoryError:
            if reach <= _least(feeding.piece):
                raise
        reach = max(reach // 2, _least(feeding.piece))  # outside the handler, which holds the tensors
        feeding.one_pass = reach
        torch.cuda.empty_cache()
    feeding.compared = reach if feeding.refused is None else feeding.compared
    return feeding.refused is None


def _least(piece: int) -> int:
    """Tokens that have enough borders."""
    return (BORDERS + 1) * piece


def _difference(one_pass: Pass, model: Any, inputs: Tensor, piece: int, dtype: torch.dtype) -> str | None:
    """Where pieces and one pass disagree on ``inputs [1, N]``, in words; None where they agree."""
    length = inputs.shape[1]
    sizes = {piece, piece if length > BORDERS * piece else max(1, length // (BORDERS + 1))}
    for size in sorted(sizes):
        places = _places(length, size)
        try:
            parts = _at(places, in_pieces(one_pass, model, inputs, length, size))
        except (NoCacheError, torch.OutOfMemoryError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return str(error)
        except Exception as error:  # a cache may raise anything where it does not serve pieces
            cause = error.__cause__ or error
            return f"it cannot go on from its cache ({type(cause).__name__}: {one_line(cause, 120)})"
        if len(parts) != len(places):
            return "it does not give logits of all of a piece's tokens when it goes on from its cache"
        whole = _at(places, (logits for logits, _ in one_pass(inputs, length)))
        apart = (parts - whole).square().mean(-1).sqrt() / whole.std(-1)
        beyond = ~(apart <= _TOLERANCE.get(dtype, 5e-2))  # NaN is beyond
        if beyond.any():
            row = int(beyond.nonzero()[0])
            return (
                f"its cache does not carry all that came before: in pieces of {size} its logits after "
                f"{places[row] + 1} tokens differ from those of one pass by {float(apart[row]):.1g} of their "
                "spread"
            )
    return None


def _places(length: int, piece: int) -> list[int]:
    """Positions after each border of pieces and at the end of the piece that begins there; some, if many."""
    borders = range(piece, length, piece)
    places = sorted({place for b in borders for place in (b, min(b + piece, length) - 1)})
    if len(places) <= _MOST_ROWS:
        return places
    kept = torch.linspace(0, len(places) - 1, _MOST_ROWS).round().long().tolist()
    return [places[number] for number in sorted({*kept, *range(2 * BORDERS)})]


def _at(places: list[int], chunks: Iterator[Tensor]) -> Tensor:
    """Rows ``[places, V]`` in float32 or better, out of chunks ``[1, r, V]`` of consecutive positions."""
    begun, kept = 0, []
    for logits in chunks:
        inside = [place - begun for place in places if begun <= place < begun + logits.shape[1]]
        kept.append(logits[0, inside].to(torch.promote_types(logits.dtype, torch.float32)))
        begun += logits.shape[1]
    return torch.cat(kept)
