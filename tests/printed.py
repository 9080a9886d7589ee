"""What a function prints."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable


def printed(print_it: Callable[[], object]) -> str:
    """What goes to stdout meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        print_it()
    return stdout.getvalue()
