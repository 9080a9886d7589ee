"""The real KEDA operator scales the chart's Deployment on real Kafka lag, up and down again.

make test-keda      in a network namespace with nothing but loopback: KEDA's adapter listens on every address.
                    Needs root.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from tests.conftest import PARTITIONS
from tests.deploy import chart, tools
from tests.deploy.cluster import Cluster
from tests.integration.harness import wait_until
from worker.local.server import free_port

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("TEST_KEDA"), reason="KEDA takes twenty minutes to build; `make test-keda` runs it"
    ),
    pytest.mark.integration,
    pytest.mark.timeout(900),
]
NAMES = ("127.0.0.1", "localhost", "keda-operator", "keda-operator.keda.svc", "keda-metrics-apiserver.keda.svc")


@pytest.fixture(scope="module")
def cluster(tool: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane whose HPA controller looks often, with KEDA's operator and metrics adapter."""
    tool("etcd")
    operator, adapter = tools.keda("operator"), tools.keda("adapter")
    flags = ("--horizontal-pod-autoscaler-sync-period=3s", "--horizontal-pod-autoscaler-downscale-stabilization=5s")
    with Cluster(tmp_path_factory.mktemp("keda"), controller_flags=flags) as started:
        _start_keda(started, operator, adapter)
        yield started


def _start_keda(cluster: Cluster, operator: Path, adapter: Path) -> None:
    certificates = cluster.directory / "keda"
    certificates.mkdir()
    leaf = cluster.authority.issue_cert(*NAMES)
    cluster.authority.cert_pem.write_to_path(certificates / "ca.crt")
    leaf.private_key_pem.write_to_path(certificates / "tls.key")
    leaf.cert_chain_pems[0].write_to_path(certificates / "tls.crt")
    cluster.namespace("keda")
    environment = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
        "POD_NAMESPACE": "keda",
        "WATCH_NAMESPACE": "",
    }
    metrics, health, service, secure, own = (free_port() for _ in range(5))
    rotation = ("--enable-cert-rotation=false", "--enable-webhook-patching=false", "--enable-apiservice-patching=false")
    addresses = (f"--metrics-bind-address=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{health}")
    service_address = f"--metrics-service-bind-address=127.0.0.1:{service}"
    directory = f"--cert-dir={certificates}"
    cluster.spawn(
        "keda-operator",
        "--leader-elect=false",
        *addresses,
        service_address,
        *rotation,
        directory,
        environment=environment,
        program=operator,
    )
    access = [f"--{kind}-kubeconfig={cluster.kubeconfig}" for kind in ("lister", "authentication", "authorization")]
    tls = [
        f"--client-ca-file={certificates}/ca.crt",
        f"--tls-cert-file={certificates}/tls.crt",
        f"--tls-private-key-file={certificates}/tls.key",
        directory,
    ]
    where = [
        f"--secure-port={secure}",
        "--bind-address=127.0.0.1",
        f"--port={own}",
        f"--metrics-service-address=127.0.0.1:{service}",
    ]
    cluster.spawn("keda-adapter", *where, *access, *tls, environment=environment, program=adapter)
    name = {"name": "keda-metrics-apiserver", "namespace": "keda"}
    authority = base64.b64encode((certificates / "ca.crt").read_bytes()).decode()
    registration = {
        "group": "external.metrics.k8s.io",
        "version": "v1beta1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": name,
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
            "spec": {**registration, "caBundle": authority, "service": {**name, "port": secure}},
        },
    )
    cluster.kubectl("wait", "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io", "--timeout=120s")


def test_lag_brings_workers_and_their_work_sends_them_home(cluster: Cluster, worker_env: dict[str, str]) -> None:
    """300 waiting records bring one worker per partition and no more; once they are committed one is left."""
    servers, topic, group = (
        worker_env[f"ASSAY_KAFKA__{name}"] for name in ("BOOTSTRAP_SERVERS", "INCOMING_TOPIC", "GROUP_ID")
    )
    producer = KafkaProducer(bootstrap_servers=servers)
    for number in range(300):
        producer.send(topic, value=b"image", partition=number % PARTITIONS)
    producer.flush()
    _commit(servers, topic, group, 0)

    cluster.namespace("app")
    kafka = {"bootstrap_servers": [servers], "group_id": group, "incoming_topic": topic}
    options = [
        f"settings.kafka.{name}={value if name != 'bootstrap_servers' else '{' + servers + '}'}"
        for name, value in kafka.items()
    ]
    options += [
        "autoscaling.mode=keda",
        "autoscaling.minReplicas=1",
        "autoscaling.maxReplicas=8",
        "autoscaling.lagPerReplica=20",
    ]
    options += ["autoscaling.pollingSeconds=3", "autoscaling.stabilizationSeconds=5", "pdb.maxUnavailable=1"]
    cluster.helm(
        "install", "assay", str(chart.CHART), "-n", "app", *(part for option in options for part in ("--set", option))
    )
    cluster.kubectl("wait", "--for=condition=Ready", "scaledobject/assay", "-n", "app", "--timeout=90s")
    wait_until(lambda: _ready(cluster) == PARTITIONS, "a worker for each partition", 180)

    _commit(servers, topic, group, 100)
    wait_until(lambda: _ready(cluster) == 1, "one worker left", 240)
    scaled = cluster.get("scaledobject", "assay", "-n", "app")
    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (1, 8)


def _ready(cluster: Cluster) -> int:
    deployment = cluster.get("deployment", "assay", "-n", "app")
    ready: int = deployment["status"].get("readyReplicas", 0)
    return ready if ready == deployment["spec"]["replicas"] else -1


def _commit(servers: str, topic: str, group: str, offset: int) -> None:
    """Set the group's offset in every partition, as a worker's commits would."""
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    consumer.commit({partition: OffsetAndMetadata(offset, "", -1) for partition in partitions})
    consumer.close()
