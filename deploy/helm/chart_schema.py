"""The chart's own values, as JSON Schema: strict, every value with a description, the unit in its name.

`settings` and `secrets` come from the worker (generate.py); what stands here is what Kubernetes adds.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from deploy.helm.schema_parts import (
    DNS_LABEL,
    DURATION,
    QUANTITY,
    RESOURCE,
    Schema,
    annotations,
    array,
    choice,
    cron,
    flag,
    image,
    labels,
    name,
    named,
    number,
    obj,
    placement,
    policy_peers,
    resources,
    rollout,
    spread,
    text,
    tls,
)

ALERTS = Path(__file__).with_name("assay") / "files" / "alerts.yaml"


def properties() -> dict[str, Schema]:
    """Every top-level value but `settings` and `secrets`."""
    return {
        "nameOverride": text("Instead of the chart's name in object names.", pattern=DNS_LABEL, maxLength=63),
        "fullnameOverride": text("Instead of release and chart name in object names.", pattern=DNS_LABEL),
        "commonLabels": labels("Labels on every object."),
        "imagePullSecrets": array("Pull secrets, `{name: …}`."),
        "worker": _worker(),
        "policy": obj(
            "From scores to decisions.",
            toml=text("Policy as TOML; the built-in one when empty."),
            shadowToml=text("Another policy as TOML, which is counted beside it and decides nothing; none when empty."),
        ),
        "evidence": _evidence(),
        "tls": _tls(),
        "triton": _triton(),
        "models": _models(),
        "gpu": _gpu(),
        "topic": obj(
            "The incoming topic.",
            partitions=number("Its partitions; checked against the number of workers. 0: unknown, not checked."),
        ),
        "autoscaling": _autoscaling(),
        "pdb": obj(
            "Disruption budget of the workers.",
            enabled=flag("Make one."),
            maxUnavailable=number("Workers that may be away at once.", 1),
        ),
        "serviceAccount": _service_account(),
        "networkPolicy": _network_policy(),
        "monitoring": _monitoring(),
        "console": _console(),
        "helmTest": obj(
            "`helm test`: send one image, wait for its verdict.",
            enabled=flag("Make the pod."),
            timeoutSeconds=number("How long to wait.", 1),
        ),
        "training": _training(),
        "extraObjects": array("More objects, each a map or a template as text.", {"type": ["object", "string"]}),
    }


def alert_names() -> list[str]:
    """Every alert of the chart, in order."""
    return [rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def _worker() -> Schema:
    return obj(
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
    )


def _console() -> Schema:
    return obj(
        "The review console, where people decide what is in doubt; its settings stand under `settings.console`.",
        enabled=flag("Make it: a Deployment with a Service on port 80."),
        replicas=number("Pods; they share the work. More than one needs the secret `console.secret`.", 1),
        usersSecret=name(
            "Secret whose key `users.toml` has the users; not needed with `settings.console.auth: proxy`."
        ),
        queuesToml=text("Queues as TOML; one of all verdicts `review` when empty."),
        resources=resources("the console"),
        ingress=obj(
            "A way in from outside of the cluster.",
            enabled=flag("Make it; set `settings.console.behind_tls` where it ends TLS."),
            className=text("Its class; the cluster's default when empty."),
            host=text("Host name."),
            tlsSecretName=name("Secret with its certificate; none when empty."),
            annotations=annotations("Annotations (an OIDC proxy's, say)."),
        ),
        **{"from": policy_peers("Who may open the pages (the ingress controller, say)")},
        **placement(),
    )


def _evidence() -> Schema:
    return obj(
        "What files say about their origin.",
        c2paTrust=obj(
            "Authorities whose signers' C2PA manifests count; with none every sound manifest is `untrusted`.",
            pem=text("Their certificates as PEM."),
            configMapName=name("A ConfigMap that has them instead; pods read it when they start."),
            key=text("Its key.", minLength=1),
        ),
    )


def _tls() -> Schema:
    return obj(
        "TLS material, each from a Secret.",
        kafka=tls("Kafka", client=True),
        redis=tls("Redis", client=True),
        triton=tls("an external Triton", client=True),
        references=tls("hosts that references name", client=False),
    )


def _triton() -> Schema:
    return obj(
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
    )


def _models() -> Schema:
    return obj(
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
            "Secret whose keys become variables of the init container (AWS_ACCESS_KEY_ID, HF_TOKEN); none when empty."
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
    )


def _gpu() -> Schema:
    return obj(
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
    )


def _autoscaling() -> Schema:
    return obj(
        "More and fewer workers.",
        mode=choice("`keda`: on Kafka lag; `hpa`: on CPU; `none`: `worker.replicas`.", "none", "hpa", "keda"),
        minReplicas=number("Fewest workers; never 0 (the group would be lost with the last one).", 1),
        maxReplicas=number("Most workers; with maxSurge at most `topic.partitions`.", 1),
        lagPerReplica=number("KEDA: records of lag that one worker is to have.", 1),
        pollingSeconds=number("KEDA: how often the lag is read.", 1),
        targetCPU=number("HPA: wanted CPU use, per cent of the request.", 1, maximum=100),
        stabilizationSeconds=number("How long a lower need must last before workers go.", 0, maximum=3600),
    )


def _service_account() -> Schema:
    return obj(
        "The pods' account; no token is mounted.",
        create=flag("Make one."),
        name=name("Its name; the release's when empty."),
        annotations=annotations("Annotations (a cloud role for S3, say)."),
    )


def _network_policy() -> Schema:
    return obj(
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
    )


def _monitoring() -> Schema:
    return obj(
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
    )


def _training() -> Schema:
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
