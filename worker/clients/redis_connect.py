"""How Redis is connected to, and what its refusals mean: one server, sentinels or a cluster, with or without TLS."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from worker.errors import Unavailable
from worker.settings import RedisSettings, variable

# What a refusal says of the settings, the more telling first: OpenSSL's words and the server's.
_SIGNS: dict[str, tuple[str, ...]] = {
    "mismatch, certificate": ("url",),
    "CERTIFICATE_VERIFY_FAILED": ("ssl_ca_path",),
    "WRONG_VERSION_NUMBER": ("url",),
    "ALERT": ("ssl_cert_path", "ssl_key_path"),
    "EOF occurred in violation": ("ssl_cert_path", "ssl_key_path"),
    "[SSL] PEM": ("ssl_cert_path", "ssl_key_path"),
    "KEY_VALUES_MISMATCH": ("ssl_cert_path", "ssl_key_path"),
    "username-password": ("username", "password", "url"),
    "HELLO must be called with": ("username", "password", "url"),
    "Authentication required": ("username", "password", "url"),
}


def connect(settings: RedisSettings, timeout_ms: int) -> Any:
    """A client of redis-py for this deployment; a cluster's connects at once. Raises what redis-py raises."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_ms / 1000,
        "socket_connect_timeout": timeout_ms / 1000,
        "decode_responses": True,
        "encoding_errors": "replace",  # what is no UTF-8 was not written by us: it becomes unreadable, not an exception
        # One policy of retries in one place: retry.py. (The client's own would multiply the deadline.)
        "retry": Retry(NoBackoff(), 0),
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password:
        options["password"] = settings.password.get_secret_value()
    url = settings.url.get_secret_value()
    if url.startswith("rediss://"):
        for option, path in (
            ("ssl_ca_certs", settings.ssl_ca_path),
            ("ssl_certfile", settings.ssl_cert_path),
            ("ssl_keyfile", settings.ssl_key_path),
        ):
            if path is not None:
                options[option] = str(path)
        options["ssl_password"] = ""  # without one OpenSSL asks the terminal for the password of a key that has one
    if settings.mode == "cluster":
        return redis.RedisCluster.from_url(url, **options)
    if settings.mode == "sentinel":
        return _sentinels(settings, options).master_for(settings.sentinel_service)
    return redis.Redis.from_url(url, **options)


def _sentinels(settings: RedisSettings, options: dict[str, Any]) -> Any:
    """The sentinels are asked with the same deadline, retries and TLS as the master, with a password of their own."""
    url = settings.url.get_secret_value()
    parsed: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    master = options | {
        name: value for name, value in parsed.items() if name not in {"host", "port", "connection_class"}
    }
    if url.startswith("rediss://"):
        master["ssl"] = True
    secret = settings.sentinel_password.get_secret_value() if settings.sentinel_password else None
    asked = {name: value for name, value in master.items() if name not in {"db", "username", "password"}} | {
        "password": secret
    }
    hosts = [
        (host.strip("[]"), int(port)) for host, _, port in (sentinel.rpartition(":") for sentinel in settings.sentinels)
    ]
    sentinel: Any = Sentinel
    return sentinel(hosts, sentinel_kwargs=asked, **master)


def explain(settings: RedisSettings, error: BaseException) -> str:
    """The error in one line, and the setting or permission that it points to."""
    text = str(error)
    names = {field: variable("redis", field) for field in RedisSettings.model_fields}
    if isinstance(error, MasterNotFoundError):
        # The client's text shows each sentinel's whole configuration; what it said stands behind it.
        said = (
            "; ".join(dict.fromkeys(re.findall(r"> - ([\w:]+(?:\(.*?\))?)(?=, <|$)", text)))
            or "they watch no master of this name that is up"
        )
        suspects = ["sentinels", "sentinel_service", "sentinel_password", "url", "ssl_ca_path"]
        return f"{settings.sentinel_service!r}: {said}: check {', '.join(names[suspect] for suspect in suspects)}"
    for option in ("ssl_ca_path", "ssl_cert_path", "ssl_key_path"):
        path = getattr(settings, option)
        if path is not None and not os.access(path, os.R_OK):
            return f"{names[option]}={path} is not there or cannot be read"
    if isinstance(error, NoPermissionError):
        return f"{text}: docs/deploy.md lists the permissions that the worker's user needs"
    for sign, fields in _SIGNS.items():
        if sign in text:
            return f"{text} Check {', '.join(names[field] for field in fields)}"
    return text


class Connection:
    """A client that is made when it is first needed. Whatever keeps the server from answering is Unavailable."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client: Any = None

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as error:
            raise Unavailable("redis", f"{self._address()}: {explain(self._settings, error)}") from error

    def _connected(self) -> Any:
        if self._client is None:  # a cluster's client already talks to the servers when it is made
            self._client = connect(self._settings, self._settings.timeout_ms)
        return self._client

    def _address(self) -> str:
        """Where we connect to, without user, password and options (ssl_password is one)."""
        if self._settings.mode == "sentinel":
            return f"sentinels {', '.join(self._settings.sentinels)}"
        scheme, _, rest = self._settings.url.get_secret_value().partition("?")[0].partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

    def close(self) -> None:
        """Let go of the server."""
        if self._client is not None:
            self._client.close()
