"""What the worker would refuse at start, the chart refuses before anything is installed: the same values go to both."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from pydantic import AfterValidator

from deploy.helm import generate
from tests.deploy import chart
from worker import settings
from worker.cli.settings import load_with_policy
from worker.clients.fetch_s3 import S3Source
from worker.clients.fetch_uri import Rules
from worker.crop import CROP_BYTES
from worker.errors import SettingsError

pytestmark = pytest.mark.usefixtures("helm")
EXTERNAL = {"triton": {"mode": "external"}, "gpu": {"enabled": False}}


def _worker_starts(values: Mapping[str, Any], root: Path) -> settings.Settings:
    """The worker's settings from `settings`, `secrets.values` and `policy` of the values, through all that judges them
    at start. Raises SettingsError.
    """
    environ = {
        settings.variable(group, name): _text(value)
        for group, names in values.get("settings", {}).items()
        for name, value in names.items()
    }
    for name, value in values.get("secrets", {}).get("values", {}).items():
        environ[settings.variable(*name.split("."))] = value
    written = {("policy", "path"): values.get("policy", {}).get("toml")}
    written[("policy", "shadow_path")] = values.get("policy", {}).get("shadowToml")
    written[("evidence", "c2pa_trust_path")] = values.get("evidence", {}).get("c2paTrust", {}).get("pem")
    for (group, name), text in written.items():
        if text:
            (root / name).write_text(text)
            environ[settings.variable(group, name)] = str(root / name)
    found = load_with_policy(None, environ)
    Rules(found.references)
    if "s3" in found.references.schemes:
        S3Source(found.references, time.monotonic)
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one(group: str, name: str, value: Any, **more: Any) -> dict[str, Any]:
    return {**more, "settings": {group: {name: value}}}


def _references(**fields: Any) -> dict[str, Any]:
    return {"settings": {"references": {"schemes": ["s3", "https", "file"], **fields}}}


SERVERS = [
    "kafka",
    "kafka:",
    "kafka:0",
    "kafka:65536",
    "kafka:http",
    "PLAINTEXT://kafka:9092",
    "::1:9092",
    "[::1]",
    ":9092",
    "",
]
REDIS = [
    "redis:6379",
    "http://redis:6379",
    "redis://redis:99999/0",
    "redis://redis:abc/0",
    "redis://redis:6379/x",
    "redis://redis/0/1",
    "redis://",
    "redis://:6379",
]
SECRET_REDIS = ["redis:6379", "rediss://:word@redis:99999/0", "rediss://:word@redis:6379/cache", "rediss://:word@"]
POLICIES = [
    "fake_from = = 3",
    "threshold = 0.5",
    'head = "forest"',
    "head = 1",
    'name = ""',
    f'name = "{"n" * 65}"',
    "name = 1",
    "fake_from = 1.5",
    "real_below = -1",
    "fake_from = nan",
    "fake_from = [0.5]",
    "real_below = 0.9",
    "[default]\nfake_from = 0.7",
    "not a policy",
    "# nothing but a comment",
    'head = "knn"\n[[rules]]\nwhen = "true"\ndecision = "fake"',
    'threshold = 1\n[[rules]]\nwhen = "true"\ndecision = "fake"',
]
# What both refuse: the values, and a word that the chart's message must have.
BAD: list[tuple[dict[str, Any], str]] = [
    *((_one("kafka", "bootstrap_servers", [server]), "bootstrap_servers") for server in SERVERS),
    (_one("kafka", "bootstrap_servers", []), "bootstrap_servers"),
    (_one("kafka", "heartbeat_interval_ms", 5_001), "at most half of session_timeout_ms=10000"),
    (_one("kafka", "session_timeout_ms", 3_000), "at most half of session_timeout_ms=3000"),
    (_one("kafka", "request_timeout_ms", 540_000), "request_timeout_ms"),
    (_one("kafka", "incoming_topic", "images incoming"), "incoming_topic"),
    (_one("kafka", "rejected_topic", ""), "rejected_topic"),
    (_one("kafka", "rejected_topic", "images.incoming"), "must differ"),
    (_one("kafka", "retry_topic", "images.rejected"), "must differ"),
    ({"settings": {"kafka": {"incoming_topic": "a", "verdicts_topic": "a"}}}, "must differ"),
    (_one("kafka", "security_protocol", "SASL_SSL"), "kafka.sasl_password"),
    *((_one("redis", "url", url), "redis.url") for url in REDIS),
    *(({"secrets": {"values": {"redis.url": url}}}, "secrets.values.redis.url") for url in SECRET_REDIS),
    (_one("redis", "mode", "sentinel"), "settings.redis.sentinels"),
    ({"settings": {"redis": {"mode": "sentinel", "sentinels": ["sentinel"]}}}, "settings.redis.sentinels"),
    *(
        ({"settings": {"redis": {"mode": "cluster", "url": url}}}, "settings.redis.mode")
        for url in ("redis://redis:6379/1", "unix:///run/redis.sock")
    ),
    (
        {
            "settings": {"redis": {"mode": "cluster"}},
            "secrets": {"values": {"redis.url": "rediss://:word@redis:6379/1"}},
        },
        "settings.redis.mode",
    ),
    (_one("redis", "verdict_ttl", "90 days"), "verdict_ttl"),
    *(
        (_one("triton", "url", url, **EXTERNAL), "settings.triton.url")
        for url in (
            "triton",
            "triton:0",
            "http://triton:8000",
            "grpcs://triton:8443/v2",
            "grpc://triton",
            "grpc://grpc://triton:1",
        )
    ),
    (_one("intake", "id_sources", ["ce_id", "user"]), "id_sources"),
    (_one("intake", "id_sources", []), "id_sources"),
    (_one("references", "schemes", ["ftp"]), "schemes"),
    (_one("flow", "low_water", 0), "low_water"),
    *(
        (_references(https_hosts=[host]), "https_hosts")
        for host in ("https://example.org", "example.org:0", "a:70000", "a:b", "u@a", "*.", "*.10.0.0.1")
    ),
    (_references(file_roots=["archive"]), "file_roots"),
    *((_references(s3_endpoint_url=url), "s3_endpoint_url") for url in ("minio:9000", "s3.example.org", "https://")),
    (_references(s3_access_key_id="k"), "s3_access_key_id"),
    *(({"policy": {"toml": text}}, "policy.toml") for text in POLICIES),
    ({"policy": {"shadowToml": 'head = "forest"'}}, "policy.shadowToml: head"),
    ({"evidence": {"c2paTrust": {"pem": "no certificate"}}}, "evidence.c2paTrust.pem"),
    *((_one("detectors", "names", names), "detectors.names") for names in (["Clip"], ["a-b"], ["clip", "clip"])),
    (_one("detectors", "when", "scores.linear > 0.3"), "detectors.when"),
    (_one("console", "proxy_networks", ["proxy"]), "console.proxy_networks"),
    (_one("console", "tls_key_path", "/tls/tls.key"), "console.tls_cert_path"),
    ({"settings": {"console": {"auth": "none", "host": "0.0.0.0"}}}, "console.auth"),
    ({"secrets": {"values": {"console.secret": "short"}}}, "console.secret"),
]
GOOD: list[dict[str, Any]] = [
    _one("kafka", "bootstrap_servers", ["[::1]:9092", "kafka-0.example.org:65535"]),
    {"settings": {"detectors": {"names": ["clip", "b_2"], "when": "scores.linear > 0.3"}}},
    _one("console", "proxy_networks", ["10.0.0.0/8", "::1", "2001:db8::/32"]),
    {"settings": {"console": {"auth": "none", "host": "127.0.0.1"}}},
    {"settings": {"kafka": {"heartbeat_interval_ms": 1_000, "session_timeout_ms": 2_000}}},
    *(
        _one("redis", "url", url)
        for url in ("redis://redis", "rediss://[::1]:6380/1?ssl_check_hostname=true", "unix:///run/redis.sock")
    ),
    *(
        {"settings": {"redis": {"mode": "cluster", "url": url}}}
        for url in ("redis://redis", "rediss://[::1]:6379/0?health_check_interval=30")
    ),
    {"secrets": {"values": {"redis.url": "rediss://user:p%40ss:word@redis:6380/0\n"}}},
    *(
        _one("triton", "url", url, **EXTERNAL)
        for url in ("triton:8001", "grpc://[::1]:8001", "grpcs://triton.example.org:443")
    ),
    _references(
        https_hosts=["example.org", "*.example.org:8443", "[2001:db8::1]:443", "2001:db8::1"], file_roots=["/archive"]
    ),
    _references(s3_endpoint_url="http://minio.storage.svc:9000"),
    {**_references(s3_access_key_id="k"), "secrets": {"values": {"references.s3_secret_access_key": "s"}}},
    *(
        {"policy": {"toml": text}}
        for text in (
            "",
            '[[rules]]\nwhen = "scores.linear > 0.9"\ndecision = "fake"\n[otherwise]\ndecision = "review"',
            'fake_from = 0.9\n[calibration]\nmodel_version = "0123456789ab"',
            "fake_from = 1\nreal_below = 0",
            'head = "svm"\nfake_from = 0.5\nreal_below = 0.5',
        )
    ),
]


@pytest.mark.parametrize(("values", "word"), BAD, ids=lambda part: str(part)[:90])
def test_chart_and_worker_refuse_the_same(values: dict[str, Any], word: str, tmp_path: Path) -> None:
    """Values that the worker stops at do not render, and the message names the value."""
    with pytest.raises(SettingsError):
        _worker_starts(values, tmp_path)
    with pytest.raises(chart.Refused, match=word):
        chart.template(values=values)


@pytest.mark.parametrize("values", GOOD, ids=lambda part: str(part)[:90])
def test_chart_and_worker_accept_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    """Values that look odd and are right render, and the worker starts with them."""
    _worker_starts(values, tmp_path)
    assert chart.of_kind(chart.objects(chart.template(values=values)), "Deployment")


def _judged_by_code() -> Iterator[str]:
    """Settings and groups with a check of their own: no JSON Schema carries it into the chart."""
    for group, name, field in settings.fields():
        if any(isinstance(rule, AfterValidator) for rule in field.metadata):
            yield f"{group}.{name}"
    for group, info in settings.Settings.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, settings.Group)
        if info.annotation.__pydantic_decorators__.model_validators:
            yield group


def test_every_check_of_the_worker_has_a_case() -> None:
    """A new check in worker/settings/ fails here until the chart is tested against it."""
    tried = {
        place
        for values, _ in BAD
        for group, names in values.get("settings", {}).items()
        for place in (group, *(f"{group}.{n}" for n in names))
    }
    found = set(_judged_by_code())
    assert "kafka.bootstrap_servers" in found and "kafka" in found
    assert found - tried == set()


STOPPED_LATER = {
    "no brokers": (_one("kafka", "bootstrap_servers", None), "bootstrap_servers"),
    "no settings of Kafka": ({"settings": {"kafka": None}}, "kafka"),
    "no Redis": (_one("redis", "url", None), "settings.redis.url"),
    "a number that no float holds": (_one("limits", "max_image_bytes", 1e20), "max_image_bytes"),
    "a GPU to decode on": (_one("decode", "device", "gpu"), "settings.decode.device"),
    "bf16 on a CPU": (
        {"triton": {"flavour": "cpu"}, "gpu": {"enabled": False}, "models": {"precision": "bf16"}},
        "models.precision",
    ),
    "a model that is not served": (_one("triton", "model_name", "detector"), "settings.triton.model_name"),
    "a shadow model that is not served": (_one("shadow", "model_name", "candidate"), "settings.shadow.model_name"),
    "too little shared memory": (
        {
            "triton": {"sharedMemory": "64Mi"},
            "settings": {"triton": {"calls_in_flight": 3}, "intake": {"batch_max_items": 256}},
        },
        (
            r"triton.sharedMemory=64Mi: .*batch_max_items=256 .*calls_in_flight=3 calls take up to "
            rf"{-(-9 * 256 * CROP_BYTES // 2**20)}Mi"
        ),
    ),
    "too little shared memory for the CPU's model": (
        {"triton": {"flavour": "cpu", "sharedMemory": "32Mi"}, "gpu": {"enabled": False}},
        r"triton.sharedMemory=32Mi: .*take up to 67Mi",
    ),
    "more shared memory than memory": (
        {"triton": {"sharedMemory": "4.5Gi"}},
        "triton.sharedMemory=4.5Gi: .*limits.memory=4Gi",
    ),
    "no bucket": ({"models": {"source": "s3", "uri": "s3://"}}, "models.uri"),
    "weights of no place": ({"models": {"path": "weights"}}, "models.path"),
    "weights outside of the claim": (
        {"models": {"source": "pvc", "claimName": "c", "path": "../../etc"}},
        "models.path=../../etc: .* without",
    ),
    "the image's folder in a claim": (
        {"models": {"source": "pvc", "claimName": "c"}},
        "models.path: is the folder of Triton's image",
    ),
    "a hub's address twice": (
        {"models": {"source": "hub", "uri": "hub://a/b", "revision": "c0" * 20}},
        "models.uri=hub://a/b: models.source=hub needs organisation/repository",
    ),
    "a branch of the hub": ({"models": {"source": "hub", "uri": "a/b", "revision": "main"}}, "/models/revision"),
    "a branch of a shadow": (
        {"models": {"shadow": "hub://a/b@main"}, "settings": {"shadow": {"share": 0.1}}},
        "models.shadow",
    ),
    "a Secret without keys": ({"secrets": {"existingSecret": "s"}}, "secrets.existingSecret: nothing of it"),
    "CPU use of no request": (
        {"autoscaling": {"mode": "hpa"}, "worker": {"resources": {"requests": {"cpu": None}, "limits": {"cpu": None}}}},
        "worker.resources.requests.cpu",
    ),
    "an unpinned shadow": (
        {"models": {"shadow": "hub://a/b"}, "settings": {"shadow": {"share": 0.1}}},
        "models.shadow",
    ),
    "a port of an endpoint": (_references(s3_endpoint_url="http://minio:port"), "s3_endpoint_url"),
    "certificates without TLS to Triton": (
        {**_one("triton", "url", "triton:8001", **EXTERNAL), "tls": {"triton": {"secretName": "s"}}},
        "not encrypted",
    ),
}


@pytest.mark.parametrize("case", STOPPED_LATER)
def test_what_no_pod_could_start_with_is_refused(case: str) -> None:
    """Values that pass the worker's parser and would stop the init container, Triton or the decoder, or leave nothing
    to connect to, do not render either.
    """
    values, word = STOPPED_LATER[case]
    with pytest.raises(chart.Refused, match=word):
        chart.template(values=values)


def _keys(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, body in node.items():
        yield (*path, name)
        if isinstance(body, dict):
            yield from _keys(body, (*path, name))


@pytest.mark.slow
def test_an_empty_key_is_refused_or_means_none() -> None:
    """A key of values.yaml that is left empty takes its default away: the message names it, or what is rendered has no
    trace of it.
    """
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    validator, taken = Draft7Validator(generate.schema()), []
    for path in _keys(defaults):
        values, given = copy.deepcopy(defaults), None
        node = values
        for name in path[:-1]:
            node = node[name]
        del node[path[-1]]
        for name in reversed(path):
            given = {name: given}
        problems = [error.message for error in validator.iter_errors(values)]
        if problems:
            assert any(path[-1] in problem for problem in problems), path
            continue
        taken.append(".".join(path))
        try:
            said = chart.template(values=given)
        except chart.Refused as refused:
            said = str(refused)
        assert "kind: Deployment" in said or ("do not fit together" in said and path[-1] in said), path
        assert not any(word in said for word in ("nil", "%!", "null")), path
    assert {name.split(".")[0] for name in taken if ".resources." not in name} == {"settings", "monitoring", "training"}
