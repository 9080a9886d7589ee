"""What every kind of installation must hold, on the manifests as helm renders them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm import generate
from tests.deploy import chart
from worker import settings
from worker.local import paths
from worker.policy import load_policy
from worker.telemetry.metrics import metric_docs

pytestmark = pytest.mark.usefixtures("helm")
EXAMPLES = paths.CHECKOUT / "deploy" / "examples"
each_installation = pytest.mark.parametrize("name", chart.NAMES)


def _worker(items: list[chart.Object]) -> chart.Object:
    return next(
        item
        for item in chart.of_kind(items, "Deployment")
        if item["metadata"]["labels"]["app.kubernetes.io/component"] == "worker"
    )


def _settings(items: list[chart.Object], root: Path) -> settings.Settings:
    pod = _worker(items)["spec"]["template"]["spec"]
    return settings.load(environ=chart.environment(items, pod["containers"][0], pod, root))


def test_generated_files_are_current() -> None:
    """values.schema.json and README.md of the chart follow the worker's settings and the values."""
    assert (
        subprocess.run(
            [sys.executable, "-m", "deploy.helm.generate", "--check"], cwd=paths.CHECKOUT, check=False
        ).returncode
        == 0
    )


def test_every_value_has_a_schema_and_every_own_value_a_default() -> None:
    """values.yaml and the schema name the same values, so that the README shows a default for each."""
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    known = {path for path, _ in generate._walk(generate.schema())}

    def leaves(node: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if path in known or not isinstance(node, dict):
            return {path}
        return set().union(*(leaves(value, (*path, name)) for name, value in node.items()))

    assert leaves(defaults) <= known
    assert {path for path in known - leaves(defaults) if path[0] not in ("settings", "global")} == set()


def test_every_setting_of_the_worker_can_be_set() -> None:
    """A setting is a value of the chart, a secret, or set by the chart itself: none is forgotten."""
    schema = generate.schema()["properties"]
    for group, name, _ in settings.fields():
        in_settings = name in schema["settings"]["properties"].get(group, {}).get("properties", {})
        assert (
            in_settings
            or generate.is_owned(group, name)
            or f"{group}.{name}" in schema["secrets"]["properties"]["values"]["properties"]
        )


@each_installation
def test_worker_accepts_the_rendered_environment(name: str, tmp_path: Path) -> None:
    """The worker's own parser takes what the pod would see: no misspelt variable, no value it would stop at."""
    items = chart.objects(chart.manifest(name))
    found = _settings(items, tmp_path)
    assert found.http.host == "0.0.0.0"
    load_policy(found.policy.path)
    if found.policy.shadow_path is not None:
        load_policy(found.policy.shadow_path)


def test_settings_arrive_unchanged(tmp_path: Path) -> None:
    """Lists, large whole numbers, fractions, booleans and durations reach the worker as they were written."""
    written = {
        "kafka": {"bootstrap_servers": ["a:1", "b:2"], "ssl_check_hostname": False},
        "limits": {"max_image_bytes": 123456789, "max_image_pixels": 2000000000},
        "flow": {"low_water": 0.25, "max_bytes": 1073741824},
        "redis": {"verdict_ttl": "90d", "hash_ttl": 0},
        "cache": {"enabled": False},
    }
    found = _settings(chart.objects(chart.template(values={"settings": written})), tmp_path)
    assert found.kafka.bootstrap_servers == ["a:1", "b:2"] and found.kafka.ssl_check_hostname is False
    assert found.limits.max_image_bytes == 123456789 and found.limits.max_image_pixels == 2000000000
    assert found.flow.low_water == 0.25 and found.flow.max_bytes == 1073741824
    assert found.redis.verdict_ttl == 90 * 86400 and found.redis.hash_ttl == 0
    assert found.cache.enabled is False


def test_secret_settings_reach_the_worker_as_files(tmp_path: Path) -> None:
    """Every secret setting comes from a mounted file, and the URL in the Secret replaces the one in the ConfigMap."""
    keys = {name: name.replace(".", "-") for name in generate.secret_names()}
    sasl = {"security_protocol": "SASL_SSL", "sasl_username": "u"}
    values = {"secrets": {"existingSecret": "mine", "keys": keys}, "settings": {"kafka": sasl}}
    items = chart.objects(chart.template(values=values))
    found = _settings(items, tmp_path)
    for name in keys:
        group, field = name.split(".")
        assert getattr(getattr(found, group), field).get_secret_value() == chart._secret_value(name)
    assert chart.of_kind(items, "Secret") == []


@each_installation
def test_no_secret_outside_a_secret(name: str) -> None:
    """No ConfigMap, variable or argument holds a password of the values file."""
    values = yaml.safe_load((chart.CHART / "ci" / f"{name}-values.yaml").read_text())
    words = list(values.get("secrets", {}).get("values", {}).values())
    others = json.dumps([item for item in chart.objects(chart.manifest(name)) if item["kind"] != "Secret"])
    assert [word for word in words if word in others] == []


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"log": {"level": "debug"}}},
        {"policy": {"toml": 'name = "strict"'}},
        {"policy": {"shadowToml": 'name = "strict"'}},
        {"evidence": {"c2paTrust": {"pem": "-----BEGIN CERTIFICATE-----"}}},
        {"secrets": {"values": {"redis.password": "w"}}},
    ],
)
def test_a_changed_setting_rolls_the_pods(change: dict[str, Any]) -> None:
    """Settings are read at start, so a change of a setting, the policy or an inline secret changes the pods'
    template.
    """
    before, after = (
        _worker(chart.objects(chart.template(values=values)))["spec"]["template"]["metadata"]["annotations"]
        for values in ({}, change)
    )
    assert before["checksum/settings"] != after["checksum/settings"]


def test_labels_and_annotations_of_the_chart_win() -> None:
    """A label or annotation of the user with a name that the chart sets itself is not written a second time, and does
    not replace the chart's.
    """
    taken = {"checksum/settings": "mine", "kubectl.kubernetes.io/default-container": "mine"}
    more = {"podAnnotations": {**taken, "a": "b"}, "podLabels": {"app.kubernetes.io/component": "mine", "c": "d"}}
    text = chart.template("--show-only", "templates/worker.yaml", values={"worker": more})
    found = _worker(chart.objects(text))["spec"]["template"]["metadata"]
    assert found["annotations"]["kubectl.kubernetes.io/default-container"] == "worker" and "mine" not in text
    assert (
        all(text.count(name) == 1 for name in taken)
        and found["annotations"]["a"] == "b"
        and found["labels"]["c"] == "d"
    )


@each_installation
def test_pods_are_restricted(name: str) -> None:
    """Every container runs as a user, without privileges, on a read-only root file system, with requests and a memory
    limit.
    """
    for where, pod in chart.pod_specs(chart.objects(chart.manifest(name))):
        assert pod["automountServiceAccountToken"] is False, where
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {
            "type": "RuntimeDefault"
        }, where
        for container in chart.containers(pod):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"] and security["runAsUser"] > 0, where
            assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}, (
                where
            )
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and "memory" in container["resources"][
                "limits"
            ], where
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], where


@each_installation
def test_drain_fits_into_the_grace_period(name: str, tmp_path: Path) -> None:
    """preStop and the drain deadline end before the kubelet kills, with seconds left for the last commit."""
    items = chart.objects(chart.manifest(name))
    pod = _worker(items)["spec"]["template"]["spec"]
    sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert sleep + _settings(items, tmp_path).run.drain_timeout_s + 5 <= pod["terminationGracePeriodSeconds"]


@each_installation
def test_partitions_stay_served(name: str) -> None:
    """No drain may take every pod of a Deployment that has more than one, and no roll-out more than the budget allows a
    drain.
    """
    items = chart.objects(chart.manifest(name))
    scalers = {
        item["spec"]["scaleTargetRef"]["name"]: item["spec"]
        for item in chart.of_kind(items, "HorizontalPodAutoscaler", "ScaledObject")
    }
    budgets = {
        json.dumps(item["spec"]["selector"]): item["spec"]["maxUnavailable"]
        for item in chart.of_kind(items, "PodDisruptionBudget")
    }
    for deployment in chart.of_kind(items, "Deployment"):
        spec, scaler = deployment["spec"], scalers.get(deployment["metadata"]["name"])
        least = (scaler.get("minReplicas") or scaler["minReplicaCount"]) if scaler else spec["replicas"]
        rolling = spec["strategy"]["rollingUpdate"]
        assert least >= 1 and ("replicas" not in spec) == bool(scaler)
        assert budgets[json.dumps(spec["selector"])] < max(least, 2)
        assert rolling["maxUnavailable"] <= budgets[json.dumps(spec["selector"])] and (
            rolling["maxUnavailable"] or rolling["maxSurge"]
        )


@each_installation
def test_sidecar_outlives_the_worker(name: str) -> None:
    """Triton beside a worker is a native sidecar, started before and stopped after it, and shares its memory and its
    user.
    """
    pod = _worker(chart.objects(chart.manifest(name)))["spec"]["template"]["spec"]
    sidecars = [container for container in pod.get("initContainers", []) if container.get("restartPolicy") == "Always"]
    variables = chart.objects(chart.manifest(name))
    url = next(
        item["data"]["ASSAY_TRITON__URL"]
        for item in chart.of_kind(variables, "ConfigMap")
        if "ASSAY_TRITON__URL" in item.get("data", {})
    )
    assert bool(sidecars) == (url == "127.0.0.1:8001")
    for sidecar in sidecars:
        mounts = [
            {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            for container in (sidecar, pod["containers"][0])
        ]
        assert mounts[0]["/dev/shm"] == mounts[1]["/dev/shm"]
        assert "runAsUser" in sidecar["securityContext"]
        assert sidecar["securityContext"]["runAsUser"] == pod["containers"][0]["securityContext"]["runAsUser"]


@each_installation
def test_pods_talk_only_to_what_is_named(name: str) -> None:
    """Every pod of the release is under a policy for both directions, and none may reach every port of every
    address.
    """
    items = chart.objects(chart.manifest(name))
    selectors = [item["spec"]["podSelector"]["matchLabels"] for item in chart.of_kind(items, "NetworkPolicy")]
    for item in chart.of_kind(items, "NetworkPolicy"):
        assert item["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert all("ports" in rule or "to" in rule for rule in item["spec"]["egress"])
    for item in chart.of_kind(items, "Deployment", "Job", "CronJob", "Pod"):
        holder = item["spec"]["jobTemplate"] if item["kind"] == "CronJob" else item
        labels = (
            holder["metadata"]["labels"] if item["kind"] == "Pod" else holder["spec"]["template"]["metadata"]["labels"]
        )
        assert [selector for selector in selectors if selector.items() <= labels.items()], item["metadata"]["name"]


def test_the_examples_fit_the_chart(tmp_path: Path) -> None:
    """The development Kafka and Redis are those that their values name: addresses, topics, partitions, place for a
    rejection.
    """
    files = [chart.CHART / "ci" / "cpu-values.yaml", EXAMPLES / "values.yaml"]
    items = chart.objects(chart.template(*(part for file in files for part in ("-f", str(file)))))
    found = _settings(items, tmp_path)
    kafka = chart.objects((EXAMPLES / "kafka.yaml").read_text())
    name = chart.of_kind(kafka, "Kafka")[0]["metadata"]["name"]
    assert found.kafka.bootstrap_servers == [f"{name}-kafka-bootstrap:9092"]
    topics = {item["metadata"]["name"]: item["spec"] for item in chart.of_kind(kafka, "KafkaTopic")}
    kinds = ("incoming", "verdicts", "rejected", "retry", "reviews")
    wanted = tuple(getattr(found.kafka, f"{kind}_topic") for kind in kinds)
    assert tuple(topics) == wanted
    assert {
        item["metadata"]["labels"]["strimzi.io/cluster"] for item in chart.of_kind(kafka, "KafkaTopic", "KafkaNodePool")
    } == {name}
    partitions = yaml.safe_load((EXAMPLES / "values.yaml").read_text())["topic"]["partitions"]
    assert topics[wanted[0]]["partitions"] == partitions
    largest = [topics[topic]["config"]["max.message.bytes"] for topic in (wanted[0], wanted[2])]
    assert found.limits.max_image_bytes < largest[0] < largest[1] == found.kafka.max_request_bytes
    service = chart.of_kind(chart.objects((EXAMPLES / "redis.yaml").read_text()), "Service")[0]
    assert (
        found.redis.url.get_secret_value()
        == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/0"
    )


def test_values_in_the_docs_are_accepted(tmp_path: Path) -> None:
    """Every piece of values that docs/deploy.md shows renders, and the worker takes what comes of it."""
    shown = re.findall(
        r"^```yaml\n(.+?)^```", (paths.CHECKOUT / "docs" / "deploy.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(shown) >= 2
    for number, text in enumerate(shown):
        (tmp_path / str(number)).mkdir()
        _settings(chart.objects(chart.template(values=yaml.safe_load(text))), tmp_path / str(number))


@pytest.mark.parametrize("page", ["deploy", "runbook", "scaling"])
def test_values_and_metrics_in_the_docs_exist(page: str) -> None:
    """What a page tells to set is a value of the chart, and what it tells to look at is a metric."""
    text = (paths.CHECKOUT / "docs" / f"{page}.md").read_text()
    schema = generate.schema()

    def exists(path: list[str], node: dict[str, Any]) -> bool:
        if not path or "properties" not in node:
            return not path or "additionalProperties" in node
        return path[0] in node["properties"] and exists(path[1:], node["properties"][path[0]])

    words = [
        word
        for code in re.findall(r"`([^`\n]+)`", text)
        for word in re.findall(r"\b[a-zA-Z]+(?:\.[A-Za-z0-9_]+)+", code)
    ]
    values = [word for word in words if word.split(".")[0] in schema["properties"] and "Dockerfile" not in word]
    assert values and [word for word in values if not exists(word.split("."), schema)] == []
    assert set(re.findall(r"\bassay_[a-z_]+", text)) <= {doc.name for doc in metric_docs()}


def test_a_cut_name_ends_in_a_letter_or_digit() -> None:
    """A release name with dashes where it is cut gives a name that Kubernetes takes."""
    name = f"{'a' * 46}--bb"
    assert _worker(chart.objects(chart.template(release=name)))["metadata"]["name"] == "a" * 46


def test_a_finished_training_job_stays() -> None:
    """A Job that Kubernetes deleted would be made, and its run started, again by the next upgrade: only who asks for it
    gets a time to live.
    """
    found = []
    for more in ({}, {"ttlSecondsAfterFinished": 0}):
        values = {"training": {"enabled": True, "dataClaimName": "d", **more}}
        found.append(
            chart.of_kind(chart.objects(chart.template(values=values)), "Job")[0]["spec"].get("ttlSecondsAfterFinished")
        )
    assert found == [None, 0]
