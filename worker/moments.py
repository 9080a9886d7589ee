"""A moment as verdicts and reviews have it: UTC with milliseconds, and one that there is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field


def milliseconds(text: str) -> int:
    """Since the epoch. Raises ValueError for a thirteenth month and the like."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _there_is_one(text: str) -> str:
    milliseconds(text)
    return text


Moment = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        description="UTC, milliseconds",
        json_schema_extra={"format": "date-time"},
    ),
    AfterValidator(_there_is_one),
]
