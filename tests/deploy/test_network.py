"""What the rendered NetworkPolicies let out: the port of every address that the values name, private networks only
where they say so.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy import chart

pytestmark = pytest.mark.usefixtures("helm")
PEERS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}}]
MINIO = "http://minio.storage.svc:9000"


def _rules(values: dict[str, Any], component: str = "worker") -> dict[int, Any]:
    """Port -> where the pods of the component may reach it; None: everywhere."""
    items = chart.of_kind(chart.objects(chart.template(values=values)), "NetworkPolicy")
    policy = next(item for item in items if item["metadata"]["labels"]["app.kubernetes.io/component"] == component)
    return {port["port"]: rule.get("to") for rule in policy["spec"]["egress"] for port in rule["ports"]}


def _buckets(endpoint: str | None, peers: list[Any]) -> dict[str, Any]:
    references = {"schemes": ["s3"], "s3_buckets": ["uploads"], "s3_endpoint_url": endpoint}
    return {"settings": {"references": references}, "networkPolicy": {"s3": peers}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        (None, 443),
        ("https://s3.example.org", 443),
        ("http://s3.example.org/", 80),
        (MINIO, 9000),
        ("https://[2001:db8::1]:8443/x", 8443),
    ],
)
def test_the_port_of_the_endpoint_is_open(endpoint: str | None, port: int) -> None:
    """References from S3 get the port of their endpoint, on public addresses or on the peers that the values name."""
    assert _rules(_buckets(endpoint, PEERS))[port] == PEERS
    (block,) = _rules(_buckets(endpoint, []))[port]
    assert "10.0.0.0/8" in block["ipBlock"]["except"]
    assert set(_rules(_buckets(endpoint, []))) == {53, 9092, 6379, port}


@pytest.mark.parametrize(("mode", "component", "other"), [("sidecar", "worker", None), ("service", "triton", "worker")])
def test_the_init_container_reaches_its_bucket(mode: str, component: str, other: str | None) -> None:
    """Weights from a bucket that is not at AWS: the init container knows the endpoint, its pod may reach it, and no
    other pod may.
    """
    values = {
        "triton": {"mode": mode},
        "models": {"source": "s3", "uri": "s3://models/assay", "s3EndpointUrl": MINIO},
        "networkPolicy": {"s3": PEERS},
    }
    assert _rules(values, component)[9000] == PEERS
    assert other is None or 9000 not in _rules(values, other)
    found = [
        container
        for _, pod in chart.pod_specs(chart.objects(chart.template(values=values)))
        for container in chart.containers(pod)
    ]
    assert [c["name"] for c in found if {"name": "AWS_ENDPOINT_URL_S3", "value": MINIO} in c.get("env", [])] == [
        "models"
    ]


def test_a_shadow_from_a_bucket_and_a_hub_are_reached() -> None:
    """Each source of weights opens what it needs: the hub port 443 on public addresses, the bucket its own port."""
    models = {
        "source": "hub",
        "uri": "a/b",
        "revision": "c0" * 20,
        "shadow": "s3://models/candidate",
        "s3EndpointUrl": MINIO,
    }
    rules = _rules({"models": models, "settings": {"shadow": {"share": 0.1}}, "networkPolicy": {"s3": PEERS}})
    assert rules[9000] == PEERS and "except" in rules[443][0]["ipBlock"]


def test_hosts_of_references_open_their_ports() -> None:
    """host:port and [v6]:port open that port; the last group of an IPv6 address is none."""
    hosts = ["example.org", "cdn.example.org:8443", "[2001:db8::1]:9443", "2001:db8::5"]
    assert set(_rules({"settings": {"references": {"schemes": ["https"], "https_hosts": hosts}}})) == {
        53,
        9092,
        6379,
        443,
        8443,
        9443,
    }


def test_redis_behind_an_inline_secret_is_reached() -> None:
    """Where the URL of Redis is a secret of the chart its port counts, not that of the default URL."""
    rules = _rules({"secrets": {"values": {"redis.url": "rediss://user:p%40ss:1@redis.example.org:6380/0"}}})
    assert 6380 in rules and 6379 not in rules


def test_a_socket_of_redis_opens_nothing() -> None:
    """Without an address of Redis there is no rule for it: one without ports would open them all."""
    items = chart.of_kind(
        chart.objects(chart.template(values={"settings": {"redis": {"url": "unix:///run/redis.sock"}}})),
        "NetworkPolicy",
    )
    assert [rule for item in items for rule in item["spec"]["egress"] if not rule["ports"]] == []
