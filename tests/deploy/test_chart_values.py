"""Values of the chart: what contradicts itself is refused, and names and large numbers stay what they are."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.deploy import chart

pytestmark = pytest.mark.usefixtures("helm")


REFUSED = {
    "unknown key": ({"worker": {"replica": 3}}, "replica"),
    "misspelt setting": ({"settings": {"kafka": {"bootstrap_server": ["a:1"]}}}, "bootstrap_server"),
    "impossible setting": ({"settings": {"intake": {"batch_max_items": 1000}}}, "256"),
    "password in a ConfigMap": (
        {"settings": {"redis": {"url": "redis://:word@redis:6379/0"}}},
        "must hold no user or password; put the whole URL into a Secret",
    ),
    "no URL": ({"settings": {"redis": {"url": "redis.example.org:6379"}}}, "redis|rediss|unix"),
    "secret among the settings": ({"settings": {"kafka": {"sasl_password": "word"}}}, "sasl_password"),
    "scale to zero": ({"autoscaling": {"mode": "keda", "minReplicas": 0}}, "minReplicas"),
    "bad digest": ({"worker": {"image": {"digest": "sha256:12"}}}, "digest"),
    "plans without a GPU": ({"gpu": {"enabled": False}}, "triton.flavour=cpu"),
    "external without address": ({"triton": {"mode": "external"}}, "settings.triton.url"),
    "more workers than partitions": (
        {"worker": {"replicas": 8}, "topic": {"partitions": 8}},
        "one without a partition never gets ready",
    ),
    "KEDA beyond the partitions": (
        {"autoscaling": {"mode": "keda", "maxReplicas": 12}, "topic": {"partitions": 12}},
        "topic.partitions=12: 12 workers and 1 more during a roll-out",
    ),
    "HPA beyond the partitions": (
        {"autoscaling": {"mode": "hpa", "maxReplicas": 9}, "topic": {"partitions": 8}},
        "topic.partitions=8: 9 workers",
    ),
    "a surge in per cent beyond the partitions": (
        {"worker": {"replicas": 10, "rollout": {"maxSurge": "25%"}}, "topic": {"partitions": 12}},
        "10 workers and 3 more",
    ),
    "roll-out takes all": (
        {"worker": {"rollout": {"maxUnavailable": "100%"}}},
        "worker.rollout.maxUnavailable=100%: with 2 pods",
    ),
    "roll-out takes every Triton": (
        {"triton": {"mode": "service", "rollout": {"maxUnavailable": 2}}},
        "triton.rollout.maxUnavailable=2",
    ),
    "SASL without password": ({"settings": {"kafka": {"security_protocol": "SASL_SSL"}}}, "kafka.sasl_password"),
    "budget takes all": ({"pdb": {"maxUnavailable": 2}}, "a drain could take them all"),
    "unpinned hub": ({"models": {"source": "hub", "uri": "a/b"}}, "models.revision"),
    "two trust lists": (
        {"evidence": {"c2paTrust": {"pem": "-----BEGIN CERTIFICATE-----", "configMapName": "anchors"}}},
        "evidence.c2paTrust",
    ),
    "shadow without traffic": ({"models": {"shadow": "/opt/assay/candidate"}}, "settings.shadow.share"),
    "training without data": ({"training": {"enabled": True}}, "training.dataClaimName"),
    "scheduled on two nodes": (
        {"training": {"enabled": True, "dataClaimName": "d", "schedule": "@daily", "nodes": 2}},
        "training.nodes",
    ),
    "password in a query of the URL": (
        {"settings": {"redis": {"url": "redis://redis:6379/0?password=word"}}},
        "must hold no user or password",
    ),
    "password of a key in a query of the URL": (
        {"settings": {"redis": {"url": "rediss://redis:6379/0?ssl_check_hostname=true&ssl_password=word"}}},
        "must hold no user or password",
    ),
    "password in the S3 endpoint": (
        {"settings": {"references": {"s3_endpoint_url": "https://u:word@s3.example.org"}}},
        "s3_endpoint_url: becomes",
    ),
    "password in the models' address": (
        {"models": {"source": "s3", "uri": "s3://u:word@bucket/prefix"}},
        "models.uri: stands in the pod's specification",
    ),
    "setting as a variable": (
        {"worker": {"extraEnv": [{"name": "ASSAY_RUN__DRAIN_TIMEOUT_S", "value": "900"}]}},
        "write it under settings",
    ),
    "certificates without TLS to Kafka": (
        {"tls": {"kafka": {"secretName": "s"}}},
        "tls.kafka.secretName: the connection is not encrypted",
    ),
    "certificates without TLS to Redis": (
        {"tls": {"redis": {"secretName": "s"}}},
        "tls.redis.secretName: the connection is not encrypted",
    ),
    "roll-out beyond the budget": (
        {"worker": {"replicas": 8, "rollout": {"maxUnavailable": 3}}},
        "up to 3 of 8 workers",
    ),
    "sentinel without sentinels": ({"settings": {"redis": {"mode": "sentinel"}}}, "settings.redis.sentinels"),
    "memory shared between pods": (
        {"triton": {"mode": "service"}, "settings": {"triton": {"shared_memory": "system"}}},
        "share no memory",
    ),
    "name too long for training": (
        {"fullnameOverride": "a" * 42, "training": {"enabled": True, "dataClaimName": "d"}},
        "41 characters at most",
    ),
    "a Service whose name begins with a digit": (
        {"fullnameOverride": "4-eyes", "triton": {"mode": "service"}},
        "a Service is made, whose name must begin",
    ),
    "a training Service whose name begins with a digit": (
        {"fullnameOverride": "123", "training": {"enabled": True, "dataClaimName": "d"}},
        "fullnameOverride: a Service is made, .* and 123 does not",
    ),
    "a volume of the chart": (
        {"worker": {"extraVolumes": [{"name": "a", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
        r"worker.extraVolumes: name=tmp is there already",
    ),
    "a place of the chart": (
        {
            "worker": {
                "extraVolumes": [{"name": "a", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "a", "mountPath": "/dev/shm"}],
            }
        },
        "worker.extraVolumeMounts: mountPath=/dev/shm is there already",
    ),
    "a variable of the chart": (
        {"worker": {"extraEnv": [{"name": "HOME", "value": "/"}]}},
        "worker.extraEnv: name=HOME is there already",
    ),
    "a variable twice": (
        {"worker": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        "worker.extraEnv: name=A is there already",
    ),
    "more memory asked for than allowed": (
        {"worker": {"resources": {"limits": {"memory": "1.5Gi"}}}},
        r"worker.resources.requests.memory=3Gi: more than limits.memory=1.5Gi",
    ),
    "more CPU asked for than allowed": (
        {"triton": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1900m"}}}},
        "triton.resources.requests.cpu=2: more than limits.cpu=1900m",
    ),
    "name too long": ({"fullnameOverride": "a" * 49}, "48 characters at most"),
    "no key of the authorities": ({"tls": {"references": {"secretName": "s", "caKey": ""}}}, "tls.references.caKey"),
    "label of a selector": ({"commonLabels": {"app.kubernetes.io/name": "mine"}}, "take another label"),
    "half a certificate": ({"tls": {"kafka": {"secretName": "s", "certKey": "tls.crt"}}}, "certKey and keyKey"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused(case: str) -> None:
    """A value that cannot work is refused before anything is installed, and the message names it."""
    values, word = REFUSED[case]
    with pytest.raises(chart.Refused, match=word):
        chart.template(values=values)


@pytest.mark.slow
@pytest.mark.parametrize("installation", ["external-hpa", "gpu-service", "keda-tls-sasl", "training"])
def test_names_stay_text(installation: str) -> None:
    """A release, namespace, claim, Secret or class whose name YAML reads as a number, a truth, nothing or a day is
    rendered as with any other name.
    """
    found = []
    for text in ("word", "007", "yes", "12e03", "null", "2026-11-22"):
        named = {"priorityClassName": text, "runtimeClassName": text, "image": {"repository": text, "tag": text}}
        values = {
            "nameOverride": text,
            "fullnameOverride": "a-word" if installation in ("gpu-service", "training") else text,
            "imagePullSecrets": [{"name": text}],
            "worker": named,
            "triton": named,
            "models": {"claimName": text, "cacheClaimName": text, "credentialsSecret": text},
            "serviceAccount": {"name": text},
            "tls": {"references": {"secretName": text}},
            "training": {"dataClaimName": text, **named},
            "monitoring": {"podMonitor": {"enabled": True}},
        }
        if installation == "keda-tls-sasl":
            values |= {"tls": {"kafka": {"secretName": text}}, "secrets": {"existingSecret": text}}
        arguments = ["-f", str(chart.CHART / "ci" / f"{installation}-values.yaml"), "--namespace", text]
        found.append(_shape(chart.objects(chart.template(*arguments, values=values, release=text))))
    assert [text for text in found if text != found[0]] == []


def _shape(node: Any) -> Any:
    """The types of what stands in a manifest."""
    if isinstance(node, dict):
        return {name: _shape(body) for name, body in node.items()}
    return [_shape(body) for body in node] if isinstance(node, list) else type(node)


MILLIONS = 3_060_000


MODES: list[dict[str, Any]] = [
    {"autoscaling": {"mode": "hpa", "maxReplicas": MILLIONS}, "worker": {"rollout": {"maxSurge": MILLIONS}}},
    {
        "autoscaling": {
            "mode": "keda",
            "lagPerReplica": MILLIONS,
            "pollingSeconds": MILLIONS,
            "maxReplicas": MILLIONS,
            "minReplicas": MILLIONS,
        }
    },
    {
        "triton": {
            "mode": "service",
            "replicas": MILLIONS,
            "startupSeconds": MILLIONS,
            "rollout": {"maxSurge": MILLIONS},
        },
        "worker": {"replicas": MILLIONS, "preStopSeconds": MILLIONS, "drainMarginSeconds": MILLIONS},
        "helmTest": {"timeoutSeconds": MILLIONS},
        "models": {"buildSeconds": MILLIONS},
        "gpu": {"count": MILLIONS},
    },
    {
        "training": {
            "enabled": True,
            "dataClaimName": "d",
            **dict.fromkeys(
                ("nodes", "gpusPerNode", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"), MILLIONS
            ),
        }
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("values", MODES, ids=",".join)
def test_large_numbers_are_written_out(values: dict[str, Any]) -> None:
    """A number of millions in a values file is rendered with all its digits: 3.06e+06 is no lagThreshold and no
    argument of a command.
    """
    text = chart.template(values=values)
    assert str(MILLIONS) in text and re.findall(r".*\d[eE]\+\d.*", text) == []


def test_as_many_workers_as_partitions_are_accepted() -> None:
    """Without a surge there may be a worker for every partition: the advice of the refusal above works."""
    rollout = {"maxSurge": 0, "maxUnavailable": 1}
    values = {
        "worker": {"rollout": rollout},
        "topic": {"partitions": 12},
        "autoscaling": {"mode": "keda", "maxReplicas": 12},
    }
    assert (
        chart.of_kind(chart.objects(chart.template(values=values)), "ScaledObject")[0]["spec"]["maxReplicaCount"] == 12
    )


def test_all_contradictions_are_told_at_once() -> None:
    """Values with several contradictions get one message with a line for each."""
    with pytest.raises(chart.Refused) as refused:
        chart.template(values={"gpu": {"enabled": False}, "training": {"enabled": True}, "pdb": {"maxUnavailable": 2}})
    assert str(refused.value).count("\n  - ") == 3
