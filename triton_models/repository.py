"""A model repository as it was built: its manifest of hashes, and whether every file still is what the manifest says.

MANIFEST.json   model version, flavour, precision, plans' TensorRT and GPU, SHA-256 of every file
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from triton_models import plan
from triton_models.plan import PlanError

MANIFEST = "MANIFEST.json"
SHADOW = "code_shadow"
WEIGHTS_FOLDER = "weights"
SCHEMA = "assay.models/1"
_FIELDS = ("model_version", "version_number", "flavour", "precision", "code", "plans", "files")
_BUILD = "build the repository with python -m triton_models.build"


class BuildError(Exception):
    """A repository that cannot be built or must not be served; the message says why and what to do."""


def check(repository: Path) -> dict[str, Any]:
    """The manifest of `repository` if every file is as it was built and its plans are for this machine.

    Raises BuildError naming the first file that is not, PlanError for plans of another TensorRT or GPU.
    """
    manifest = read_manifest(repository)
    for name, expected in manifest["files"].items():
        file = repository / name
        if not file.is_file():
            raise BuildError(f"{file}: the file is missing; build the repository again")
        if file_hash(file) != expected:
            raise BuildError(
                f"{file}: damaged or replaced (SHA-256 differs from {MANIFEST}); build the repository again"
            )
    if plans := manifest.get("plans"):
        machine = plan.here()
        for graph_file in (name for name in manifest["files"] if name.endswith("/model.onnx")):
            # Plans of before the GPU's name was kept are for none.
            gpu = plan.Gpu(plans["capability"], plans.get("name", "an unnamed GPU"), plans.get("processors", 0))
            key = plan.Key(plans["tensorrt"], gpu, manifest["files"][graph_file])
            key.check(machine.trt.__version__, machine.gpu)
            if f"{Path(graph_file).parent.as_posix()}/{key.file_name}" not in manifest["files"]:
                raise PlanError(f"{repository / graph_file}: no plan of this graph stands beside it; {plan.REBUILD}")
    return manifest


def check_shadow(repository: Path) -> None:
    """A `code_shadow` stands in no manifest: its files against the hashes that its own configuration names (TensorRT's
    names none).

    Raises BuildError naming the first file that is not as it was built.
    """
    path = repository / SHADOW / "config.pbtxt"
    if not path.parent.is_dir():
        return
    advice = "roll the shadow out again, or end it with python -m triton_models.rollout unshadow"
    try:
        text = path.read_text()
        if 'backend: "tensorrt"' in text:
            return
        number, files = (
            re.search(r"versions: \[ (\d+) \]", text),
            re.search(r'key: "files" value \{ string_value: (".*") \}', text),
        )
        if number is None or files is None or not text.endswith("]\n"):
            raise ValueError("it is cut off, or not ours")
        hashes = json.loads(json.loads(files[1]))
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: damaged ({error}); {advice}") from error
    for name, expected in hashes.items():
        file = path.parent / number[1] / name
        if not file.is_file() or file_hash(file) != expected:
            raise BuildError(f"{file}: missing, damaged or replaced (SHA-256 differs from {path.name}); {advice}")


def read_manifest(repository: Path) -> dict[str, Any]:
    """The manifest of `repository`. Raises BuildError when it cannot be read."""
    path = repository / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(manifest, dict):
            raise ValueError("no object")  # noqa: TRY004 - told as other damage is
    except (OSError, ValueError) as error:
        raise BuildError(f"{path}: no readable manifest ({error}); {_BUILD}") from error
    if manifest.get("schema") != SCHEMA:
        raise BuildError(f"{path}: schema {manifest.get('schema')}, expected {SCHEMA}; {_BUILD}")
    if missing := [name for name in _FIELDS if name not in manifest]:
        raise BuildError(f"{path}: damaged, {', '.join(missing)} missing; {_BUILD}")
    if not isinstance(manifest["files"], dict):
        raise BuildError(f"{path}: damaged, files is no object; {_BUILD}")
    return manifest


def refuse_mount_point(repository: Path) -> None:
    """Raises BuildError for a folder that cannot change places with another."""
    if repository.is_mount():
        raise BuildError(f"{repository}: a mount point cannot be exchanged in one step; name a folder inside it")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
