"""Lays out JSON schemas as kubeconform reads them: Kubernetes' own kinds per version, and the CRDs that the
chart uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]


def kubernetes(package: Path, version: str, out: Path) -> None:
    """`version` (1.36) of kubernetes-validate's schemas, strict and not. Its references are absolute, and an `$id`
    would make them downloads.
    """
    for suffix in ("", "-strict"):
        folder = out / f"v{version}.0-local{suffix}"
        folder.mkdir(parents=True)
        for file in (package / "kubernetes-json-schema" / folder.name).glob("*.json"):
            schema = json.loads(file.read_text().replace('"/api/_definitions.json', '"_definitions.json'))
            schema.pop("$id", None)
            (folder / file.name).write_text(json.dumps(schema))


def custom(crds: Path, out: Path) -> None:
    """The schemas of the CRDs, unknown fields refused, as <kind>-<group>-<version>.json."""
    out.mkdir(parents=True)
    for file in crds.glob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            if not document or document["kind"] != "CustomResourceDefinition":
                continue
            kind, group = document["spec"]["names"]["kind"].lower(), document["spec"]["group"].split(".")[0]
            for version in document["spec"]["versions"]:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"] |= {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                }
                (out / f"{kind}-{group}-{version['name']}.json").write_text(json.dumps(schema))


def _strict(schema: Schema) -> Schema:
    """OpenAPI as Kubernetes means it, in JSON Schema: unknown fields are refused, but never inside a combination
    (anyOf, …).
    """
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for inner in schema.get("properties", {}).values():
        _strict(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _strict(schema[key])
    return schema
