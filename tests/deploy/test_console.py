"""The review console in the chart: off by default, closed but for who is named, with settings that it starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.deploy import chart
from worker import settings

pytestmark = pytest.mark.usefixtures("helm")


def _console(items: list[chart.Object], kind: str) -> chart.Object:
    (found,) = (
        item
        for item in chart.of_kind(items, kind)
        if item["metadata"]["labels"]["app.kubernetes.io/component"] == "console"
    )
    return found


def test_off_by_default() -> None:
    """Nobody gets a page that they have not asked for."""
    items = chart.objects(chart.manifest("minimal"))
    assert not [one for one in items if one["metadata"]["labels"].get("app.kubernetes.io/component") == "console"]


def test_its_pod_starts_with_these_settings(tmp_path: Path) -> None:
    """What its container gets is valid: users, queues and the sessions' secret from files, cookies for https alone."""
    items = chart.objects(chart.manifest("console"))
    pod = _console(items, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["console"] and container["securityContext"]["readOnlyRootFilesystem"]
    found = settings.load(environ=chart.environment(items, container, pod, tmp_path)).console
    assert (found.host, found.port, found.metrics_port, found.is_https) == ("0.0.0.0", 9470, 9471, True)
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    assert found.users_path is not None and found.queues_path is not None
    for path in (found.users_path, found.queues_path):
        assert f"/{path.parent.relative_to(tmp_path)}" in mounted
    assert found.secret is not None and found.second_share == 0.1
    assert {one["containerPort"] for one in container["ports"]} == {found.port, found.metrics_port}


def test_service_ingress_and_policy_lead_to_it() -> None:
    """One port for people, from where the values say; the metrics' port for Prometheus; out to Kafka and Redis."""
    items = chart.objects(chart.manifest("console"))
    selector = _console(items, "Deployment")["spec"]["selector"]["matchLabels"]
    service = _console(items, "Service")
    assert service["spec"]["selector"] == selector
    (rule,) = _console(items, "Ingress")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == service["metadata"]["name"]
    policy = _console(items, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == selector
    people, metrics = policy["ingress"]
    assert people["ports"] == [{"port": 9470, "protocol": "TCP"}]
    assert people["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}]
    assert metrics["ports"] == [{"port": 9471, "protocol": "TCP"}]
    out = {port["port"] for one in policy["egress"] for port in one["ports"]}
    assert {53, 9092, 6379} <= out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"console": {"usersSecret": ""}}, "console.usersSecret"),
        ({"secrets": {"values": {"console.secret": None}}}, "console.secret"),
    ],
)
def test_what_cannot_work_is_refused(changed: dict[str, Any], said: str) -> None:
    """No users, or several pods whose sessions do not know each other."""
    with pytest.raises(chart.Refused, match=said):
        chart.template("-f", str(chart.CHART / "ci" / "console-values.yaml"), values=changed)
