"""What a panel is, and the PromQL that several ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NS = 'namespace=~"$namespace",job=~"$job"'
WIDTH = 8  # of the dashboard's 24 columns


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are (PromQL, legend). `kind`: timeseries, stat, heatmap or table."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    meaning: str = ""
    width: int = WIDTH
    stacked: bool = False
    bad_from: float | None = None


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """Sum of the rates per second, optionally by a label."""
    group = f" by ({by})" if by else ""
    selector = f"{NS},{labels}" if labels else NS
    return f"sum{group} (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str, labels: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', f'le, {by}' if by else 'le', labels)})"
