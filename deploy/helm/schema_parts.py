"""What the chart's JSON Schema is made of: the kinds of values that Kubernetes knows, each with its pattern."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
IMAGE_DIGEST = r"^(sha256:[0-9a-f]{64})?$"
_WORD = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_LABEL = rf"^({_WORD})?$"
DNS_NAME = rf"^({_WORD}(\.{_WORD})*)?$"
LABEL_KEY = rf"^({_WORD}(\.{_WORD})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
RESOURCE = rf"^{_WORD}(\.{_WORD})*/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
_PATH_PART = "[a-z0-9]+([._-]+[a-z0-9]+)*"
REPOSITORY = rf"^([A-Za-z0-9.-]+(:[0-9]+)?/)?{_PATH_PART}(/{_PATH_PART})*$"
DURATION = "^([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
SURGE = [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,3}%$"}]
AWAY = [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(100|[0-9]{1,2})%$"}]


def cron() -> str:
    """Pattern of what a CronJob takes for a schedule, or of nothing."""
    day, month, weekday = "(0?[1-9]|[12][0-9]|3[01])", "(0?[1-9]|1[0-2]|[A-Za-z]{3})", "([0-6]|[A-Za-z]{3})"
    values = ("[0-5]?[0-9]", "([01]?[0-9]|2[0-3])", day, month, weekday)
    items = [rf"(\*|\?|{value}(-{value})?)(/[1-9][0-9]*)?" for value in values]
    return (
        r"^(@(yearly|annually|monthly|weekly|daily|midnight|hourly|every "
        rf"([0-9]+[hms])+)|{' +'.join(f'{item}(,{item})*' for item in items)})?$"
    )


def obj(description: str, **properties: Schema) -> Schema:
    """An object that refuses unknown keys, and null for known ones: it takes the default away, which the templates rely
    on.
    """
    required = [key for key, body in properties.items() if "null" not in body.get("type", ())]
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def number(description: str, minimum: int = 0, **more: Any) -> Schema:
    return {"type": "integer", "description": description, "minimum": minimum, **more}


def flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def choice(description: str, *values: str) -> Schema:
    return {"description": description, "enum": list(values)}


def free(description: str) -> Schema:
    """An object that Kubernetes itself defines and checks."""
    return {"type": "object", "description": description, "additionalProperties": True}


def labels(description: str) -> Schema:
    return named(description, LABEL_KEY, {"type": "string", "pattern": LABEL_VALUE, "maxLength": 63})


def named(description: str, key: str, value: Schema) -> Schema:
    """An object with names of the pattern `key`."""
    return {
        "type": "object",
        "description": description,
        "patternProperties": {key: value},
        "additionalProperties": False,
    }


def annotations(description: str) -> Schema:
    return named(description, LABEL_KEY, {"type": "string"})


def name(description: str) -> Schema:
    """The name of an object."""
    return text(description, pattern=DNS_NAME, maxLength=253)


def array(description: str, items: Schema | None = None) -> Schema:
    return {"type": "array", "description": description, "items": items or {"type": "object"}}


def image(what: str) -> Schema:
    return obj(
        f"Image of {what}.",
        repository=text("Repository, with its registry, without a tag.", pattern=REPOSITORY),
        tag=text("Tag; the chart's appVersion when empty.", pattern="^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"),
        digest=text("Digest (`sha256:…`); wins over the tag.", pattern=IMAGE_DIGEST),
        pullPolicy=choice("When the kubelet pulls.", "Always", "IfNotPresent", "Never"),
    )


def resources(what: str) -> Schema:
    quantities = {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "string", "pattern": QUANTITY}, {"type": "number"}]},
    }
    body = obj(
        f"Resources of {what}; GPUs are added by `gpu`.",
        requests={**quantities, "description": "What the scheduler reserves; none when null."},
        limits={**quantities, "description": "What it may not exceed; nothing when null."},
    )
    return body | {"required": []}


def placement() -> dict[str, Schema]:
    return {
        "nodeSelector": labels("Labels a node must have."),
        "tolerations": array("Taints that are tolerated."),
        "affinity": free("Affinity rules, as in a pod."),
        "priorityClassName": name("Priority class; none when empty."),
        "runtimeClassName": name("Runtime class (`nvidia` on some GPU clusters); none when empty."),
        "podLabels": labels("More labels on the pods."),
        "podAnnotations": annotations("More annotations on the pods."),
    }


def rollout() -> Schema:
    return obj(
        "How a new version replaces the old one.",
        maxSurge={
            "description": "Pods beyond the wanted number; each takes a GPU of its own where pods have one.",
            "anyOf": SURGE,
        },
        maxUnavailable={"description": "Pods that may be missing meanwhile.", "anyOf": AWAY},
        progressDeadlineSeconds=number(
            "A roll-out without progress for so long counts as failed; leave time for a plan build.", 60
        ),
    )


def spread() -> Schema:
    values = ("DoNotSchedule", "ScheduleAnyway", "off")
    return obj(
        "How strictly the pods are spread.",
        node=choice("Over nodes.", *values),
        zone=choice("Over zones.", *values),
    )


def tls(server: str, *, client: bool) -> Schema:
    properties = {
        "secretName": name("Secret with the PEM files; none when empty."),
        "caKey": text("Key of the authorities to trust."),
    }
    if client:
        properties["certKey"] = text("Key of the client certificate (mutual TLS); none when empty.")
        properties["keyKey"] = text("Key of the client's private key (mutual TLS); none when empty.")
    return obj(f"TLS material for {server}, mounted as files.", **properties)


def policy_peers(description: str) -> Schema:
    return array(f"{description}; peers as in a NetworkPolicy, an empty list allows any address.")
