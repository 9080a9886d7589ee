"""The field's own checkers over everything the chart renders, and over the Dockerfiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.deploy import chart, schemas
from worker.local import paths

Tool = Callable[[str], Path]
VERSIONS = ("1.30", "1.33", "1.36", "1.37")
DOCKER = paths.CHECKOUT / "deploy" / "docker"
# Findings of kube-score that are decided otherwise, and why.
DECIDED = {
    "deployment-has-host-podantiaffinity": (
        "topologySpreadConstraints spread over nodes and zones; anti-affinity would forbid two workers on a node "
        "with two GPUs"
    ),
    "container-image-pull-policy": (
        "IfNotPresent with digests or immutable tags; Always would make every restart depend on the registry"
    ),
}


def _run(*command: str | Path, cwd: Path | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, input=stdin, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def schema_folder(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Schemas of every version under test, and of the CRDs."""
    out = tmp_path_factory.mktemp("schemas")
    for version in VERSIONS:
        schemas.kubernetes(tool("schemas"), version, out)
    schemas.custom(tool("crds"), out / "custom")
    return out


@pytest.mark.parametrize("name", chart.NAMES)
def test_helm_lint_is_strictly_content(helm: Path, name: str) -> None:
    """helm lint --strict has no finding, with every values file."""
    done = _run(helm, "lint", "--strict", chart.CHART, "-f", chart.CHART / "ci" / f"{name}-values.yaml")
    assert done.returncode == 0 and "[WARNING]" not in done.stdout, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", chart.NAMES)
def test_manifests_follow_the_schemas(helm: Path, tool: Tool, schema_folder: Path, name: str, version: str) -> None:
    """Every object is valid, unknown fields refused, for the oldest, the newest and two Kubernetes versions between."""
    locations = [
        f"{schema_folder}/{{{{.NormalizedKubernetesVersion}}}}-local{{{{.StrictSuffix}}}}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    ]
    locations.append(f"{schema_folder}/custom/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json")
    options = [option for location in locations for option in ("-schema-location", location)]
    done = _run(
        tool("kubeconform"), "-strict", "-kubernetes-version", f"{version}.0", *options, stdin=chart.manifest(name)
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_field_is_found(tool: Tool, schema_folder: Path) -> None:
    """The schemas do refuse: a wrong field in a Kubernetes kind and in a CRD is reported."""
    text = (
        chart.manifest("everything")
        .replace("minReplicaCount:", "minReplicasCount:")
        .replace("terminationGracePeriodSeconds:", "gracePeriod:")
    )
    location = f"{schema_folder}/custom/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    own = f"{schema_folder}/{{{{.NormalizedKubernetesVersion}}}}-local{{{{.StrictSuffix}}}}"
    own += "/{{.ResourceKind}}{{.KindSuffix}}.json"
    done = _run(
        tool("kubeconform"),
        "-strict",
        "-kubernetes-version",
        "1.36.0",
        "-schema-location",
        own,
        "-schema-location",
        location,
        stdin=text,
    )
    assert "minReplicasCount" in done.stdout and "gracePeriod" in done.stdout


@pytest.mark.parametrize("name", chart.NAMES)
def test_kube_score_has_no_finding(helm: Path, tool: Tool, name: str) -> None:
    """kube-score has nothing to say, beyond what is decided above."""
    ignored = [option for test in DECIDED for option in ("--ignore-test", test)]
    done = _run(
        tool("kube_score"),
        "score",
        "--kubernetes-version",
        "v1.30",
        "--output-format",
        "ci",
        *ignored,
        "-",
        stdin=chart.manifest(name),
    )
    findings = [line for line in done.stdout.splitlines() if not line.startswith(("[OK]", "[SKIPPED]"))]
    assert findings == []


def test_helm_unittest_suites_pass(tool: Tool, tmp_path: Path) -> None:
    """The chart's own suites, one for each part that can be switched, pass."""
    copy = tmp_path / "assay"
    shutil.copytree(chart.CHART, copy)
    done = _run(tool("helm_unittest"), "--strict", copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_file_follows_the_specification(tool: Tool) -> None:
    """The Compose specification's own loader takes compose.yaml, and finds a misspelt key."""
    loader, folder = tool("compose_spec"), DOCKER.parent
    good = _run(loader, "compose.yaml", cwd=folder)
    assert good.returncode == 0, good.stderr
    builds = [service["build"] for service in yaml.safe_load(good.stdout)["services"].values() if "build" in service]
    assert builds and all((Path(build["context"]) / build["dockerfile"]).parent == DOCKER for build in builds)
    text = (folder / "compose.yaml").read_text().replace("stop_grace_period", "stop_grace")
    bad = _run(loader, "-", cwd=folder, stdin=text)
    assert bad.returncode != 0 and "stop_grace" in bad.stderr, bad.stderr


def test_compose_services_are_restricted() -> None:
    """Every service is without capabilities and cannot gain any; all but the broker have a root they cannot write to,
    and a /tmp.
    """
    services = yaml.safe_load((DOCKER.parent / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add"} & set(service), name
        assert service["read_only"] is (name != "kafka"), name
        assert {entry.split(":")[0] for entry in service["tmpfs"]} >= {"/tmp"}, name


def test_every_base_can_be_pinned() -> None:
    """No stage of a Dockerfile and no service of compose.yaml names an image that an argument or a variable could not
    replace by a digest.
    """
    for file in DOCKER.glob("*.Dockerfile"):
        assert set(re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)) == {"${BASE}"}, file.name
    for name, service in yaml.safe_load((DOCKER.parent / "compose.yaml").read_text())["services"].items():
        outside = service["build"]["args"]["BASE"] if "build" in service else service["image"]
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-\S+:\S+\}", outside), name


@pytest.mark.parametrize("file", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_hadolint_has_no_finding(tool: Tool, file: Path) -> None:
    """hadolint is content, and the base is an argument with a pinned default."""
    done = _run(tool("hadolint"), file)
    assert done.returncode == 0 and done.stdout == "", done.stdout
    base = re.search(r"^ARG BASE=\S+:(\S+)$", file.read_text(), re.MULTILINE)
    assert base and base[1] != "latest"
    assert re.search(r"^USER 10001:10001$", file.read_text(), re.MULTILINE)
