"""A policy: thresholds or rules, its version, and the calibration that came with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from worker.contract import PolicyRef
from worker.policy.builtin import BUILT_IN
from worker.policy.calibration import Calibration
from worker.policy.facts import Facts
from worker.policy.outcome import Outcome
from worker.policy.rules import Rules
from worker.policy.thresholds import Thresholds


@dataclass(frozen=True)
class Policy:
    """`also_decides`: settings beside the file that change what an image is decided to be, by variable.

    They are part of the version: the same file with another list of trusted signers is another policy.
    """

    form: Thresholds | Rules = field(default_factory=lambda: Rules(BUILT_IN))
    calibration: Calibration | None = None
    also_decides: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.form.name

    @property
    def headers(self) -> frozenset[str]:
        """The record's headers that a decision may depend on."""
        return self.form.headers

    @cached_property
    def ref(self) -> PolicyRef:
        """Name and version as they stand in a verdict. The version hashes what is meant, not the bytes of the file."""
        meaning = self.form.meaning()
        if self.also_decides:
            meaning = {**meaning, "also_decides": dict(self.also_decides)}
        content = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
        return PolicyRef(name=self.name, version=hashlib.sha256(content.encode()).hexdigest()[:12])

    def decide(self, facts: Facts) -> Outcome:
        """Pure: the same facts, the same outcome."""
        return self.form.decide(facts)

    def is_calibrated_for(self, model_version: str) -> bool | None:
        """Were its thresholds found with this model? None where the policy does not say."""
        wanted = self.calibration.model_version if self.calibration else None
        return None if wanted is None else wanted == model_version

    def is_calibrated_for_detectors(self, versions: Mapping[str, str]) -> bool:
        """Are the detectors served (name -> version) those that its thresholds were found with, as far as it says?"""
        wanted = self.calibration.detectors if self.calibration else {}
        return all(versions.get(name, version) == version for name, version in wanted.items())
