"""Many small cases in one test: a fixture and a report for each would cost more than the case."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each_case(
    names: str | tuple[str, ...], values: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but all cases in one test; the first that fails is named.

    For seeds, grids and lists of inputs of a few milliseconds. Function-scoped fixtures are made once for all
    of them: a test that writes to ``tmp_path`` or leaves a patch behind keeps ``parametrize``.
    """
    keys = (names,) if isinstance(names, str) else names
    cases = [dict(zip(keys, (value,) if isinstance(names, str) else value, strict=True)) for value in values]
    assert cases, f"no cases of {names}"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            for case in cases:
                try:
                    test(**arguments, **case)
                except BaseException as error:
                    error.add_note(f"case: {case}")
                    raise

        signature = inspect.signature(test)
        assert set(keys) <= set(signature.parameters), f"{test.__name__} has no argument {keys}"
        left = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate
