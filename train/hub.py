"""The hub's clients, brought to one line: they log each of ten tries and every parser's trouble, and their errors run
over several lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Nothing is logged by huggingface_hub and datasets within: what they raise says it once more."""
    levels = {name: logging.getLogger(name).level for name in ("huggingface_hub", "datasets")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
