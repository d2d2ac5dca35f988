"""Errors of code that is not this package's: transformers, and what a checkpoint brings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kerple_eval.models.user_code import frames_of
from kerple_eval.types import UserError


def one_line(error: BaseException, most: int = 200) -> str:
    """An exception of a library as part of a line."""
    return " ".join(str(error)[: 4 * most].split())[:most] or type(error).__name__


@contextlib.contextmanager
def foreign(where: str, failed: str) -> Iterator[None]:
    """Inside, whatever foreign code raises is one refusal: ``WHERE: FAILED: the error``.

    Constructors, configurations and ``forward`` of models share no class of errors, and some leave the
    program (``sys.exit``). Running out of memory stays what it is, as do refusals; the original error is the
    cause of the new one.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        name = "" if str(error).strip() == "" else f"{type(error).__name__}: "
        module, number = frames_of(error)[-1]
        own = module.partition(".")[0] not in ("kerple_eval", "transformers", "contextlib")
        place = f" (at {module}:{number})" if own else ""
        raise UserError(f"{where}: {failed}: {name}{one_line(error)}{place}") from error
