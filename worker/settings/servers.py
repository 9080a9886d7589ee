"""Where Kafka, Redis and Triton are, and how they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from worker.settings.types import MIB, Duration, Group, PositiveInt, RedisUrl, Servers, Topic, TritonUrl, broken_rule


class KafkaSettings(Group):
    """The broker, the topics and the consumer group."""

    bootstrap_servers: Servers = Field(
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
    retry_topic: Topic = Field(
        default="images.retry",
        description="Topic where references to a storage that is away wait; read by the same workers.",
    )
    reviews_topic: Topic = Field(
        default="images.reviews", description="Topic where the console writes what people decided."
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
    max_record_bytes: int = Field(
        default=64 * MIB,
        ge=MIB,
        description="Largest record to take out of a fetched batch, which may be compressed; of a longer one the value"
        " is passed over, and it is rejected as too_large without it.",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed", description="Whether records of aborted transactions are left out."
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="lz4", description="How verdicts and rejections are compressed; readers of the topics must have it."
    )
    max_request_bytes: int = Field(
        default=48 * MIB,
        ge=MIB,
        description="Largest record to produce, as compressed. A rejection is the record and some headers: below the"
        " incoming topic's max.message.bytes (here, or on the rejected topic) the longest go without their value.",
    )
    # The client refuses more: it closes connections that have been idle for 540 s.
    request_timeout_ms: int = Field(
        default=15_000, ge=1000, le=539_999, description="Deadline of one request to a broker."
    )
    commit_interval_ms: int = Field(default=1_000, ge=50, description="How often finished offsets are committed.")

    @model_validator(mode="after")
    def _fits_together(self) -> KafkaSettings:
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            raise broken_rule(
                "heartbeat_interval_ms", f"at most half of session_timeout_ms={self.session_timeout_ms} is expected"
            )
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise broken_rule(
                "sasl_username", f"security_protocol={self.security_protocol} needs sasl_username and sasl_password"
            )
        topics = (self.incoming_topic, self.verdicts_topic, self.rejected_topic, self.retry_topic, self.reviews_topic)
        if len(set(topics)) < len(topics):
            raise broken_rule(
                "incoming_topic",
                "it, verdicts_topic, rejected_topic, retry_topic and reviews_topic must differ, or the worker consumes"
                " what it writes",
            )
        return self


class RedisSettings(Group):
    """Where verdicts are stored and hashes cached."""

    url: RedisUrl = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description="`redis://`, `rediss://` (TLS) or `unix://`; user, password and database may stand in it.",
    )
    mode: Literal["standalone", "sentinel", "cluster"] = Field(
        default="standalone",
        description="Kind of deployment behind the URL. `sentinel`: its host does not count, the rest does; `cluster`: "
        "it names any node.",
    )
    sentinels: Servers = Field(
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
            raise broken_rule("sentinels", "mode=sentinel needs them (host:port, comma separated)")
        url = urlsplit(self.url.get_secret_value())
        if self.mode == "sentinel" and url.scheme == "unix":
            raise broken_rule("url", "mode=sentinel needs redis:// or rediss://; the sentinels tell host and port")
        if self.mode == "cluster" and (url.scheme == "unix" or url.path.strip("/") not in ("", "0")):
            raise broken_rule("url", "mode=cluster needs redis:// or rediss:// with a host, and has database 0 alone")
        return self


class TritonSettings(Group):
    """The inference server."""

    url: TritonUrl = Field(
        default="localhost:8001",
        description="gRPC address: `host:port`, `grpc://host:port`, or `grpcs://host:port` (TLS).",
    )
    model_name: str = Field(default="code", min_length=1, description="Model that turns pixels into scores.")
    ssl_ca_path: Path | None = Field(default=None, description="PEM file with the authorities to trust (grpcs).")
    ssl_cert_path: Path | None = Field(default=None, description="PEM file with the client certificate (grpcs).")
    ssl_key_path: Path | None = Field(default=None, description="PEM file with the client's key (grpcs).")
    control_key: SecretStr | None = Field(
        default=None,
        description="What the server wants to hear before it loads a model (`--grpc-restricted-protocol="
        "model-repository:assay-control-key=…`); for reload_unhealthy.",
    )
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
        description="Tries for one image that fails alone while the server is well; then it is rejected as "
        "inference_failed.",
    )
    reload_unhealthy: bool = Field(
        default=True,
        description="Ask the server to load the model again when its process has died (needs explicit model control; "
        "harmless without).",
    )
