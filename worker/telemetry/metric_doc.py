"""What docs/metrics.md says of a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "assay_"

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class MetricDoc:
    """One line of docs/metrics.md. `name` is the one to query (counters end in `_total`), `unit` what one step of it
    is.
    """

    name: str
    type: MetricType
    labels: tuple[str, ...]
    unit: str
    meaning: str
