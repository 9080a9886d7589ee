"""Kafka through kafka-python: the options that its clients share, and what their errors mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import structlog
from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
)

from worker.clients.kafka_probe import diagnose, key_password
from worker.errors import Unavailable
from worker.settings import KafkaSettings

log = structlog.get_logger(__name__)
# A guard against ports that speak something else; whatever batch its topic has allowed must get through.
_MAX_ANSWER_BYTES = 1024 * 1024 * 1024
_WHO_MAY = "docs/deploy.md lists the permissions that the worker's user needs"


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options that every client shares."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": settings.request_timeout_ms,
        "bootstrap_timeout_ms": settings.request_timeout_ms,
        "reconnect_backoff_max_ms": 1_000,
    }
    if "SSL" in settings.security_protocol:
        options |= {
            "ssl_cafile": settings.ssl_ca_path,
            "ssl_certfile": settings.ssl_cert_path,
            "ssl_keyfile": settings.ssl_key_path,
            "ssl_password": key_password(settings),
            "ssl_check_hostname": settings.ssl_check_hostname,
        }
    if settings.security_protocol.startswith("SASL"):
        assert settings.sasl_password is not None
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options


def explain(settings: KafkaSettings, error: BaseException) -> str:
    """The error in one line that says what to change, as far as that can be found out."""
    text = str(error) or type(error).__name__
    if isinstance(error, (KafkaTimeoutError, KafkaConnectionError, SaslAuthenticationFailedError)) and (
        objection := diagnose(settings)
    ):
        return objection
    if isinstance(error, AuthorizationError):
        text += f" ({_WHO_MAY})"
    return f"{', '.join(settings.bootstrap_servers)}: {text}"


def missing_topic(topic: str) -> str:
    """For an operator: brokers answer alike for a topic that is not there and one that the user may not see."""
    return f"topic {topic} is not there, or hidden by ACLs ({_WHO_MAY})"


@contextlib.contextmanager
def as_unavailable(settings: KafkaSettings) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Unavailable("kafka", explain(settings, error)) from error


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of everything that reads, beside those that every client shares."""
    return connection_options(settings) | {
        "enable_auto_commit": False,
        "metrics_enabled": False,
        "isolation_level": settings.isolation_level,
        # A topic that is misspelt or was deleted must not be made anew with the broker's defaults.
        "allow_auto_create_topics": False,
        "fetch_max_bytes": settings.fetch_max_bytes,
        "max_partition_fetch_bytes": settings.max_partition_fetch_bytes,
        "receive_message_max_bytes": _MAX_ANSWER_BYTES,
        "max_record_bytes": settings.max_record_bytes,
    }
