"""Durations: one reader for settings and arguments."""

from __future__ import annotations

import pytest

from worker.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), (" 12 h ", 43_200), ("30d", 2_592_000)]
)
def test_seconds_or_a_number_with_a_unit(text: str, seconds: int) -> None:
    """The four units that people write."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5h", "1w", "1h30m", "99999999999d", "٣d"])
def test_anything_else_says_what_is_expected(text: str) -> None:
    """Nor a number that no clock can reach, nor digits of another script."""
    with pytest.raises(ValueError, match="15m, 12h, 30d"):
        parse_duration(text)
