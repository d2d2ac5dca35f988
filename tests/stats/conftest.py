"""The command in this process, as the tests of runs have it."""

from __future__ import annotations

from tests.run import conftest

invoke = conftest.invoke
