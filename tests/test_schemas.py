"""The published schemas: valid in themselves, true of what is published, and strict about what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.contents import verdicts
from tests.properties import given
from worker.contract import REFERENCE_CONTENT_TYPE, VERDICT_TYPE, Verdict
from worker.errors import RejectReason
from worker.parking import RETRY_HEADERS
from worker.rejections import OMISSION_HEADERS, REJECTION_HEADERS
from worker.schemas import SCHEMAS, asyncapi

VERDICT = SCHEMAS["verdict"]()
REFERENCE = SCHEMAS["reference"]()


@pytest.mark.parametrize("schema", [VERDICT, REFERENCE], ids=["verdict", "reference"])
def test_a_schema_is_valid_json_schema(schema: dict[str, Any]) -> None:
    """JSON Schema 2020-12, named so, with a title."""
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"]
    Draft202012Validator.check_schema(schema)


@given(verdicts())
def test_every_verdict_fits_its_schema(verdict: Verdict) -> None:
    """What `to_json` writes is what the schema promises; without any one of its fields it is not."""
    written = json.loads(verdict.to_json())
    checked = Draft202012Validator(VERDICT)
    assert not list(checked.iter_errors(written))
    for name in VERDICT["required"]:
        assert not checked.is_valid({key: value for key, value in written.items() if key != name})


def test_every_field_of_a_verdict_is_promised() -> None:
    """Consumers may rely on all fields being there, but for those of 1.1: an older verdict lacks them."""
    later = {"origin", "detectors", "evidence", "labels", "headers"}
    assert set(VERDICT["properties"]) - later == set(VERDICT["required"])
    for name, part in VERDICT["$defs"].items():
        later = {"jpeg_quality", "frames"} if name == "ImageInfo" else set()
        assert set(part["properties"]) - later == set(part["required"])


@pytest.mark.parametrize(
    "change",
    [
        {"decision": "maybe"},
        {"schema": "assay.verdict/2"},
        {"sha256": "xyz"},
        {"scores": {"linear": 2, "knn": 0, "svm": 0}},
        {"source": "guess"},
    ],
)
def test_what_is_no_verdict_does_not_fit(change: dict[str, Any]) -> None:
    """The schema can tell: unknown decisions, other versions, scores beyond 1."""
    good = json.loads(
        Verdict.model_validate(
            {
                "verdict_id": "00000000-0000-5000-8000-000000000000",
                "image_id": "a",
                "sha256": "0" * 64,
                "decision": "real",
                "reasons": ["linear 0.1 < 0.35"],
                "scores": {"linear": 0.1, "knn": 0.2, "svm": 0.3},
                "model": {"name": "code", "version": "0" * 12},
                "policy": {"name": "default", "version": "0" * 12},
                "image": {"format": "png", "width": 1, "height": 1, "bytes": 1},
                "source": "model",
                "decided_at": "2026-11-21T12:00:00.000Z",
                "timings_ms": {"queued": 0, "decode": None, "infer": None, "total": 0},
            }
        ).to_json()
    )
    validator = Draft202012Validator(VERDICT)
    validator.validate(good)
    with pytest.raises(ValidationError):
        validator.validate(good | change)


def test_the_reference_schema() -> None:
    """Only the uri is required; a hash has 64 hex digits; further fields are allowed."""
    validator = Draft202012Validator(REFERENCE)
    validator.validate({"uri": "s3://b/k"})
    validator.validate({"uri": "s3://b/k", "sha256": "A" * 64, "id": "x", "tenant": 1})
    for bad in ({}, {"uri": ""}, {"uri": "s3://b/k", "sha256": "x"}):
        with pytest.raises(ValidationError):
            validator.validate(bad)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [value for key, value in node.items() if key == "$ref"] + [
            found for value in node.values() for found in references(value)
        ]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def test_every_reference_in_the_asyncapi_document_resolves() -> None:
    """Each `$ref` names a place in the same document."""
    document = asyncapi()
    found = references(document)
    assert found
    for reference in found:
        assert reference.startswith("#/")
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_asyncapi_document_tells_of_the_topics() -> None:
    """Topics, who sends what, the content type that switches to references, every reason and every header."""
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {channel["address"] for channel in document["channels"].values()} == {
        "images.incoming",
        "images.verdicts",
        "images.rejected",
        "images.retry",
        "images.reviews",
    }
    assert {name: operation["action"] for name, operation in document["operations"].items()} == {
        "judge": "receive",
        "publishVerdict": "send",
        "publishReview": "send",
        "reject": "send",
        "park": "send",
        "tryAgain": "receive",
    }
    messages = document["components"]["messages"]
    assert messages["imageReference"]["contentType"] == REFERENCE_CONTENT_TYPE
    assert messages["verdict"]["headers"]["properties"]["ce_type"] == {"const": VERDICT_TYPE}
    rejection = messages["rejection"]["headers"]["properties"]
    assert set(rejection) == REJECTION_HEADERS | OMISSION_HEADERS
    assert messages["parked"]["headers"]["required"] == list(RETRY_HEADERS)
    assert rejection["reject_reason"]["enum"] == [reason.value for reason in RejectReason]


def test_schemas_are_independent_of_one_another() -> None:
    """Making one does not change what another call gives."""
    assert SCHEMAS["verdict"]() == VERDICT
    asyncapi()["components"]["schemas"].clear()
    assert asyncapi()["components"]["schemas"].keys() == {"verdict", "reference", "review"}
