"""The policy in force: taken up anew when its file changes, kept when the file is broken or gone.

The file is read every two seconds, and at once after SIGHUP. Its content is compared, not its date: a mounted ConfigMap
is swapped by links whose dates say nothing. A policy is one object, so whoever judges an image with it judges the
whole image with it. Beside it stand the shadow policy, which is only counted, and what the calibration is for: whether
it fits the served model, and whether scores have drifted from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from worker.contract import Verdict
from worker.errors import SettingsError
from worker.examine.provenance.trust import load_anchors, reader_version
from worker.policy import Policy, load_policy
from worker.policy.drift import DriftDetector
from worker.settings import Settings, variable
from worker.stages.stage import Stage, Tools

log = structlog.get_logger(__name__)
LOOK_EVERY_S = 2.0
NOT_CALIBRATED = "thresholds were found with another model: calibrate anew (docs/policy.md)"


def also_decides(settings: Settings) -> dict[str, str]:
    """What beside the file changes decisions: whose signatures count, and which images detectors see.

    Raises SettingsError for a list of authorities that is none.
    """
    anchors = load_anchors(settings.evidence.c2pa_trust_path)
    found = {variable("evidence", "c2pa_trust_path"): reader_version(anchors)} if anchors else {}
    when = settings.detectors.when.strip()
    return found | ({variable("detectors", "when"): when} if when else {})


@dataclass(slots=True)
class _File:
    """One of the two files, and what was last found in it."""

    variable: str
    path: Path | None
    policy: Policy
    problems: tuple[str, ...] = ()


class PolicyWatch(Stage):
    """Holds the policy that decides and, where one is set, the shadow policy.

    Raises SettingsError for a file that is wrong when the worker starts.
    """

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        model_version: Callable[[], str],
        detector_versions: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._model_version = model_version
        self._detector_versions = detector_versions
        self._also_decides = also_decides(settings)
        self._deciding = self._open("path", settings.policy.path)
        self._shadow = self._open("shadow_path", settings.policy.shadow_path) if settings.policy.shadow_path else None
        self._reload_requested = False
        self._look_at = 0.0
        self._fits: tuple[bool | None, str] = (None, "")
        self._drift = _detector(self.policy)
        self._tell()

    @property
    def policy(self) -> Policy:
        """The policy that decides, now."""
        return self._deciding.policy

    @property
    def shadow(self) -> Policy | None:
        """The policy that is counted beside it."""
        return self._shadow.policy if self._shadow else None

    def request_reload(self) -> None:
        """Look at the files with the next step. Sets a flag and no more: a signal handler calls it."""
        self._reload_requested = True

    def step(self, wait_s: float) -> None:
        """Look at the files when it is time to, and at the model always."""
        if self._reload_requested or self._tools.clock.monotonic() >= self._look_at:
            self._reload_requested = False
            self._look_at = self._tools.clock.monotonic() + LOOK_EVERY_S
            self._reload()
        self._compare_with_model()
        self._tools.stop.wait(wait_s)

    def observe(self, verdict: Verdict) -> None:
        """Count the scores of an image that the model has just seen; called by one thread.

        Bytes that were seen before say nothing new, and scores of another model are not the calibration's.
        """
        drift, calibration = self._drift, self.policy.calibration
        if drift is None or calibration is None or verdict.source == "cache":
            return
        if calibration.model_version != verdict.model.version:
            return
        for window in drift.observe(verdict.image.format, verdict.scores):
            labels = {"head": window.head, "format": window.format}
            self._tools.metrics.drift_distance.labels(**labels).set(window.distance)
            self._tools.metrics.drift_detected.labels(**labels).set(window.has_drifted)
            self._tools.metrics.drift_fake_share.labels(**labels).set(window.fake_share)
            if window.has_drifted:
                log.warning("scores_drifted", **labels, p_value=window.p_value, distance=window.distance)

    def _reload(self) -> None:
        for file in self._files():
            try:
                found = load_policy(file.path, file.variable, self._also_decides)
            except SettingsError as error:
                if tuple(error.problems) != file.problems:
                    kept = file.policy.ref.version
                    log.error("policy_reload_failed", problems=error.problems, kept=kept)  # noqa: TRY400  # said in full
                file.problems = tuple(error.problems)
                continue
            if file.problems:
                log.info("policy_readable_again", path=str(file.path))
                file.problems = ()
            if found.ref != file.policy.ref or found.calibration != file.policy.calibration:
                self._take_up(file, found)
        self._tell()

    def _take_up(self, file: _File, found: Policy) -> None:
        before, file.policy = file.policy.ref.version, found
        log.info("policy_changed", file=file.variable, name=found.name, version=found.ref.version, before=before)
        if file is self._deciding:
            self._drift = _detector(found)
            self._tools.metrics.forget_drift()

    def _compare_with_model(self) -> None:
        version, others = self._model_version(), self._detector_versions()
        fits = self.policy.is_calibrated_for(version) if version else None
        wanted = self.policy.calibration.detectors if self.policy.calibration else {}
        if version and wanted and fits is not False:
            fits = self.policy.is_calibrated_for_detectors(others)
        if wanted and fits is False:
            version = "+".join([version, *(f"{name}:{one}" for name, one in sorted(others.items()))])
        if (fits, version) == self._fits:
            return
        self._fits = (fits, version)
        self._tools.metrics.calibrated(fits=fits)
        if fits is False:
            log.warning("policy_not_calibrated", policy=self.policy.ref.version, served=version, hint=NOT_CALIBRATED)

    def _open(self, field: str, path: Path | None) -> _File:
        name = variable("policy", field)
        return _File(name, path, load_policy(path, name, self._also_decides))

    def _files(self) -> list[_File]:
        return [self._deciding, *([self._shadow] if self._shadow else [])]

    def _tell(self) -> None:
        metrics, ref = self._tools.metrics, self.policy.ref
        metrics.policy(ref.name, ref.version)
        metrics.policy_reload_failed.set(any(file.problems for file in self._files()))
        if self.shadow is not None:
            metrics.shadow_policy(self.shadow.ref.name, self.shadow.ref.version)


def _detector(policy: Policy) -> DriftDetector | None:
    calibration = policy.calibration
    return DriftDetector(calibration.reference) if calibration is not None and calibration.reference else None
