"""Every knob, once. Environment `ASSAY_<GROUP>__<FIELD>` beats the TOML file of `--config`, which beats the defaults
here.

A secret may also come from a file: `ASSAY_<GROUP>__<FIELD>_FILE=/run/secrets/…`. docs/settings.md is generated from
this
file (`make docs`), so a field's description is its documentation: say what it does, the unit is in the name.

pydantic-settings is not used: it can neither name the variable behind an error nor refuse a misspelt nested one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from worker.errors import SettingsError

PREFIX = "ASSAY_"
DELIMITER = "__"
MIB = 1024 * 1024
_DURATION = re.compile(r"^\s*(\d+)\s*(s|m|h|d)?\s*$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, None: 1}


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _seconds(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.match(value)):
        return int(match[1]) * _SECONDS[match[2]]
    return value


def _redis_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value().strip()
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a URL that begins with redis://, rediss:// or unix:// is expected")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for what is no port
    except ValueError:
        raise ValueError("a port from 1 to 65535 is expected in the URL") from None
    if parts.scheme != "unix" and not (parts.hostname and re.fullmatch(r"(/\d*)?", parts.path)):
        raise ValueError("a host and, behind it, nothing or the number of a database are expected in the URL")
    if parts.query:
        from redis import ConnectionPool  # noqa: PLC0415  # options are the client's own, and rare

        try:
            ConnectionPool.from_url(text).make_connection()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the client does not know an option of the URL ({error})") from None
    return SecretStr(text)


def _server(address: str) -> str:
    """`host:port` with a port that exists; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"{address!r} is no host:port")
    if not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{address!r} needs a port from 1 to 65535")
    return address


def _servers(addresses: list[str]) -> list[str]:
    return [_server(address) for address in addresses]


def _triton_url(url: str) -> str:
    scheme, separator, address = url.rpartition("://")
    if separator and scheme not in ("grpc", "grpcs"):
        raise ValueError(f"{scheme}:// is neither grpc:// nor grpcs://")
    _server(address)
    return url


CommaList = Annotated[list[str], BeforeValidator(_split)]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]


class Group(BaseModel):
    """A group of settings: unknown names are refused, so that a misspelt one cannot be silently ignored."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class KafkaSettings(Group):
    """The broker, the topics and the consumer group."""

    bootstrap_servers: Annotated[CommaList, AfterValidator(_servers)] = Field(
        default=["localhost:9092"], min_length=1, description="Brokers to start from, `host:port`, comma separated."
    )
    group_id: str = Field(
        default="assay-worker", min_length=1, description="Consumer group; workers of one group share the partitions."
    )
    incoming_topic: Topic = Field(default="images.incoming", description="Topic the images come from.")
    verdicts_topic: Topic = Field(default="images.verdicts", description="Topic the verdicts go to.")
    rejected_topic: Topic = Field(
        default="images.rejected", description="Topic for records that no verdict can be given for."
    )
    auto_offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where a new group starts to read."
    )
    group_instance_id: str | None = Field(
        default=None, description="Static membership: a name that survives a restart (in a StatefulSet the pod's name)."
    )
    client_id: str = Field(default="assay", description="Name of this client in the broker's logs and quotas.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Transport and authentication."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism, where the protocol has SASL."
    )
    sasl_username: str | None = Field(default=None, description="SASL user name.")
    sasl_password: SecretStr | None = Field(default=None, description="SASL password.")
    ssl_ca_path: Path | None = Field(
        default=None, description="PEM file with the authorities to trust; the system's when unset."
    )
    ssl_cert_path: Path | None = Field(default=None, description="PEM file with the client certificate (mutual TLS).")
    ssl_key_path: Path | None = Field(default=None, description="PEM file with the client's key (mutual TLS).")
    ssl_key_password: SecretStr | None = Field(default=None, description="Password of the client's key.")
    ssl_check_hostname: bool = Field(default=True, description="Compare the broker's certificate with its host name.")
    session_timeout_ms: int = Field(
        default=10_000, ge=1000, description="A worker silent for so long loses its partitions."
    )
    heartbeat_interval_ms: int = Field(
        default=2_000,
        ge=100,
        description="Heartbeat to the group coordinator; half of the session time-out at most, a third is usual.",
    )
    max_poll_interval_ms: int = Field(
        default=300_000, ge=10_000, description="A worker that does not poll for so long loses its partitions."
    )
    max_poll_records: PositiveInt = Field(default=64, description="Records taken from the consumer at once.")
    fetch_max_bytes: int = Field(
        default=16 * MIB, ge=MIB, description="Bytes one fetch may bring; part of the memory bound."
    )
    max_partition_fetch_bytes: int = Field(
        default=4 * MIB, ge=MIB, description="Bytes of one partition in a fetch; a larger record still comes, alone."
    )
    max_request_bytes: int = Field(
        default=48 * MIB,
        ge=MIB,
        description="Largest record to produce. A rejection is the record and some headers: it and the rejected topic's max.message.bytes "
        "must be above the incoming topic's.",
    )
    # The client refuses more: it closes connections that have been idle for 540 s.
    request_timeout_ms: int = Field(
        default=15_000, ge=1000, le=539_999, description="Deadline of one request to a broker."
    )
    commit_interval_ms: int = Field(default=1_000, ge=50, description="How often finished offsets are committed.")

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSettings:
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            raise ValueError(
                f"heartbeat_interval_ms: at most half of session_timeout_ms={self.session_timeout_ms} is expected"
            )
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"sasl_username: security_protocol={self.security_protocol} needs sasl_username and sasl_password"
            )
        if len({self.incoming_topic, self.verdicts_topic, self.rejected_topic}) < 3:
            raise ValueError(
                "incoming_topic: it, verdicts_topic and rejected_topic must differ, or the worker consumes what it writes"
            )
        return self


class RedisSettings(Group):
    """Where verdicts are stored and hashes cached."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description="`redis://`, `rediss://` (TLS) or `unix://`; user, password and database may stand in it.",
    )
    mode: Literal["standalone", "sentinel", "cluster"] = Field(
        default="standalone",
        description="Kind of deployment behind the URL. `sentinel`: its host does not count, the rest does; `cluster`: it names any node.",
    )
    sentinels: Annotated[CommaList, AfterValidator(_servers)] = Field(
        default=[],
        description="Sentinels `host:port`, comma separated (mode sentinel); asked over TLS where the URL is rediss://.",
    )
    sentinel_service: str = Field(default="mymaster", description="Name of the master that the sentinels watch.")
    username: str | None = Field(default=None, description="ACL user, where it is not in the URL.")
    password: SecretStr | None = Field(default=None, description="Password, where it is not in the URL.")
    sentinel_password: SecretStr | None = Field(default=None, description="Password of the sentinels themselves.")
    ssl_ca_path: Path | None = Field(default=None, description="PEM file with the authorities to trust.")
    ssl_cert_path: Path | None = Field(default=None, description="PEM file with the client certificate.")
    ssl_key_path: Path | None = Field(default=None, description="PEM file with the client's key.")
    key_prefix: str = Field(default="assay:", description="Prefix of every key.")
    verdict_ttl: Duration = Field(
        default=30 * 86400,
        description="Life of a verdict: seconds, or with a unit (`12h`, `30d`); 0 keeps it for ever.",
        json_schema_extra={"unit": "s"},
    )
    hash_ttl: Duration = Field(
        default=7 * 86400,
        description="Life of a cache entry: seconds, or with a unit; 0 keeps it for ever.",
        json_schema_extra={"unit": "s"},
    )
    timeout_ms: int = Field(default=2_000, ge=10, description="Deadline of one call.")

    @model_validator(mode="after")
    def _fits_together(self) -> RedisSettings:
        if self.mode == "sentinel" and not self.sentinels:
            raise ValueError("sentinels: mode=sentinel needs them (host:port, comma separated)")
        url = urlsplit(self.url.get_secret_value())
        if self.mode == "sentinel" and url.scheme == "unix":
            raise ValueError("url: mode=sentinel needs redis:// or rediss://; the sentinels tell host and port")
        if self.mode == "cluster" and (url.scheme == "unix" or url.path.strip("/") not in ("", "0")):
            raise ValueError("url: mode=cluster needs redis:// or rediss:// with a host, and has database 0 alone")
        return self


class TritonSettings(Group):
    """The inference server."""

    url: Annotated[str, AfterValidator(_triton_url)] = Field(
        default="localhost:8001",
        description="gRPC address: `host:port`, `grpc://host:port`, or `grpcs://host:port` (TLS).",
    )
    model_name: str = Field(default="code", min_length=1, description="Model that turns pixels into scores.")
    ssl_ca_path: Path | None = Field(default=None, description="PEM file with the authorities to trust (grpcs).")
    ssl_cert_path: Path | None = Field(default=None, description="PEM file with the client certificate (grpcs).")
    ssl_key_path: Path | None = Field(default=None, description="PEM file with the client's key (grpcs).")
    deadline_ms: int = Field(default=30_000, ge=100, description="Deadline of one inference call.")
    calls_in_flight: int = Field(
        default=2, ge=1, le=64, description="Inference calls under way at once; each holds one batch."
    )
    shared_memory: Literal["auto", "off", "system"] = Field(
        default="auto",
        description="Hand pixels over through shared memory; `auto` does so where worker and server share a host.",
    )
    max_attempts: PositiveInt = Field(
        default=3,
        description="Tries for one image that fails alone while the server is well; then it is rejected as inference_failed.",
    )
    reload_unhealthy: bool = Field(
        default=True,
        description="Ask the server to load the model again when its process has died (needs explicit model control; harmless without).",
    )


class IntakeSettings(Group):
    """From record to item: ids and batches."""

    id_sources: Annotated[list[Literal["ce_id", "key", "sha256"]], BeforeValidator(_split)] = Field(
        default=["ce_id", "key", "sha256"],
        min_length=1,
        description="Where the image id comes from, first that is there. A producer that keys by user must leave `key` out.",
    )
    batch_max_items: int = Field(default=32, ge=1, le=256, description="Images in one batch at most.")
    batch_max_bytes: int = Field(default=64 * MIB, ge=1024, description="Encoded bytes in one batch at most.")
    batch_max_wait_ms: int = Field(
        default=20, ge=0, description="A batch leaves when its oldest image has waited for so long."
    )


class FlowSettings(Group):
    """How much may be under way: with the fetch buffers of the consumer this bounds the worker's memory."""

    max_items: PositiveInt = Field(default=512, description="Records in work at once; at this mark consumption pauses.")
    max_bytes: int = Field(
        default=192 * MIB, ge=MIB, description="Encoded bytes in work at once; at this mark consumption pauses."
    )
    low_water: Share = Field(default=0.5, description="Share of the marks at which consumption resumes.")


class DecodeSettings(Group):
    """From bytes to pixels."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="Where DALI decodes; `auto` takes the GPU where there is one."
    )
    threads: int = Field(default=0, ge=0, le=256, description="DALI's threads; 0 takes one per core, 8 at most.")


class LimitSettings(Group):
    """What is too large, checked before anything is decoded."""

    max_image_bytes: PositiveInt = Field(default=25_000_000, description="Largest encoded image.")
    max_image_pixels: PositiveInt = Field(default=100_000_000, description="Largest image, width times height.")


class ReferenceSettings(Group):
    """Images by reference. Every scheme is off until it is allowed here."""

    schemes: Annotated[list[Literal["file", "https", "s3"]], BeforeValidator(_split)] = Field(
        default=[], description="Allowed schemes: some of `file`, `https`, `s3`."
    )
    file_roots: CommaList = Field(default=[], description="Folders that file:// may read from, links resolved.")
    https_hosts: CommaList = Field(
        default=[],
        description="Hosts that https:// may ask: `host` (port 443) or `host:port`; `*.example.org` takes every host below.",
    )
    https_ca_path: Path | None = Field(
        default=None, description="PEM file with the authorities to trust; the system's when unset."
    )
    allow_private_addresses: bool = Field(
        default=False, description="Let host names resolve to private, loopback or link-local addresses."
    )
    max_redirects: int = Field(
        default=0, ge=0, le=10, description="Redirects to follow; each target must be allowed too."
    )
    s3_buckets: CommaList = Field(default=[], description="Buckets that s3:// may read from.")
    s3_endpoint_url: str | None = Field(default=None, description="S3 endpoint, where it is not AWS.")
    s3_region: str | None = Field(default=None, description="S3 region.")
    s3_access_key_id: str | None = Field(default=None, description="S3 key id; the usual AWS chain when unset.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="S3 secret.")
    timeout_ms: int = Field(default=10_000, ge=100, description="Deadline of one fetch.")
    max_attempts: PositiveInt = Field(
        default=4,
        description="Tries for an object that fails while its storage answers; then it is rejected as fetch_failed.",
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Fetches under way at once.")


class CacheSettings(Group):
    """The hash cache."""

    enabled: bool = Field(default=True, description="Look scores up by SHA-256 and model version before decoding.")


class PolicySettings(Group):
    """From scores to a decision."""

    path: Path | None = Field(
        default=None, description="Policy as a TOML file; the built-in default when unset (docs/policy.md)."
    )


class ShadowSettings(Group):
    """A second model version beside the one that decides, on a sample of the traffic."""

    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the inferred images that the shadow model scores too, for comparison; it never decides. 0: off.",
    )
    model_name: str = Field(
        default="code_shadow", min_length=1, description="Name of the shadow model on the same server (docs/models.md)."
    )
    waiting_batches: PositiveInt = Field(
        default=4,
        description="Sampled batches that may wait for the shadow model; beyond that they are dropped and counted.",
    )
    stream_max_items: PositiveInt = Field(
        default=100_000, description="Comparisons kept in the Redis stream `assay:shadow:<model>`, about."
    )


class HttpSettings(Group):
    """Metrics and health."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: Port = Field(
        default=9464, description="Port of /metrics, /livez and /readyz; 0 takes a free one and logs it."
    )


class RetrySettings(Group):
    """How faults of a dependency are waited out: backoff with full jitter."""

    base_ms: PositiveInt = Field(default=50, description="First wait, before jitter.")
    max_ms: PositiveInt = Field(default=5_000, description="Longest wait.")
    breaker_failures: PositiveInt = Field(
        default=3, description="Failures in a row after which a dependency counts as away."
    )


class LogSettings(Group):
    """Logs, on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event to show."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto`: console on a terminal, JSON elsewhere."
    )


class TracingSettings(Group):
    """OpenTelemetry; the incoming trace context is continued without it."""

    enabled: bool = Field(
        default=False, description="Make spans (needs the extra `otel`); the exporter is set by the OTEL_* variables."
    )


class RunSettings(Group):
    """Life cycle of `run`."""

    startup_timeout_s: int = Field(
        default=600,
        ge=0,
        description="How long to wait for Kafka, Redis and Triton at start; then exit 3. 0 waits for ever.",
    )
    drain_timeout_s: int = Field(
        default=25, ge=1, description="How long SIGTERM lets work in flight finish; keep the grace period above it."
    )
    stall_timeout_s: int = Field(default=60, ge=5, description="/livez fails when the loop has not moved for so long.")


class StackSettings(Group):
    """The local stack of `stack` and `demo`."""

    dir: Path | None = Field(default=None, description="Run directory; `.assay/stack` beside the package when unset.")


class Settings(Group):
    """All settings of the worker."""

    model_config = ConfigDict(frozen=True)

    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    triton: TritonSettings = TritonSettings()
    intake: IntakeSettings = IntakeSettings()
    flow: FlowSettings = FlowSettings()
    decode: DecodeSettings = DecodeSettings()
    limits: LimitSettings = LimitSettings()
    references: ReferenceSettings = ReferenceSettings()
    cache: CacheSettings = CacheSettings()
    policy: PolicySettings = PolicySettings()
    shadow: ShadowSettings = ShadowSettings()
    http: HttpSettings = HttpSettings()
    retry: RetrySettings = RetrySettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    run: RunSettings = RunSettings()
    stack: StackSettings = StackSettings()

    @property
    def shadow_triton(self) -> TritonSettings:
        """How the shadow model is asked: on the same server, over plain gRPC, and nobody waits for it."""
        return self.triton.model_copy(
            update={"model_name": self.shadow.model_name, "shared_memory": "off", "reload_unhealthy": False}
        )


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """(group, field, info) of every setting, in the order of this file."""
    for group, info in Settings.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, Group)
        for name, field in info.annotation.model_fields.items():
            yield group, name, field


def variable(group: str, name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{group}{DELIMITER}{name}".upper()


def is_secret(field: FieldInfo) -> bool:
    """May the setting hold a password? Then no message shows its value, and it may come from a file."""
    return "SecretStr" in str(field.annotation)


def load(
    config: Path | None = None, environ: Mapping[str, str] | None = None, *, with_policy: bool = False
) -> Settings:
    """Settings from the environment, the TOML file `config` and the defaults, in that order.

    Raises SettingsError with every problem at once, one line each, naming the variable (or the file's key), the value
    (never a secret's) and what is expected; `with_policy`: those of the policy file too.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    if config is not None:
        _read_file(config, values, origin, problems)
    _read_environment(environ, values, origin, problems)
    settings: Settings | None = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += _describe(error, values, origin)
    if with_policy:
        problems += _policy_problems(values)
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def _policy_problems(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the policy file, so that it is told together with the rest."""
    from worker.policy import load_policy  # noqa: PLC0415  # it needs nothing of this module, and this one it only here

    path = values.get("policy", {}).get("path")
    try:
        load_policy(Path(path) if path else None)
    except SettingsError as error:
        return error.problems
    return []


def chosen(config: Path | None = None, environ: Mapping[str, str] | None = None) -> set[tuple[str, str]]:
    """(group, field) of every setting that the environment or the file sets."""
    values: dict[str, dict[str, Any]] = {}
    if config is not None:
        _read_file(config, values, {}, [])
    _read_environment(os.environ if environ is None else environ, values, {}, [])
    return {(group, name) for group, names in values.items() for name in names}


def _read_file(
    config: Path, values: dict[str, dict[str, Any]], origin: dict[tuple[str, str], str], problems: list[str]
) -> None:
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config {config}: {error}")
        return
    known = {(group, name) for group, name, _ in fields()}
    groups = sorted({group for group, _ in known})
    for group, table in document.items():
        if not isinstance(table, dict) or group not in groups:
            problems.append(f"{config}: [{group}] is no group of settings; expected one of {', '.join(groups)}")
            continue
        for name, value in table.items():
            if (group, name) not in known:
                problems.append(
                    f"{config}: {group}.{name} is no setting{_did_you_mean(name, [n for g, n in known if g == group])}"
                )
                continue
            values.setdefault(group, {})[name] = value
            origin[group, name] = f"{config}: {group}.{name}"


def _read_environment(
    environ: Mapping[str, str],
    values: dict[str, dict[str, Any]],
    origin: dict[tuple[str, str], str],
    problems: list[str],
) -> None:
    known = {variable(group, name): (group, name, field) for group, name, field in fields()}
    for key in sorted(k for k in environ if k.startswith(PREFIX)):
        text = environ[key]
        if key in known:
            group, name, _ = known[key]
        elif (
            key.endswith("_FILE")
            and key.removesuffix("_FILE") in known
            and is_secret(known[key.removesuffix("_FILE")][2])
        ):
            if key.removesuffix("_FILE") in environ:
                problems.append(f"{key}: {key.removesuffix('_FILE')} is set too; set one of the two")
                continue
            group, name, _ = known[key.removesuffix("_FILE")]
            try:
                text = Path(text).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{key}={environ[key]!r}: {error}")
                continue
        else:
            problems.append(f"{key} is no setting{_did_you_mean(key, list(known))}")
            continue
        values.setdefault(group, {})[name] = text
        origin[group, name] = key


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else "; docs/settings.md lists them all"


def _describe(
    error: ValidationError, values: Mapping[str, Mapping[str, Any]], origin: Mapping[tuple[str, str], str]
) -> Iterator[str]:
    by_name = {(group, name): field for group, name, field in fields()}
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        location = tuple(str(part) for part in item["loc"])
        if len(location) == 1:  # a rule over several fields: its message begins with the field to change
            name, _, message = message.partition(": ")
            location = (location[0], name)
        group, name = location[0], location[1]
        field = by_name.get((group, name))
        where = origin.get((group, name), variable(group, name))
        value = "(secret)" if field is not None and is_secret(field) else repr(values.get(group, {}).get(name))
        meaning = (
            f" ({field.description.split('. ')[0].rstrip('.')})" if field is not None and field.description else ""
        )
        yield f"{where}={value}: {message}{meaning}"
