"""Renders the chart for the tests, and reads back what a pod would see."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import tools
from worker.local import paths

CHART = paths.CHECKOUT / "deploy" / "helm" / "assay"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
NAMES = [path.name.removesuffix("-values.yaml") for path in VALUES]

Object = dict[str, Any]


class Refused(Exception):
    """Helm refused the values; the text is what it says."""


def template(*arguments: str, values: Mapping[str, Any] | None = None, release: str = "assay") -> str:
    """`helm template` of a release; `values` come last. Raises Refused."""
    command = [str(tools.helm()), "template", release, str(CHART), "--kube-version", "1.36.3", *arguments]
    if values is not None:
        command += ["-f", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


@cache
def manifest(name: str) -> str:
    """The manifest of a values file in ci/."""
    return template("-f", str(CHART / "ci" / f"{name}-values.yaml"))


def objects(text: str) -> list[Object]:
    """The objects of a manifest."""
    return [item for item in yaml.safe_load_all(text) if item]


def of_kind(items: Iterable[Object], *kinds: str) -> list[Object]:
    """Those of the kinds."""
    return [item for item in items if item["kind"] in kinds]


def pod_specs(items: Iterable[Object]) -> list[tuple[str, Object]]:
    """(kind/name, pod specification) of everything that makes pods."""
    found = []
    for item in items:
        spec = item.get("spec", {})
        if item["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        pod = spec if item["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if pod:
            found.append((f"{item['kind']}/{item['metadata']['name']}", pod))
    return found


def containers(pod: Object) -> list[Object]:
    """All containers, those for the start included."""
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(items: list[Object], container: Object, pod: Object, root: Path) -> dict[str, str]:
    """What the container's process would find in its environment; mounted secrets and ConfigMaps are laid out below
    `root`.
    """
    config_maps = {item["metadata"]["name"]: item["data"] for item in of_kind(items, "ConfigMap") if "data" in item}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= config_maps[source["configMapRef"]["name"]]
    found |= {entry["name"]: entry["value"] for entry in container.get("env", [])}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, place = volumes[mount["name"]], root / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        for item in volume.get("secret", {}).get("items", []):
            (place / item["path"]).write_text(_secret_value(item["path"]))
        for key, text in config_maps.get(volume.get("configMap", {}).get("name", ""), {}).items():
            (place / key).write_text(text)
    # Mounted files are found below `root` here.
    return {name: f"{root}{value}" if name.endswith(("_FILE", "_PATH")) else value for name, value in found.items()}


def _secret_value(name: str) -> str:
    return "rediss://:word@redis.example.org:6380/0" if name == "redis.url" else "a word of more than 32 characters"
