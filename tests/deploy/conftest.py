"""The tools as fixtures: a test whose tool cannot be had is skipped, with the reason.

`make test` installs only what takes seconds; `make test-deploy` sets TEST_DEPLOY and runs everything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy import tools


def _tool(get: Callable[[], Path], *, quick: bool = False) -> Path:
    if not quick and not os.environ.get("TEST_DEPLOY"):
        pytest.skip("takes tools that are built from source; `make test-deploy` runs it")
    try:
        return get()
    except tools.Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def helm() -> Path:
    return _tool(tools.helm, quick=True)


@pytest.fixture(scope="session")
def promtool() -> Path:
    return _tool(tools.promtool, quick=True)


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Path]:
    """`tool("kubeconform")`: the program, or a skip."""
    return lambda name: _tool(getattr(tools, name))
