"""The chart on a real API server, in a namespace that enforces Pod Security "restricted": install, upgrade, rollback,
roll-out, drain.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import chart
from tests.deploy.cluster import READY_AFTER, Cluster
from tests.integration.harness import wait_until
from worker.local import paths

CLAIMS = ("archive", "d3", "plans", "weights")
# Two of each are enough to see a roll-out, and two cores carry the control plane.
FEW = ("--set", "worker.replicas=2", "--set", "triton.replicas=2")
PATIENCE = "300s"
SELECTOR = "app.kubernetes.io/component=worker"


@pytest.fixture(scope="module")
def cluster(tool: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The control plane, once for all tests; each uses a namespace of its own."""
    for name in ("etcd", "kwok", "crds"):
        tool(name)
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def _install(cluster: Cluster, command: str, namespace: str, *options: str) -> None:
    cluster.helm(command, "assay", str(chart.CHART), "-n", namespace, "--wait", "--timeout", PATIENCE, *options)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", chart.NAMES)
def test_installs_upgrades_and_rolls_back(cluster: Cluster, name: str) -> None:
    """Every values file installs, takes an upgrade of image and settings, rolls back and leaves nothing behind; no
    warning from Pod Security.
    """
    namespace = f"t-{name}"
    cluster.namespace(namespace, CLAIMS)
    values = ["-f", str(chart.CHART / "ci" / f"{name}-values.yaml"), *FEW]
    _install(cluster, "install", namespace, *values)
    pods = cluster.get("pods", "-n", namespace, "-l", SELECTOR)["items"]
    assert pods and all(pod["status"]["phase"] == "Running" for pod in pods)
    _install(
        cluster,
        "upgrade",
        namespace,
        *values,
        "--set",
        "worker.image.digest=",
        "--set",
        "worker.image.tag=next",
        "--set",
        "settings.log.level=debug",
    )
    cluster.helm("rollback", "assay", "1", "-n", namespace, "--wait", "--timeout", PATIENCE)
    original = chart.of_kind(chart.objects(chart.manifest(name)), "Deployment")
    for deployment in original:
        found = cluster.get("deployment", deployment["metadata"]["name"], "-n", namespace)
        images = [container["image"] for container in found["spec"]["template"]["spec"]["containers"]]
        assert images == [container["image"] for container in deployment["spec"]["template"]["spec"]["containers"]]
    events = cluster.get("events", "-n", namespace)["items"]
    assert [event["message"] for event in events if "violates PodSecurity" in event["message"]] == []
    cluster.helm("uninstall", "assay", "-n", namespace, "--wait", "--timeout", PATIENCE)
    kinds = "deployments,services,networkpolicies,poddisruptionbudgets,scaledobjects,triggerauthentications,"
    kinds += "podmonitors,prometheusrules,jobs,cronjobs,secrets"
    assert cluster.get(kinds, "-n", namespace, "-l", "app.kubernetes.io/instance=assay")["items"] == []


def test_names_of_digits_are_installed(cluster: Cluster) -> None:
    """Release 007 in namespace 123, with a claim named 789, installs and gets ready: no name becomes a number on its
    way.
    """
    cluster.namespace("123", ("789",))
    named = (
        "--set-string",
        "fullnameOverride=0123,models.cacheClaimName=789,serviceAccount.name=456",
        "--set",
        "autoscaling.mode=hpa",
    )
    cluster.helm("install", "007", str(chart.CHART), "-n", "123", "--wait", "--timeout", PATIENCE, *named)
    assert cluster.get("deployment", "0123", "-n", "123")["metadata"]["labels"]["app.kubernetes.io/instance"] == "007"


def test_the_development_redis_runs_restricted(cluster: Cluster) -> None:
    """The example's Redis is admitted where Pod Security is enforced, gets ready and is found by its Service."""
    cluster.namespace("t-redis")
    cluster.kubectl("apply", "-n", "t-redis", "-f", str(paths.CHECKOUT / "deploy" / "examples" / "redis.yaml"))
    cluster.kubectl("rollout", "status", "deployment/redis", "-n", "t-redis", "--timeout=60s")
    wait_until(
        lambda: cluster.get("endpoints", "redis", "-n", "t-redis").get("subsets"), "an address behind the Service"
    )
    (subset,) = cluster.get("endpoints", "redis", "-n", "t-redis")["subsets"]
    assert [port["port"] for port in subset["ports"]] == [6379] and subset["addresses"]


def test_the_namespace_does_enforce(cluster: Cluster) -> None:
    """A pod that runs as root is refused there, so that the installs above mean something."""
    cluster.namespace("t-enforce")
    done = cluster.kubectl("run", "root", "--image=x", "-n", "t-enforce", check=False)
    assert done.returncode != 0 and 'violates PodSecurity "restricted:latest"' in done.stderr


@pytest.mark.parametrize(("surge", "away"), [(1, 0), (0, 1)])
def test_a_roll_out_never_drops_below_the_budget(cluster: Cluster, surge: int, away: int) -> None:
    """While every worker and every Triton is replaced, and new pods take seconds to get ready, no state that the API
    server reports has fewer available pods than the roll-out's own limit or than the budget wants, or more pods than
    the surge allows.
    """
    namespace = f"t-roll-{surge}"
    cluster.namespace(namespace)
    options = ["triton.mode=service"]
    for part in ("worker", "triton"):
        options += [f"{part}.replicas=4", f"{part}.rollout.maxSurge={surge}", f"{part}.rollout.maxUnavailable={away}"]
        options.append(f"{part}.podAnnotations.{READY_AFTER.replace('.', chr(92) + '.')}=2s")
    given = [part for option in options for part in ("--set", option)]
    _install(cluster, "install", namespace, *given)
    with (
        _watch(cluster, namespace, "deployments") as deployments,
        _watch(cluster, namespace, "poddisruptionbudgets") as budgets,
    ):
        _install(
            cluster, "upgrade", namespace, *given, "--set", "worker.image.tag=next", "--set", "triton.image.tag=next"
        )
        wait_until(lambda: all(_rolled(cluster, namespace, name) for name in ("assay", "assay-triton")), "the roll-out")
    for name in ("assay", "assay-triton"):
        states = [state["status"] for state in deployments if state["metadata"]["name"] == name]
        # Some of them were seen half-way: fewer updated pods available than there are.
        assert len({state.get("updatedReplicas", 0) for state in states}) >= 4, states
        assert min(state.get("availableReplicas", 0) for state in states) == 4 - away, states
        assert max(state["replicas"] for state in states) == 4 + surge, states
        healthy = [state["status"] for state in budgets if state["metadata"]["name"] == name]
        assert healthy and all(state["currentHealthy"] >= state["desiredHealthy"] == 3 for state in healthy), healthy


def test_a_drain_stops_at_the_budget(cluster: Cluster) -> None:
    """One worker may be evicted; the next eviction is refused until the first has been replaced, then it is allowed."""
    cluster.namespace("t-drain")
    _install(cluster, "install", "t-drain", "--set", "worker.replicas=3")
    names = [pod["metadata"]["name"] for pod in cluster.get("pods", "-n", "t-drain", "-l", SELECTOR)["items"]]
    wait_until(
        lambda: cluster.get("pdb", "assay", "-n", "t-drain")["status"].get("disruptionsAllowed") == 1,
        "the budget to be known",
    )
    nodes = [node["metadata"]["name"] for node in cluster.get("nodes")["items"]]
    cluster.kubectl("cordon", *nodes)  # the replacement stays pending
    try:
        assert _evict(cluster, "t-drain", names[0]).returncode == 0
        refused = _evict(cluster, "t-drain", names[1])
        assert refused.returncode != 0 and "would violate the pod's disruption budget" in refused.stderr
    finally:
        cluster.kubectl("uncordon", *nodes)
    cluster.kubectl("rollout", "status", "deployment/assay", "-n", "t-drain", "--timeout=60s")
    wait_until(lambda: _evict(cluster, "t-drain", names[1]).returncode == 0, "the second eviction")


def test_a_node_is_drained_by_kubectl(cluster: Cluster) -> None:
    """`kubectl drain` empties a node, and the workers are all there again elsewhere."""
    cluster.namespace("t-node")
    _install(cluster, "install", "t-node", "--set", "worker.replicas=4")
    node = cluster.get("pods", "-n", "t-node", "-l", SELECTOR)["items"][0]["spec"]["nodeName"]
    try:
        cluster.kubectl(
            "drain",
            node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--pod-selector=app.kubernetes.io/instance=assay",
            "--timeout=120s",
        )
        cluster.kubectl("rollout", "status", "deployment/assay", "-n", "t-node", "--timeout=60s")
        pods = cluster.get("pods", "-n", "t-node", "-l", SELECTOR)["items"]
        assert node not in [pod["spec"]["nodeName"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    finally:
        cluster.kubectl("uncordon", node)


def test_the_pods_account_may_do_nothing(cluster: Cluster) -> None:
    """The service account has no rights of its own: it cannot even read the Secret that the kubelet mounts for it."""
    for verb, resource in (("get", "secrets"), ("list", "pods"), ("create", "pods")):
        done = cluster.kubectl(
            "auth", "can-i", verb, resource, "-n", "t-node", "--as=system:serviceaccount:t-node:assay", check=False
        )
        assert done.stdout.strip() == "no"


def test_an_inline_secret_goes_when_it_is_taken_out(cluster: Cluster) -> None:
    """A secret that is removed from the values is removed from the cluster by the upgrade, and the one that stays keeps
    its value.
    """
    cluster.namespace("t-secret")
    kept, removed = (r"secrets.values.redis\.password=word", r"secrets.values.kafka\.ssl_key_password=word")
    _install(cluster, "install", "t-secret", "--set-string", f"{kept},{removed}")
    _install(cluster, "upgrade", "t-secret", "--set-string", kept)
    assert cluster.get("secret", "assay", "-n", "t-secret")["data"] == {
        "redis.password": base64.b64encode(b"word").decode()
    }


def test_a_failed_upgrade_takes_the_settings_back(cluster: Cluster) -> None:
    """With --rollback-on-failure an upgrade whose pods do not get ready leaves the ConfigMap as it was: a worker that
    is restarted finds its own.
    """
    cluster.namespace("t-back")
    late = f"worker.podAnnotations.{READY_AFTER.replace('.', chr(92) + '.')}=600s"
    _install(cluster, "install", "t-back", "--set", "settings.log.level=info")
    change = ("--set", f"settings.log.level=debug,{late}", "--rollback-on-failure", "--timeout", "8s")
    assert cluster.helm("upgrade", "assay", str(chart.CHART), "-n", "t-back", *change, check=False).returncode != 0
    assert cluster.get("configmap", "assay", "-n", "t-back")["data"]["ASSAY_LOG__LEVEL"] == "info"


def test_another_release_takes_over_from_a_pool_of_tritons(cluster: Cluster) -> None:
    """An upgrade away from mode service says that Triton went; a second release beside the first has names and budgets
    of its own, and stays whole when the first is uninstalled.
    """
    cluster.namespace("t-pool")
    _install(cluster, "install", "t-pool", "--set", "triton.mode=service")
    cluster.helm("install", "assay-b", str(chart.CHART), "-n", "t-pool", "--wait", "--timeout", PATIENCE)
    for release in ("assay", "assay-b"):
        wait_until(
            lambda r=release: cluster.get("pdb", r, "-n", "t-pool")["status"].get("expectedPods") == 2,
            "a budget for two workers",
        )
    change = ("--set", "triton.mode=sidecar", "--dry-run=server")
    assert (
        "deploy/assay-triton was deleted"
        in cluster.helm("upgrade", "assay", str(chart.CHART), "-n", "t-pool", *change).stdout
    )
    cluster.helm("uninstall", "assay", "-n", "t-pool", "--wait", "--timeout", PATIENCE)
    assert [item["metadata"]["name"] for item in cluster.get("deployments", "-n", "t-pool")["items"]] == ["assay-b"]
    assert cluster.get("deployment", "assay-b", "-n", "t-pool")["status"]["availableReplicas"] == 2
    assert cluster.get("configmap,serviceaccount", "assay-b", "-n", "t-pool")["items"]
    assert "was deleted" not in cluster.helm("upgrade", "assay-b", str(chart.CHART), "-n", "t-pool").stdout


def _kubectl(cluster: Cluster) -> list[str]:
    return [str(cluster._programs["kubectl"]), "--kubeconfig", str(cluster.kubeconfig)]


def _evict(cluster: Cluster, namespace: str, pod: str) -> subprocess.CompletedProcess[str]:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    return cluster.kubectl(
        "create",
        "--raw",
        f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction",
        "-f",
        "-",
        stdin=json.dumps(eviction),
        check=False,
    )


@contextmanager
def _watch(cluster: Cluster, namespace: str, kind: str) -> Iterator[list[dict[str, Any]]]:
    """Every state of the objects from here on, complete when the block ends."""
    states: list[dict[str, Any]] = []
    command = [*_kubectl(cluster), "get", kind, "-n", namespace, "--watch", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        reader = threading.Thread(target=_read_documents, args=(watch, states))
        reader.start()
        try:
            wait_until(lambda: bool(states), f"the first of the {kind}")
            yield states
        finally:
            watch.terminate()
            reader.join(20)


def _rolled(cluster: Cluster, namespace: str, name: str) -> bool:
    status = cluster.get("deployment", name, "-n", namespace)["status"]
    return bool(status.get("updatedReplicas") == status.get("replicas") == status.get("availableReplicas") == 4)


def _read_documents(watch: subprocess.Popen[str], states: list[dict[str, Any]]) -> None:
    """kubectl writes one JSON document after the other; each ends with a brace in the first column."""
    assert watch.stdout is not None
    lines: list[str] = []
    for line in watch.stdout:
        lines.append(line)
        if line == "}\n":
            states.append(json.loads("".join(lines)))
            lines.clear()
