"""The policy in force: taken up anew, kept when its file breaks, counted beside its shadow, compared with the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.twins import VERSION, Workbench, judged, record, settings
from worker.errors import SettingsError
from worker.policy.calibration import Calibration, ScoreDistribution, policy_toml
from worker.policy.rules import Otherwise, Rule
from worker.stages.policy_watch import LOOK_EVERY_S, PolicyWatch

STRICT, MILD = "fake_from = 0.5\nreal_below = 0.5\n", "fake_from = 0.9\nreal_below = 0.9\n"


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def bench_with(tmp_path: Path, text: str, shadow: str | None = None) -> tuple[Workbench, Path]:
    path, shadow_path = tmp_path / "policy.toml", tmp_path / "shadow.toml"
    path.write_text(text)
    policy: dict[str, object] = {"path": path}
    if shadow is not None:
        shadow_path.write_text(shadow)
        policy["shadow_path"] = shadow_path
    return Workbench(settings(policy=policy)), path


def reloaded(bench: Workbench) -> PolicyWatch:
    """The watch after a look at its files."""
    bench.policies.request_reload()
    bench.policies.step(0)
    return bench.policies


def test_a_changed_file_is_taken_up(tmp_path: Path) -> None:
    """Another content is another policy, in the metric too; what was judged with the one before keeps its version."""
    bench, path = bench_with(tmp_path, STRICT)
    before = bench.policies.policy
    path.write_text(MILD)
    after = reloaded(bench).policy
    assert after.ref.version != before.ref.version
    assert bench.metric("assay_policy_info", name="default", version=after.ref.version) == 1
    assert bench.metric("assay_policy_info", name="default", version=before.ref.version) == 0


def test_the_file_is_looked_at_every_two_seconds(tmp_path: Path) -> None:
    """Without a signal the change is found by itself, and not before it is time to look."""
    bench, path = bench_with(tmp_path, STRICT)
    clock = Hands()
    tools = type(bench.tools)(bench.metrics, bench.tools.tracing, bench.stop, clock)  # type: ignore[arg-type]
    watch = PolicyWatch(bench.settings, tools, lambda: VERSION)
    watch.step(0)
    before = watch.policy.ref
    path.write_text(MILD)
    clock.now += LOOK_EVERY_S / 2
    watch.step(0)
    assert watch.policy.ref == before
    clock.now += LOOK_EVERY_S
    watch.step(0)
    assert watch.policy.ref != before


@pytest.mark.parametrize("broken", ["fake_from = ", "[[rules]]\nwhen = 'foo'\ndecision = 'fake'", None, ""])
def test_a_broken_file_keeps_the_policy_before_it(tmp_path: Path, broken: str | None) -> None:
    """Broken, empty or gone: the old one stays in force and the metric says so, until the file is well again."""
    bench, path = bench_with(tmp_path, STRICT)
    before = bench.policies.policy.ref
    path.unlink() if broken is None else path.write_text(broken)
    assert reloaded(bench).policy.ref == before
    assert bench.metric("assay_policy_reload_failed") == 1
    path.write_text(MILD)
    assert reloaded(bench).policy.ref != before
    assert bench.metric("assay_policy_reload_failed") == 0


def test_a_comment_or_a_new_calibration_is_no_new_version(tmp_path: Path) -> None:
    """The calibration is taken up all the same: it says whether the model fits."""
    bench, path = bench_with(tmp_path, STRICT)
    before = bench.policies.policy.ref
    path.write_text(f'# why\n{STRICT}[calibration]\nmodel_version = "{VERSION}"\n')
    after = reloaded(bench).policy
    assert after.ref == before
    assert after.calibration is not None
    assert bench.metric("assay_policy_calibrated") == 1


def test_a_wrong_shadow_policy_is_refused_at_the_start(tmp_path: Path) -> None:
    """It is told as the policy is, by its own variable."""
    with pytest.raises(SettingsError, match=r"^ASSAY_POLICY__SHADOW_PATH=.*shadow\.toml: rule 1, column 1"):
        bench_with(tmp_path, STRICT, "[[rules]]\nwhen = 'foo'\ndecision = 'fake'")


def test_a_shadow_policy_is_counted_and_decides_nothing(tmp_path: Path) -> None:
    """Verdicts are the policy's; the metric has what each would have been under the shadow."""
    shadow = "[[rules]]\nwhen = 'headers.tenant == \"kids\"'\ndecision = 'review'\n"
    bench, _ = bench_with(tmp_path, STRICT, shadow + "[otherwise]\ndecision = 'real'\n")
    records = [record(0), record(1, headers=[("tenant", b"kids")])]
    bench.queues.ended.put([judged(encoded, 0.7) for encoded in bench.identified(*records)], bench.stop)
    bench.driven("publish").stage.step(0)
    assert [verdict.decision for verdict in list(bench.store.verdicts.values())] == ["fake", "fake"]
    assert [verdict.headers for verdict in list(bench.store.verdicts.values())] == [{}, {}]
    for would_be in ("real", "review"):
        assert bench.metric("assay_policy_shadow_decisions_total", decision="fake", shadow=would_be) == 1


CALIBRATION = Calibration(
    model_version=VERSION,
    reference={"png": {"linear": ScoreDistribution(edges=(0.25, 0.5), real=(900, 80, 20), fake=(20, 80, 900))}},
)
RULES = [Rule(when="scores.linear >= 0.5", decision="fake")]


@pytest.mark.parametrize(("calibrated_with", "expected"), [(VERSION, 1), ("f" * 12, 0), (None, None)])
def test_calibrated_with_the_served_model(tmp_path: Path, calibrated_with: str | None, expected: int | None) -> None:
    """1 where it fits, 0 where another model is served, nothing where the policy does not say."""
    text = STRICT + (f'[calibration]\nmodel_version = "{calibrated_with}"\n' if calibrated_with else "")
    bench, _ = bench_with(tmp_path, text)
    bench.policies.step(0)
    assert bench.metrics.registry.get_sample_value("assay_policy_calibrated") == expected


@pytest.mark.parametrize(("served", "expected"), [("a" * 12, 1), ("b" * 12, 0), (None, 1)])
def test_calibrated_with_the_detector_that_is_served(tmp_path: Path, served: str | None, expected: int) -> None:
    """A policy whose thresholds are of a detector alone says nothing of `code`; one that is not served is not wrong."""
    bench, _ = bench_with(tmp_path, STRICT + f'[calibration.detectors]\nclip = "{"a" * 12}"\n')
    bench.policies._detector_versions = lambda: {"clip": served} if served else {}
    bench.policies.step(0)
    assert bench.metrics.registry.get_sample_value("assay_policy_calibrated") == expected


@pytest.mark.parametrize(("score", "drifted"), [(0.1, 0), (0.3, 1)])
def test_drift_is_measured_on_what_the_model_scores(tmp_path: Path, score: float, drifted: int) -> None:
    """A window of scores that lie as in the calibration is well; one whose middle has grown has drifted."""
    bench, _ = bench_with(tmp_path, policy_toml("drift", RULES, Otherwise(), CALIBRATION))
    model = f"{VERSION}"
    ended = judged(bench.identified(record(0))[0], score)
    bench.queues.ended.put([ended], bench.stop)
    bench.driven("publish").stage.step(0)
    (verdict,) = list(bench.store.verdicts.values())
    assert verdict.model.version == model
    spread = [0.1] * 4500 + [0.3] * 400 + [0.9] * 99 if not drifted else [score] * 4999
    for value in spread:
        scores = verdict.scores.model_copy(update={"linear": value})
        bench.policies.observe(verdict.model_copy(update={"scores": scores, "source": "cache"}))  # says nothing new
        bench.policies.observe(verdict.model_copy(update={"scores": scores}))
    labels = {"head": "linear", "format": "png"}
    assert bench.metric("assay_drift_detected", **labels) == drifted
    assert (bench.metric("assay_drift_distance", **labels) > 0.25) == bool(drifted)
