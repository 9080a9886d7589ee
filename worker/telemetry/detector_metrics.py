"""The metrics of detectors beside `code`; they exist for those that are configured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OUTCOMES = ("scored", "cached", "spared", "failed")


class DetectorMetrics:
    """`counter`, `gauge` and `histogram` make a metric in the registry of `Metrics` and document it."""

    def __init__(
        self,
        counter: Callable[..., Any],
        gauge: Callable[..., Any],
        histogram: Callable[..., Any],
        buckets: dict[str, tuple[float, ...]],
    ) -> None:
        self.images = counter(
            "detector_images",
            "Judged images by what a detector beside `code` had to do: scored, cached (scored before), spared "
            "(ASSAY_DETECTORS__WHEN does not hold) or failed (cannot be shown to it). Share asked: all but spared.",
            unit="images",
            labels=("detector", "outcome"),
        )
        self.scores = histogram(
            "detector_scores",
            "Scores P(fake) of a detector's heads, of the images that it was asked about.",
            unit="1",
            buckets=buckets["scores"],
            labels=("detector", "head"),
        )
        self.batch_items = histogram(
            "detector_batch_items",
            "Images in one inference call to a detector.",
            unit="images",
            buckets=buckets["items"],
            labels=("detector",),
        )
        self.seconds = histogram(
            "detector_seconds",
            "Time from an image's being referred to a detector until it has its scores.",
            unit="seconds",
            buckets=buckets["seconds"],
            labels=("detector",),
        )
        self.calls = counter(
            "detector_calls",
            "Inference calls to a detector, outcome ok or error.",
            unit="calls",
            labels=("detector", "outcome"),
        )
        self._info = gauge("detector_info", "1 for a detector in use.", unit="1", labels=("name", "version"))
        self._shown: dict[str, str] = {}

    def expect(self, name: str) -> None:
        """This detector will be asked: its series are there from the start."""
        for outcome in OUTCOMES:
            self.images.labels(detector=name, outcome=outcome)
        for outcome in ("ok", "error"):
            self.calls.labels(detector=name, outcome=outcome)

    def in_use(self, name: str, version: str) -> None:
        """The version that a detector serves, in place of the one before."""
        if before := self._shown.get(name):
            self._info.remove(name, before)
        self._shown[name] = version
        self._info.labels(name=name, version=version).set(1)
