"""The chart's own values, as JSON Schema: strict, every value with a description, the unit in its name.

`settings` and `secrets` come from the worker (generate.py); what stands here is what Kubernetes adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
ALERTS = Path(__file__).with_name("assay") / "files" / "alerts.yaml"


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


def alert_names() -> list[str]:
    """Every alert of the chart, in order."""
    return [rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def properties() -> dict[str, Schema]:
    """Every top-level value but `settings` and `secrets`."""
    return {
        "nameOverride": text("Instead of the chart's name in object names.", pattern=DNS_LABEL, maxLength=63),
        "fullnameOverride": text("Instead of release and chart name in object names.", pattern=DNS_LABEL),
        "commonLabels": labels("Labels on every object."),
        "imagePullSecrets": array("Pull secrets, `{name: …}`."),
        "worker": obj(
            "The worker's Deployment.",
            image=image("the worker"),
            replicas=number("Pods, where `autoscaling.mode` is none.", 1),
            resources=resources("the worker"),
            rollout=rollout(),
            spread=spread(),
            preStopSeconds=number("Sleep before SIGTERM; part of the grace period."),
            drainMarginSeconds=number(
                "Grace beyond preStop and `settings.run.drain_timeout_s`, for the last commit and the exit (9 "
                "s with all servers frozen).",
                10,
            ),
            extraEnv=array("More variables (OTEL_*, AWS_*); settings belong under `settings`, where they are checked."),
            extraVolumes=array("More volumes (for file references, say)."),
            extraVolumeMounts=array("Their mounts."),
            **placement(),
        ),
        "policy": obj(
            "From scores to decisions.",
            toml=text("Policy as TOML; the built-in one when empty."),
            shadowToml=text("Another policy as TOML, which is counted beside it and decides nothing; none when empty."),
        ),
        "evidence": obj(
            "What files say about their origin.",
            c2paTrust=obj(
                "Authorities whose signers' C2PA manifests count; with none every sound manifest is `untrusted`.",
                pem=text("Their certificates as PEM."),
                configMapName=name("A ConfigMap that has them instead; pods read it when they start."),
                key=text("Its key.", minLength=1),
            ),
        ),
        "tls": obj(
            "TLS material, each from a Secret.",
            kafka=tls("Kafka", client=True),
            redis=tls("Redis", client=True),
            triton=tls("an external Triton", client=True),
            references=tls("hosts that references name", client=False),
        ),
        "triton": obj(
            "The inference server.",
            mode=choice(
                "`sidecar`: in each worker's pod; `service`: a Deployment of its own; `external`: at "
                "`settings.triton.url`.",
                "sidecar",
                "service",
                "external",
            ),
            flavour=choice("`tensorrt`: plans, needs `gpu.enabled`; `cpu`: ONNX Runtime.", "tensorrt", "cpu"),
            image=image("Triton"),
            replicas=number("Pods in mode service.", 1),
            resources=resources("Triton"),
            sharedMemory=text(
                "Size of /dev/shm, which worker and sidecar share; it counts against the memory limits.",
                pattern=QUANTITY,
            ),
            startupSeconds=number("How long loading the models may take.", 10),
            extraArgs=array("More arguments of tritonserver.", {"type": "string"}),
            rollout=rollout(),
            spread=spread(),
            pdb=obj("Disruption budget in mode service.", maxUnavailable=number("Pods that may be away at once.", 1)),
            **placement(),
        ),
        "models": obj(
            "Where the weights come from; an init container builds, verifies and caches the model repository.",
            source=choice(
                "`image`: in Triton's image; `pvc`: a claim; `s3`: a bucket; `hub`: a model hub.",
                "image",
                "pvc",
                "s3",
                "hub",
            ),
            path=text("Folder of the weights, in the image or in the claim.", minLength=1),
            claimName=name("The claim (source pvc), mounted read-only."),
            uri=text("`s3://bucket/prefix` (source s3) or `organisation/repository` (source hub)."),
            revision=text("Commit of the hub repository (40 hex digits).", pattern="^([0-9a-f]{40})?$"),
            s3EndpointUrl=text(
                "S3 endpoint (`http://minio.storage.svc:9000`), for weights in a bucket that is not at AWS."
            ),
            credentialsSecret=name(
                "Secret whose keys become variables of the init container (AWS_ACCESS_KEY_ID, HF_TOKEN); none "
                "when empty."
            ),
            expectedVersion=text(
                "Model version (12 hex digits) that the weights must have; any when empty.", pattern="^([0-9a-f]{12})?$"
            ),
            precision=choice(
                "Precision of the encoder's matrix products; `auto`: fp16 in plans, fp32 on CPUs.",
                "auto",
                "fp32",
                "fp16",
                "bf16",
            ),
            shadow=text(
                "Weights of a shadow model (folder in the image, `s3://bucket/prefix`, "
                "`hub://organisation/repository@commit`); none when empty."
            ),
            buildSeconds=number("How long fetching and building may take; goes into the roll-out's deadline.", 30),
            cacheClaimName=name(
                "ReadWriteMany claim that keeps built plans per TensorRT version and GPU type; each pod builds "
                "anew when empty."
            ),
            resources=resources("the init container"),
        ),
        "gpu": obj(
            "Accelerators.",
            enabled=flag("Give Triton a GPU."),
            resource=text(
                "Resource name: a whole GPU (`nvidia.com/gpu`), a slice (`nvidia.com/mig-1g.10gb`) or a shared one.",
                pattern=RESOURCE,
            ),
            count=number("How many for each Triton.", 1),
            worker=flag(
                "Give the worker one too, to decode on it (device plugins hand out GPUs per container: meant "
                "for slices and time-slicing)."
            ),
        ),
        "topic": obj(
            "The incoming topic.",
            partitions=number("Its partitions; checked against the number of workers. 0: unknown, not checked."),
        ),
        "autoscaling": obj(
            "More and fewer workers.",
            mode=choice("`keda`: on Kafka lag; `hpa`: on CPU; `none`: `worker.replicas`.", "none", "hpa", "keda"),
            minReplicas=number("Fewest workers; never 0 (the group would be lost with the last one).", 1),
            maxReplicas=number("Most workers; with maxSurge at most `topic.partitions`.", 1),
            lagPerReplica=number("KEDA: records of lag that one worker is to have.", 1),
            pollingSeconds=number("KEDA: how often the lag is read.", 1),
            targetCPU=number("HPA: wanted CPU use, per cent of the request.", 1, maximum=100),
            stabilizationSeconds=number("How long a lower need must last before workers go.", 0, maximum=3600),
        ),
        "pdb": obj(
            "Disruption budget of the workers.",
            enabled=flag("Make one."),
            maxUnavailable=number("Workers that may be away at once.", 1),
        ),
        "serviceAccount": obj(
            "The pods' account; no token is mounted.",
            create=flag("Make one."),
            name=name("Its name; the release's when empty."),
            annotations=annotations("Annotations (a cloud role for S3, say)."),
        ),
        "networkPolicy": obj(
            "Who may talk to whom: nothing but what is named here.",
            enabled=flag("Make them."),
            kafka=policy_peers("Where the brokers are"),
            redis=policy_peers("Where Redis is"),
            triton=policy_peers("Where an external Triton is"),
            s3=array(
                "Where the buckets of references and models are; peers as in a NetworkPolicy, an empty list "
                "allows public addresses alone."
            ),
            metricsFrom=policy_peers("Who may scrape"),
            referencesExcept=array("Networks that references must not reach.", {"type": "string"}),
            extraEgress=array("More egress rules (an OpenTelemetry collector, an IPv6 network)."),
        ),
        "monitoring": obj(
            "Prometheus and Grafana.",
            podMonitor=obj(
                "Scraping, by the Prometheus operator.",
                enabled=flag("Make it."),
                interval=text("How often (`15s`).", pattern=DURATION, minLength=1),
                labels=labels("Labels that your Prometheus selects."),
            ),
            rules=obj(
                "Alerts, by the Prometheus operator.",
                enabled=flag("Make them."),
                labels=labels("Labels that your Prometheus selects."),
                alertLabels=named(
                    "More labels on every alert; the severity of each stays its own.",
                    "^[a-zA-Z_][a-zA-Z0-9_]*$",
                    {"type": "string"},
                ),
                disabled=array("Names of alerts to leave out.", {"enum": alert_names()}),
                runbookUrl=text(
                    "Where docs/runbook.md is published; the alert's name is appended as an anchor.", minLength=1
                ),
            ),
            dashboards=obj(
                "Dashboards, for Grafana's sidecar.",
                enabled=flag("Make the ConfigMap."),
                labels=labels("Labels that the sidecar selects."),
                folder=text("Grafana folder."),
            ),
        ),
        "helmTest": obj(
            "`helm test`: send one image, wait for its verdict.",
            enabled=flag("Make the pod."),
            timeoutSeconds=number("How long to wait.", 1),
        ),
        "training": training(),
        "extraObjects": array("More objects, each a map or a template as text.", {"type": ["object", "string"]}),
    }


def training() -> Schema:
    return obj(
        "Training with torchrun, as a Job or, with a schedule, a CronJob.",
        enabled=flag("Make it."),
        schedule=text("Cron schedule (`0 3 * * 0`, `@weekly`); a single Job when empty.", pattern=cron()),
        image=image("training"),
        args=array(
            "Arguments of `python -m train.main`; `$(JOB_NAME)` is the Job's name; `--restartable` lets the "
            "next pod go on.",
            {"type": "string"},
        ),
        nodes=number("Pods; they meet through a headless Service.", 1),
        gpusPerNode=number("GPUs, and processes, of each pod; 0 trains on the CPU with one process."),
        resources=resources("a training pod"),
        dataClaimName=name("Claim with data and runs (ReadWriteMany with several nodes), mounted at /data."),
        sharedMemory=text("Size of /dev/shm, for the data loaders.", pattern=QUANTITY),
        backoffLimit=number("Pods that may fail before the Job gives up."),
        activeDeadlineSeconds=number("Longest run.", 60),
        ttlSecondsAfterFinished={
            "type": ["integer", "null"],
            "minimum": 0,
            "description": (
                "How long a finished Job stays; for good when null. Once it is gone, the next upgrade makes it, "
                "and its run, again."
            ),
        },
        **placement(),
    )
