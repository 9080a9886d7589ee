"""What every test of policies begins with."""

from __future__ import annotations

import pytest

from worker.policy.expression import compile_expression


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    """What one test compiled is compiled again in the next, by the code as it is (`make mutate` changes it)."""
    compile_expression.cache_clear()
