"""The schemas that the outside reads, generated from the models: JSON Schemas and an AsyncAPI document.

`python -m worker schema` prints them, `make docs` writes them to docs/schemas/; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker import __version__
from worker.contract import REFERENCE_CONTENT_TYPE, VERDICT_TYPE, ImageReference, Verdict, json_schema
from worker.errors import RejectReason
from worker.parking import RETRY_HEADERS
from worker.rejections import OMISSION_HEADERS, REJECTION_HEADERS
from worker.review import REVIEW_TYPE, Review
from worker.settings import KafkaSettings

_TEXT = {"type": "string"}


def _header_schema(
    names: list[str], exact: dict[str, Any] | None = None, required: list[str] | None = None
) -> dict[str, Any]:
    properties: dict[str, Any] = {name: _TEXT for name in names} | (exact or {})  # noqa: C420  # | needs the wider value type
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def _event_headers(event_type: str, more: list[str]) -> dict[str, Any]:
    """Of an event that we publish (CloudEvents 1.0, Kafka binary mode)."""
    return _header_schema(
        ["ce_id", "ce_source", "ce_time", *more],
        {
            "ce_type": {"const": event_type},
            "ce_specversion": {"const": "1.0"},
            "content-type": {"const": "application/json"},
        },
        ["ce_id", "ce_source", "ce_type", "ce_specversion", "content-type"],
    )


def _messages() -> dict[str, Any]:
    """What travels on the topics, by name."""
    cloud_events = ["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time"]
    image_bytes = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF"}
    rejection_names = sorted((REJECTION_HEADERS | OMISSION_HEADERS) - {"reject_reason"})
    return {
        "image": {
            "title": "An encoded image",
            "contentType": "image/*",
            "headers": _header_schema([*cloud_events, "content-type", "traceparent"]),
            "payload": image_bytes,
        },
        "imageReference": {
            "title": "A reference to an image (claim check)",
            "contentType": REFERENCE_CONTENT_TYPE,
            "headers": _header_schema(
                [*cloud_events, "traceparent"], {"content-type": {"const": REFERENCE_CONTENT_TYPE}}
            ),
            "payload": {"$ref": "#/components/schemas/reference"},
        },
        "verdict": {
            "title": "A verdict",
            "contentType": "application/json",
            "headers": _event_headers(VERDICT_TYPE, ["traceparent"]),
            "payload": {"$ref": "#/components/schemas/verdict"},
        },
        "review": {
            "title": "What a person decided of a verdict",
            "contentType": "application/json",
            "headers": _event_headers(REVIEW_TYPE, []),
            "payload": {"$ref": "#/components/schemas/review"},
        },
        "rejection": {
            "title": "A record that no verdict can be given for, byte for byte, with all its headers and these",
            "headers": _header_schema(
                rejection_names,
                {"reject_reason": {"enum": [reason.value for reason in RejectReason]}},
                ["reject_reason"],
            ),
            "payload": {},
        },
        "parked": {
            "title": "A reference whose storage is away, byte for byte, with all its headers and these",
            "headers": _header_schema(list(RETRY_HEADERS), {}, list(RETRY_HEADERS)),
            "payload": {"$ref": "#/components/schemas/reference"},
        },
    }


def asyncapi() -> dict[str, Any]:
    """The topics as an AsyncAPI 3.0 document."""
    kafka = KafkaSettings()
    channels = {
        "incoming": (kafka.incoming_topic, ["image", "imageReference"], "Images to judge; the key is optional."),
        "verdicts": (kafka.verdicts_topic, ["verdict"], "One record for each verdict, keyed by image id."),
        "rejected": (kafka.rejected_topic, ["rejection"], "Records with a reason; `replay` puts them back."),
        "retry": (kafka.retry_topic, ["parked"], "References whose storage is away; workers take them up again."),
        "reviews": (kafka.reviews_topic, ["review"], "One record for each decision of a person, keyed by image id."),
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Assay",
            "version": __version__,
            "license": {"name": "Apache-2.0"},
            "description": "Images in, verdicts out.",
        },
        "channels": {
            name: {
                "address": address,
                "description": description,
                "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in carried},
            }
            for name, (address, carried, description) in channels.items()
        },
        "operations": {
            "judge": {"action": "receive", "channel": {"$ref": "#/channels/incoming"}},
            "publishVerdict": {"action": "send", "channel": {"$ref": "#/channels/verdicts"}},
            "reject": {"action": "send", "channel": {"$ref": "#/channels/rejected"}},
            "park": {"action": "send", "channel": {"$ref": "#/channels/retry"}},
            "publishReview": {"action": "send", "channel": {"$ref": "#/channels/reviews"}},
            "tryAgain": {"action": "receive", "channel": {"$ref": "#/channels/retry"}},
        },
        "components": {
            "messages": _messages(),
            "schemas": {
                "verdict": _inlined(json_schema(Verdict)),
                "reference": json_schema(ImageReference),
                "review": _inlined(json_schema(Review)),
            },
        },
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its `$defs` in place: inside another document `#/$defs/…` would point nowhere."""
    definitions = schema.get("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].removeprefix("#/$defs/")]) | {
                    k: v for k, v in node.items() if k != "$ref"
                }
            return {key: resolve(value) for key, value in node.items() if key != "$defs"}
        return [resolve(value) for value in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = resolve(schema)
    return inlined


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "verdict": lambda: json_schema(Verdict),
    "reference": lambda: json_schema(ImageReference),
    "review": lambda: json_schema(Review),
    "asyncapi": asyncapi,
}
