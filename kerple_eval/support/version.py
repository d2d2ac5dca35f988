"""The version of the installed package, written once: in ``pyproject.toml``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("kerple-eval")
except PackageNotFoundError:  # a copy on the path that nobody installed
    VERSION = "unknown"
