"""Fixtures of the tests of runs, here too."""

from tests.run.conftest import invoke, models, text

__all__ = ["invoke", "models", "text"]
