"""Metrics: what is declared is what is exposed, and what is exposed is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import RejectReason
from worker.telemetry.metric_doc import MetricDoc
from worker.telemetry.metrics import DEPENDENCIES, Metrics, metric_docs


def exposed(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return samples


def test_docs_and_exposition_agree() -> None:
    """Every metric is documented under the name, type and labels that a scrape shows, and nothing else has our
    prefix.
    """
    metrics = Metrics(certificates=[Path("/nonexistent.pem")])
    metrics.model("code", "0123456789ab")
    metrics.shadow_model("code_shadow", "ba9876543210")
    metrics.policy("default", "0123456789ab")
    metrics.shadow_policy("stricter", "ba9876543210")
    metrics.calibrated(fits=True)
    for gauge in (metrics.drift_distance, metrics.drift_detected, metrics.drift_fake_share):
        gauge.labels(head="linear", format="jpeg").set(0)
    metrics.build("1.2.3")
    metrics.detectors.expect("clip")
    metrics.detectors.in_use("clip", "0123456789ab")
    metrics.detectors.scores.labels(detector="clip", head="linear").observe(0.5)
    for histogram in (metrics.detectors.batch_items, metrics.detectors.seconds):
        histogram.labels(detector="clip").observe(1)
    metrics.storage_state.labels(storage="s3://bucket").set(0)
    metrics.consumer_lag.labels(topic="images.incoming", partition="0").set(3)
    samples = exposed(metrics)
    documented = {doc.name: doc for doc in metric_docs()}
    assert len(documented) == len(list(metric_docs()))
    for doc in documented.values():
        name = f"{doc.name}_bucket" if doc.type == "histogram" else doc.name
        assert name in samples, f"{doc.name} is documented and not exposed"
        labels = {key for key, _ in next(iter(samples[name]))} - {"le"}
        assert labels == set(doc.labels)
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples if name.startswith("assay_")}
    assert {base for base in bases if base not in documented} == set()


@pytest.mark.parametrize("doc", list(metric_docs()), ids=lambda doc: doc.name)
def test_each_metric_has_a_meaning_and_a_unit(doc: MetricDoc) -> None:
    """Names carry the prefix and follow Prometheus' conventions; the meaning is one sentence, the unit is stated."""
    assert re.fullmatch(r"assay_[a-z_]+", doc.name)
    assert doc.name.endswith("_total") == (doc.type == "counter")
    assert doc.unit
    assert doc.meaning.endswith(".")
    assert "\n" not in doc.meaning


def test_known_labels_start_at_zero() -> None:
    """Series whose labels are known are there before the first event, so that rates see the first step."""
    samples = exposed(Metrics())
    assert samples["assay_verdicts_total"][("decision", "fake"), ("source", "cache")] == 0
    assert {dict(labels)["reason"] for labels in samples["assay_rejections_total"]} == {
        reason.value for reason in RejectReason
    }
    assert {dict(labels)["dependency"] for labels in samples["assay_breaker_state"]} == set(DEPENDENCIES)


def test_two_workers_do_not_clash() -> None:
    """Each instance counts for itself."""
    first, second = Metrics(), Metrics()
    first.records_consumed.inc()
    assert exposed(first)["assay_records_consumed_total"][()] == 1
    assert exposed(second)["assay_records_consumed_total"][()] == 0


def test_an_info_replaces_the_one_before() -> None:
    """After a reload only the new model is in use."""
    metrics = Metrics()
    metrics.model("code", "aaaaaaaaaaaa")
    metrics.model("code", "bbbbbbbbbbbb")
    assert exposed(metrics)["assay_model_info"] == {(("name", "code"), ("version", "bbbbbbbbbbbb")): 1}


def test_a_revoked_partition_leaves_no_lag_behind() -> None:
    """The lag of a partition that another worker owns now is not ours to report."""
    metrics = Metrics()
    for partition in (0, 1):
        metrics.consumer_lag.labels(topic="t", partition=str(partition)).set(5)
    metrics.forget_partition("t", 0)
    metrics.forget_partition("t", 7)
    assert exposed(metrics)["assay_consumer_lag_records"] == {(("partition", "1"), ("topic", "t")): 5}


def test_certificates_are_read_at_each_scrape(tmp_path: Path) -> None:
    """A file that is missing counts as expired, and shows its date once it is there."""
    path = tmp_path / "tls.crt"
    metrics = Metrics(certificates=[path])
    name, labels = "assay_tls_certificate_expiry_timestamp_seconds", (("path", str(path)),)
    assert exposed(metrics)[name][labels] == 0
    trustme.CA().cert_pem.write_to_path(path)
    assert exposed(metrics)[name][labels] > 0


def test_calibrated_is_absent_where_the_policy_does_not_say() -> None:
    """1 with the model it was calibrated with, 0 with another, and no sample at all without a calibration."""
    metrics = Metrics()
    found = []
    for fits in (None, True, False, None):
        metrics.calibrated(fits=fits)
        found.append(metrics.registry.get_sample_value("assay_policy_calibrated"))
    assert found == [None, 1.0, 0.0, None]
