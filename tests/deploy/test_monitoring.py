"""Alerts and dashboards: they parse, fire when they should and not otherwise, and ask for metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.grafana import build
from tests.deploy import chart
from tests.integration.harness import Outside, running_worker, samples, wait_until
from worker.local import paths
from worker.local.server import free_port
from worker.telemetry.console_metrics import CONSOLE_DOCS
from worker.telemetry.metrics import metric_docs

pytestmark = pytest.mark.slow

PROMETHEUS = paths.CHECKOUT / "deploy" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
# Triton's own, as its documentation lists them; those of a GPU are not there on a CPU.
TRITON_GPU = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
TRITON = TRITON_GPU | {
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
}
DRIFT = {"assay_drift_detected", "assay_drift_distance", "assay_drift_fake_share"}
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"}
_METRIC = re.compile(r"\b(?:assay|nv|process)_[a-z0-9_]+")


def _panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(build.OUT.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.name, panel


def _expressions() -> list[str]:
    """Every PromQL expression of the dashboards, with Grafana's variables filled in."""
    found = [target["expr"] for _, panel in _panels() for target in panel.get("targets", [])]
    return [expr.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$job", ".*") for expr in found]


def _worker_series() -> set[str]:
    names: set[str] = set()
    for doc in [*metric_docs(), *CONSOLE_DOCS]:
        suffixes = ("_bucket", "_sum", "_count") if doc.type == "histogram" else ("",)
        names |= {doc.name + suffix for suffix in suffixes}
    return names


def test_dashboards_are_current() -> None:
    """The JSON in the chart is what build.py writes."""
    assert (
        subprocess.run(
            [sys.executable, "-m", "deploy.grafana.build", "--check"], cwd=paths.CHECKOUT, check=False
        ).returncode
        == 0
    )


def test_dashboards_can_be_read() -> None:
    """Panels have a title, an id of their own, a place of their own and the datasource variable."""
    for path in sorted(build.OUT.glob("*.json")):
        dashboard = json.loads(path.read_text())
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        assert variables == {"datasource", "namespace", "job"}
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert panel["title"] and not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
            assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
            taken |= cells
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))


def test_every_metric_asked_for_exists() -> None:
    """Dashboards and alerts use only what worker and console declare, and what Triton documents."""
    asked = set(_METRIC.findall("\n".join([*_expressions(), *(rule["expr"] for rule in RULES)])))
    assert asked - _worker_series() - TRITON - PROCESS == set()


def test_every_metric_of_the_worker_is_shown() -> None:
    """No metric is declared that neither a dashboard nor an alert looks at."""
    asked = set(_METRIC.findall("\n".join([*_expressions(), *(rule["expr"] for rule in RULES)])))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} | asked
    assert {doc.name for doc in [*metric_docs(), *CONSOLE_DOCS]} - shown == set()


def test_every_alert_tells_whom_and_what_to_do() -> None:
    """An alert has a severity, a summary, a description and an entry in the runbook; no entry is left over."""
    headings = re.findall(r"^## (Assay\w+)$", (paths.CHECKOUT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical") and set(rule["annotations"]) == {
            "summary",
            "description",
        }, rule["alert"]


def test_log_events_of_the_runbook_exist() -> None:
    """What the runbook tells to look for in the worker's log is an event that the worker logs."""
    page = (paths.CHECKOUT / "docs" / "runbook.md").read_text()
    named = {
        event
        for group in re.findall(r"log \(([^)]*`[a-z]+_[a-z_]+`[^)]*)\)", page)
        for event in re.findall(r"`([a-z]+_[a-z_]+)`", group)
    }
    code = "".join(path.read_text() for path in (paths.CHECKOUT / "worker").rglob("*.py"))
    logged = set(re.findall(r'\blog\.(?:debug|info|warning|error|exception)\(\s*"(\w+)"', code))
    assert "partitions_assigned" in named and named - logged == set()


def test_every_alert_is_tested_both_ways() -> None:
    """The unit tests have a case in which each alert fires and one in which it does not."""
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_alerts_fire_when_they_should(promtool: Path) -> None:
    """promtool's unit tests of the rules pass."""
    done = subprocess.run(
        [str(promtool), "test", "rules", "alerts_test.yaml"],
        cwd=PROMETHEUS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_expression_parses(promtool: Path, tmp_path: Path) -> None:
    """Prometheus' own parser takes every expression of the dashboards."""
    rules = [{"record": f"dashboards:e{number}", "expr": expr} for number, expr in enumerate(_expressions())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run(
        [str(promtool), "check", "rules", "--lint=none", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_of_the_chart_are_the_same(helm: Path, promtool: Path, tmp_path: Path) -> None:
    """The PrometheusRule holds every alert that is not left out, with the labels and the runbook link of the values."""
    rule = chart.of_kind(chart.objects(chart.manifest("everything")), "PrometheusRule")[0]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    assert (
        subprocess.run([str(promtool), "check", "rules", str(file)], capture_output=True, check=False).returncode == 0
    )
    alerts = {alert["alert"]: alert for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert list(alerts) == [alert["alert"] for alert in RULES if alert["alert"] != "AssayScoreDrift"]
    for original in RULES:
        if alert := alerts.get(original["alert"]):
            assert alert["expr"] == original["expr"] and alert["labels"]["team"] == "trust-and-safety"
            assert alert["labels"]["severity"] == original["labels"]["severity"]
            assert alert["annotations"]["runbook_url"].endswith("#" + original["alert"].lower())
            assert original["annotations"].items() <= alert["annotations"].items()


def test_dashboards_of_the_chart_are_the_same(helm: Path) -> None:
    """The ConfigMap for Grafana's sidecar holds the dashboards unchanged."""
    maps = chart.of_kind(chart.objects(chart.manifest("everything")), "ConfigMap")
    data = next(item["data"] for item in maps if item["metadata"]["name"].endswith("-dashboards"))
    assert data == {path.name: path.read_text() for path in build.OUT.glob("*.json")}


@pytest.mark.integration
def test_real_prometheus_finds_every_metric(promtool: Path, worker_env: dict[str, str], tmp_path: Path) -> None:
    """A real Prometheus scrapes a working worker and Triton, evaluates every alert and panel, and has every series they
    use.
    """
    outside = Outside(worker_env)
    triton_http = _triton_metrics_address(worker_env)
    policy = tmp_path / "policy.toml"
    policy.write_text('fake_from = 0.6\n[calibration]\nmodel_version = "0123456789ab"\n')
    worker_env = worker_env | {name: str(policy) for name in ("ASSAY_POLICY__PATH", "ASSAY_POLICY__SHADOW_PATH")}
    worker_env |= {"ASSAY_REFERENCES__SCHEMES": "file", "ASSAY_REFERENCES__FILE_ROOTS": str(tmp_path)}
    targets = {"worker": f"127.0.0.1:{worker_env['ASSAY_HTTP__PORT']}", "triton": triton_http}
    scrape = [
        {"job_name": name, "static_configs": [{"targets": [address], "labels": {"namespace": "test", "pod": name}}]}
        for name, address in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "alerts.yaml")],
        "scrape_configs": scrape,
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [str(promtool.with_name("prometheus")), f"--config.file={tmp_path / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={address}", "--log.level=warn"]
    with (tmp_path / "prometheus.log").open("wb") as log, running_worker(worker_env, tmp_path / "worker.log"):
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            api = httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False, timeout=30)
            for image_id, data in samples(8).items():
                outside.send(image_id, data)
            wanted = set(_METRIC.findall("\n".join([*_expressions(), *(rule["expr"] for rule in RULES)]))) - TRITON_GPU
            # This worker has no certificate, shadow model, detector or console; drift takes thousands of images.
            wanted -= {"assay_tls_certificate_expiry_timestamp_seconds", "assay_shadow_model_info", *DRIFT}
            wanted -= {name for name in wanted if name.startswith(("assay_detector_", "assay_review"))}
            found: set[str] = set()
            try:
                wait_until(lambda: _all_there(api, wanted, found), "every series")
            except AssertionError as error:
                error.add_note(f"missing: {sorted(wanted - found)}")
                raise
            for expr in _expressions():
                assert api.get("/query", params={"query": expr}).json()["status"] == "success", expr
            wait_until(
                lambda: all(rule["health"] == "ok" for rule in _rules(api)) and len(_rules(api)) == len(RULES),
                "every alert evaluated",
            )
        finally:
            server.terminate()
            server.wait(20)
            outside.close()


def _all_there(api: httpx.Client, wanted: set[str], found: set[str]) -> bool:
    found |= _names(api)
    return wanted <= found


def _names(api: httpx.Client) -> set[str]:
    try:
        answer = api.get("/label/__name__/values")
    except httpx.TransportError:
        return set()  # it is not up yet
    return set(answer.json()["data"]) if answer.is_success else set()


def _rules(api: httpx.Client) -> list[dict[str, Any]]:
    return [rule for group in api.get("/rules").json()["data"]["groups"] for rule in group["rules"]]


def _triton_metrics_address(env: dict[str, str]) -> str:
    """Triton's metrics port of the shared stack: beside its gRPC port in the ports file."""
    grpc = int(env["ASSAY_TRITON__URL"].rsplit(":", 1)[1])
    pid = next(
        path.parent
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"--grpc-port={grpc}".encode() in path.read_bytes()
    )
    arguments = (pid / "cmdline").read_bytes().decode().split("\0")
    port = next(argument.split("=")[1] for argument in arguments if argument.startswith("--metrics-port="))
    return f"127.0.0.1:{port}"
