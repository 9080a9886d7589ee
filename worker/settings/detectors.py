"""Detectors beside `code`: which models, when they are asked, and how."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from worker.settings.types import CommaList, Group, broken_rule

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class DetectorSettings(Group):
    """Other models that are asked about an image after `code` (docs/detectors.md)."""

    names: CommaList = Field(
        default=[],
        max_length=8,
        description="Models of the same server to ask after `code`, in this order, comma separated; rules read their "
        "scores as `detectors.NAME.HEAD`. None when empty.",
    )
    when: str = Field(
        default="",
        description="CEL expression over `scores`, `image` and `evidence`: only images for which it holds are shown to "
        "them. Empty: all.",
    )
    deadline_ms: int = Field(default=30_000, ge=100, description="Deadline of one inference call to a detector.")
    calls_in_flight: int = Field(
        default=1, ge=1, le=64, description="Inference calls to each detector under way at once; each holds one batch."
    )
    processes: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Child processes per detector that make its view of images; 0 takes one per core.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> DetectorSettings:
        for name in self.names:
            if not _NAME.fullmatch(name):
                raise broken_rule("names", f"{name!r} is no name of lower-case letters, digits and _ (32 at most)")
        if len({*self.names}) < len(self.names):
            raise broken_rule("names", "each is named once")
        if self.when and not self.names:
            raise broken_rule("when", "it asks nobody: names is empty")
        return self
