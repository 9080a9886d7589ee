"""Durations as people write them: seconds, or a number with a unit (`90`, `15m`, `12h`, `30d`)."""

from __future__ import annotations

import re

_DURATION = re.compile(r"\s*([0-9]{1,10})\s*([smhd]?)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> int:
    """Seconds. Raises ValueError, saying what is expected."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("seconds, or a number with a unit (90s, 15m, 12h, 30d) are expected")
    return int(match[1]) * _SECONDS[match[2]]
