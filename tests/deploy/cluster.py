"""A real control plane on 127.0.0.1: etcd, kube-apiserver, controller-manager and scheduler; kwok plays the kubelets.

Nothing runs in the pods: probes, images and NetworkPolicies are not tested by it. Everything else is Kubernetes itself:
admission (Pod Security included), scheduling, roll-outs, disruption budgets, garbage collection.

Use:  with Cluster(folder) as cluster: cluster.kubectl("get", "nodes"); cluster.helm("install", …)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import trustme
import yaml

from tests.deploy import tools
from worker.local.server import free_port

TOKEN = "test-admin"
# A pod with this annotation (a duration, say 2s) gets ready so much later; others at once.
READY_AFTER = "test/ready-after"
NODES = 4
GPUS = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb")


class Cluster:
    """Raises tools.Missing before anything starts when a part cannot be had, AssertionError when one does not
    come up.
    """

    def __init__(self, directory: Path, *, controller_flags: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self.authority = trustme.CA()
        self._controller_flags = controller_flags
        self._processes: list[subprocess.Popen[bytes]] = []
        self._programs = {
            name: tools.kubernetes(name) for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        }
        self._programs |= {"etcd": tools.etcd(), "kwok": tools.kwok(), "kubectl": tools.kubectl(), "helm": tools.helm()}
        self._crds = tools.crds()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """kubectl as cluster administrator."""
        return self._run("kubectl", arguments, stdin, check=check)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`."""
        answer: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)
        return answer

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or update objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def helm(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """helm as cluster administrator."""
        return self._run("helm", arguments, None, check=check)

    def namespace(self, name: str, claims: tuple[str, ...] = ()) -> None:
        """A namespace that enforces Pod Security "restricted", with bound claims."""
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        for claim in claims:
            size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
            source = {"nfs": {"server": "127.0.0.1", "path": "/"}, "claimRef": {"namespace": name, "name": claim}}
            volume = {"capacity": size, "accessModes": modes, "storageClassName": "", **source}
            wanted = {
                "accessModes": modes,
                "storageClassName": "",
                "volumeName": f"{name}-{claim}",
                "resources": {"requests": size},
            }
            self.apply(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": f"{name}-{claim}"},
                    "spec": volume,
                },
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": claim, "namespace": name},
                    "spec": wanted,
                },
            )

    def _run(
        self, program: str, arguments: tuple[str, ...], stdin: str | None, *, check: bool
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)}
        command = [str(self._programs[program]), *arguments]
        done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done

    def spawn(
        self, name: str, *arguments: object, environment: Mapping[str, str] | None = None, program: Path | None = None
    ) -> None:
        """Start a part that ends with the cluster; its log is `<name>.log`."""
        with (self.directory / f"{name}.log").open("wb") as log:
            command = [str(program or self._programs[name]), *map(str, arguments)]
            self._processes.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, cwd=self.directory, env=os.environ | dict(environment or {})
                )
            )

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        etcd, peers, api, controllers, scheduler, kwok = (free_port() for _ in range(6))
        self._certificates()
        (self.directory / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        self._write_kubeconfig(api)
        client, peer = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peers}"
        addresses = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        self.spawn(
            "etcd",
            "--data-dir",
            "etcd",
            *addresses,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            f"default={peer}",
            "--unsafe-no-fsync",
        )
        keys = [
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
        ]
        serving = [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={api}",
            "--tls-cert-file=tls.crt",
            "--tls-private-key-file=tls.key",
        ]
        access = [
            "--token-auth-file=tokens.csv",
            "--authorization-mode=RBAC",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
        ]
        front = [
            "--requestheader-client-ca-file=ca.crt",
            "--requestheader-allowed-names=",
            "--proxy-client-cert-file=tls.crt",
            "--proxy-client-key-file=tls.key",
        ]
        front += [
            f"--requestheader-{part}=X-Remote-{name}"
            for part, name in (
                ("username-headers", "User"),
                ("group-headers", "Group"),
                ("extra-headers-prefix", "Extra-"),
            )
        ]
        # Debian's etcd 3.4 cannot stream lists; clients that are promised it try for half a minute before they list in
        # the old way.
        self.spawn(
            "kube-apiserver",
            f"--etcd-servers={client}",
            "--feature-gates=WatchList=false",
            *serving,
            *keys,
            *access,
            *front,
        )
        self._wait("the API server", lambda: self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0)
        own = [f"--kubeconfig={self.kubeconfig}", "--bind-address=127.0.0.1", "--leader-elect=false"]
        account = [
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=ca.crt",
            "--use-service-account-credentials=false",
        ]
        self.spawn("kube-controller-manager", *own, f"--secure-port={controllers}", *account, *self._controller_flags)
        self.spawn("kube-scheduler", *own, f"--secure-port={scheduler}")
        # Without leases of its own the nodes would flap.
        stages = self._stages()
        leases = [
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            "--node-ip=127.0.0.1",
            f"--server-address=127.0.0.1:{kwok}",
        ]
        self.spawn("kwok", f"--kubeconfig={self.kubeconfig}", f"--config={stages}", *leases)
        self._furnish()

    def _stages(self) -> Path:
        """kwok's stages, with READY_AFTER."""
        stages = list(yaml.safe_load_all(self._programs["kwok"].with_name("stages.yaml").read_text()))
        ready = next(stage for stage in stages if stage["metadata"]["name"] == "pod-ready")
        ready["spec"]["delay"] = {
            "durationMilliseconds": 0,
            "durationFrom": {"expressionFrom": f'.metadata.annotations["{READY_AFTER}"]'},
        }
        path = self.directory / "stages.yaml"
        path.write_text(yaml.safe_dump_all(stages))
        return path

    def _certificates(self) -> None:
        leaf = self.authority.issue_cert("127.0.0.1", "10.0.0.1", "localhost", "kubernetes.default.svc")
        self.authority.cert_pem.write_to_path(self.directory / "ca.crt")
        leaf.private_key_pem.write_to_path(self.directory / "tls.key")
        for number, part in enumerate(leaf.cert_chain_pems):
            part.write_to_path(self.directory / "tls.crt", append=number > 0)
        for command in (["genrsa", "-out", "sa.key", "2048"], ["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"]):
            subprocess.run(["openssl", *command], cwd=self.directory, capture_output=True, check=True)

    def _write_kubeconfig(self, port: int) -> None:
        cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.directory / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
        }
        config |= {
            "clusters": [{"name": "test", "cluster": cluster}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _furnish(self) -> None:
        """Nodes in three zones with every kind of GPU, the CRDs, and what the values files refer to."""
        capacity = {
            "cpu": "512",
            "memory": "2Ti",
            "pods": "250",
            "ephemeral-storage": "2Ti",
            **dict.fromkeys(GPUS, "64"),
        }
        for number in range(NODES):
            labels = {
                "kubernetes.io/hostname": f"n{number}",
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": f"z{number % 3}",
            }
            labels |= {"node.kubernetes.io/instance-type": "gpu-1x"}
            self.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": f"n{number}", "labels": labels},
                    "status": {"allocatable": capacity, "capacity": capacity},
                }
            )
            self.kubectl(
                "patch",
                "node",
                f"n{number}",
                "--subresource=status",
                "-p",
                json.dumps({"status": {"allocatable": capacity, "capacity": capacity}}),
            )
        self.kubectl("create", "-f", str(self._crds))
        established = ("wait", "--for=condition=Established", "crd", "--all", "--timeout=20s")
        self._wait("the CRDs", lambda: self.kubectl(*established, check=False).returncode == 0)
        self.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": "moderation"},
                "value": 1000,
            },
            {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "nvidia"},
                "handler": "nvidia",
            },
        )

    def _wait(self, what: str, ready: Callable[[], bool], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            ended = [process.args for process in self._processes if process.poll() is not None]
            assert not ended, f"{ended} ended; see the logs in {self.directory}"
            assert time.monotonic() < deadline, (
                f"{what} is not up within {timeout_s:.0f} s; see the logs in {self.directory}"
            )
            time.sleep(0.3)
