"""Redis: verdicts, the hash cache, and the queries on both. Beside redis_scripts.py the only file that imports redis.

Every call raises Unavailable for whatever keeps the server from answering (down, loading, read-only, out of memory,
wrong password): the caller waits. Writes go out as one pipeline, a transaction for each key where the deployment is
not a cluster, so that a key never stays without its lifetime.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import NoPermissionError, RedisClusterException, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from worker.contract import (
    DetectorScores,
    ImageInfo,
    Scores,
    Verdict,
    cached_scores_json,
    overtakes,
    parse_cached_scores,
    parse_detector_scores,
    verdict_hash,
)
from worker.errors import Unavailable
from worker.evidence import Evidence, parse_cached_evidence
from worker.settings import RedisSettings, variable

log = structlog.get_logger(__name__)
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

# Fields of a cached image beside those named by model versions; neighbours are a model version's, like scores.
_IMAGE_FIELDS = ("format", "width", "height", "jpeg_quality", "frames", "reader", "evidence")
_NEAREST = "nearest:"
_Write = tuple[str, dict[str, str], int]  # a key, its hash, and how many seconds it lives; 0 for ever


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Scores of these bytes by one model version, and what their header and the rest of the file say.

    `evidence` was read by the version `reader`; its neighbours are the model version's.
    """

    scores: Scores
    format: str
    width: int
    height: int
    jpeg_quality: int | None = None
    frames: int | None = None
    evidence: Evidence = field(default_factory=Evidence)
    reader: str = ""

    def info(self, size_bytes: int) -> ImageInfo:
        """The header's facts, of an encoded image of this size."""
        return ImageInfo(
            format=self.format,
            width=self.width,
            height=self.height,
            bytes=size_bytes,
            jpeg_quality=self.jpeg_quality,
            frames=self.frames,
        )


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """A cache entry to write. `image_id`: the latest id of these bytes."""

    sha256: str
    image_id: str
    model_version: str
    scores: Scores
    image: ImageInfo
    evidence: Evidence = field(default_factory=Evidence)
    reader: str = ""
    detectors: Sequence[DetectorScores] = ()


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


class Store:
    """Verdicts and cache entries. Thread-safe: each call takes a connection of its own from the pool."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._atomic = settings.mode != "cluster"  # a transaction cannot span the slots of a cluster

    def verdict_key(self, image_id: str) -> str:
        return f"{self._settings.key_prefix}verdict:{image_id}"

    def image_key(self, sha256: str) -> str:
        return f"{self._settings.key_prefix}image:{sha256}"

    def ping(self) -> None:
        """Raises Unavailable where the server does not answer."""
        with self._unavailable():
            self._connected().ping()

    def cached(self, sha256s: Sequence[str], model_version: str) -> list[CacheEntry | None]:
        """The cache entry of each hash for this model version, or None."""
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=False)
            for sha256 in sha256s:
                fields = [model_version, f"{_NEAREST}{model_version}", *_IMAGE_FIELDS]
                pipeline.hmget(self.image_key(sha256), fields)
            rows = pipeline.execute(raise_on_error=False)
        return [self._entry(row) for row in rows]

    def detector_scores(self, sha256s: Sequence[str], version: str) -> list[dict[str, float] | None]:
        """What a detector of this version said of each of these bytes, P(fake) by head, or None."""
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=False)
            for sha256 in sha256s:
                pipeline.hget(self.image_key(sha256), version)
            rows = pipeline.execute(raise_on_error=False)
        for row in rows:
            if isinstance(row, Exception) and not str(row).startswith("WRONGTYPE"):
                raise Unavailable("redis", str(row)) from row
        return [parse_detector_scores(version, row) if isinstance(row, str) else None for row in rows]

    def _entry(self, row: Any) -> CacheEntry | None:
        if isinstance(row, ResponseError) and str(row).startswith("WRONGTYPE"):
            return None  # somebody else's key: `save` will replace it
        if isinstance(row, Exception):
            raise Unavailable("redis", str(row)) from row
        scores_json, nearest, image_format, width, height, jpeg_quality, frames, reader, evidence_json = row
        scores = parse_cached_scores(scores_json) if scores_json else None
        if scores is None or not image_format or not _number(width) or not _number(height):
            return None
        evidence = parse_cached_evidence(evidence_json, nearest) if evidence_json else None
        entry = CacheEntry(
            scores,
            image_format,
            int(width),
            int(height),
            jpeg_quality=_number(jpeg_quality),
            frames=_number(frames),
            evidence=evidence or Evidence(),
            reader=(reader or "") if evidence else "",
        )
        try:
            entry.info(size_bytes=1)
        except ValueError:  # numbers that no image has: whoever wrote them, the image is here to be looked at
            return None
        return entry

    def save(
        self,
        verdicts: Sequence[tuple[Verdict, str]],
        images: Sequence[ScoredImage],
        late: Sequence[tuple[Verdict, str]] = (),
    ) -> None:
        """Write verdicts (each with its JSON) and cache entries, with their lifetimes.

        `late`: verdicts on records that were parked; where a later record of the same id has been judged meanwhile,
        its verdict stays.
        """
        writes = [self._verdict_write(verdict, as_json) for verdict, as_json in verdicts]
        writes += [(self.image_key(image.sha256), _image_hash(image), self._settings.hash_ttl) for image in images]
        foreign = self._write(writes)
        for verdict, as_json in late:
            if not self._write_unless_overtaken(verdict, as_json):
                writes.append(self._verdict_write(verdict, as_json))
                foreign.add(writes[-1][0])
        if foreign:
            log.warning("redis_key_replaced", keys=foreign, reason="a key under our prefix had another type")
            self._write([write for write in writes if write[0] in foreign], replace=True)

    def _verdict_write(self, verdict: Verdict, as_json: str) -> _Write:
        return self.verdict_key(verdict.image_id), verdict_hash(verdict, as_json), self._settings.verdict_ttl

    def _write_unless_overtaken(self, verdict: Verdict, as_json: str) -> bool:
        """Write it where its id has no verdict on a later record of the same partition: one step, because another
        worker may judge that record now. Returns False, and writes nothing, where the key is of another type.
        """
        key, mapping, ttl_s = self._verdict_write(verdict, as_json)

        def write(pipeline: Any) -> None:
            stored_json = pipeline.hget(key, "json")
            pipeline.multi()
            if not overtakes(stored_json, verdict):
                pipeline.hset(key, mapping=mapping)
                pipeline.expire(key, ttl_s) if ttl_s else pipeline.persist(key)

        with self._unavailable():
            try:
                self._connected().transaction(write, key)
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                return False
        return True

    def _write(self, writes: Sequence[_Write], *, replace: bool = False) -> set[str]:
        """Returns the keys that hold another type than a hash."""
        if not writes:
            return set()
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=self._atomic)
            owners: list[str] = []
            for key, mapping, ttl_s in writes:
                if replace:
                    pipeline.delete(key)
                    owners.append(key)
                pipeline.hset(key, mapping=mapping)
                pipeline.expire(key, ttl_s) if ttl_s else pipeline.persist(key)
                owners += [key, key]
            results = pipeline.execute(raise_on_error=False)
        foreign = set()
        for key, result in zip(owners, results, strict=True):
            if isinstance(result, ResponseError) and str(result).startswith("WRONGTYPE"):
                foreign.add(key)
            elif isinstance(result, Exception):
                raise Unavailable("redis", str(result)) from result
        return foreign

    def add_comparisons(self, model_name: str, comparisons: Sequence[dict[str, str]], max_items: int) -> None:
        """Append to the stream of a shadow model, which keeps about `max_items`."""
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=False)
            for comparison in comparisons:
                pipeline.xadd(
                    f"{self._settings.key_prefix}shadow:{model_name}", comparison, maxlen=max_items, approximate=True
                )
            pipeline.execute()

    def verdict(self, image_id: str) -> dict[str, str]:
        """The stored hash of a verdict; empty where there is none."""
        with self._unavailable():
            stored: dict[str, str] = self._connected().hgetall(self.verdict_key(image_id))
            return stored

    def verdicts(self, image_ids: Sequence[str]) -> list[dict[str, str]]:
        """The stored hashes of many verdicts, in the order asked; empty where there is none."""
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=False)
            for image_id in image_ids:
                pipeline.hgetall(self.verdict_key(image_id))
            stored: list[dict[str, str]] = pipeline.execute()
            return stored

    def latest_id(self, sha256: str) -> str | None:
        """The latest image id with these bytes, as far as the cache remembers."""
        with self._unavailable():
            image_id: str | None = self._connected().hget(self.image_key(sha256), "image_id")
            return image_id

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
        if self._client is not None:
            self._client.close()


def _image_hash(image: ScoredImage) -> dict[str, str]:
    info = image.image
    by_detectors = {found.version: json.dumps(found.scores) for found in image.detectors}
    return by_detectors | {
        image.model_version: cached_scores_json(image.scores),
        f"{_NEAREST}{image.model_version}": image.evidence.nearest.model_dump_json(),
        "format": info.format,
        "width": str(info.width),
        "height": str(info.height),
        "jpeg_quality": str(info.jpeg_quality or ""),
        "frames": str(info.frames or ""),
        "reader": image.reader,
        "evidence": image.evidence.model_dump_json(exclude={"nearest"}),
        "image_id": image.image_id,
    }


_MOST_DIGITS = 10


def _number(text: str | None) -> int | None:
    """None for what is no number of our writing: "²" is a digit to Python, and long ones it refuses to read."""
    return int(text) if text and len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit() else None
