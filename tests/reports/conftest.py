"""Figures as they are written, for tests that look at what was drawn."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from kerple_eval.reports.figures import style


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that reach a file, which is still written."""
    seen: list[Figure] = []
    real = style.rendered

    def rendered(figure: Figure, kind: str, **options: Any) -> bytes:
        seen.append(figure)
        return real(figure, kind, **options)

    monkeypatch.setattr(style, "rendered", rendered)
    return seen
