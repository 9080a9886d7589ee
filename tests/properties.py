"""hypothesis' `given` without its deadline: on a busy machine a slow example is no finding, and no test asserts on wall
time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis


def given(*strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As hypothesis.given."""
    return lambda test: hypothesis.settings(deadline=None)(hypothesis.given(*strategies, **named)(test))
