"""Redis: verdicts, the hash cache, and the queries on both. Beside redis_connect.py and redis_scripts.py the only
file that imports redis.

Every call raises Unavailable for whatever keeps the server from answering (down, loading, read-only, out of memory,
wrong password): the caller waits. Writes go out as one pipeline, a transaction for each key where the deployment is
not a cluster, so that a key never stays without its lifetime.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from redis.exceptions import ResponseError, WatchError

from worker.clients.redis_connect import Connection
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
    was_replaced,
)
from worker.errors import Unavailable
from worker.evidence import Evidence, parse_cached_evidence
from worker.settings import RedisSettings

log = structlog.get_logger(__name__)
# Fields of a cached image beside those named by model versions; neighbours are a model version's, like scores.
_IMAGE_FIELDS = ("format", "width", "height", "jpeg_quality", "frames", "reader", "evidence")
_NEAREST = "nearest:"
_TRIES = 5  # while others write the same keys
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


class VerdictWrite(NamedTuple):
    """A verdict to write, its JSON, and when Kafka recorded what it is about, as `decided_at`."""

    verdict: Verdict
    as_json: str
    recorded_at: str


class Store(Connection):
    """Verdicts and cache entries. Thread-safe: each call takes a connection of its own from the pool."""

    def __init__(self, settings: RedisSettings) -> None:
        super().__init__(settings)
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
            if isinstance(row, Exception) and not _is_no_hash(row):
                raise Unavailable("redis", str(row)) from row
        return [parse_detector_scores(version, row) if isinstance(row, str) else None for row in rows]

    def _entry(self, row: Any) -> CacheEntry | None:
        if _is_no_hash(row):
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
        verdicts: Sequence[VerdictWrite],
        images: Sequence[ScoredImage],
        late: Sequence[VerdictWrite] = (),
    ) -> None:
        """Write verdicts and cache entries, with their lifetimes.

        A verdict on a later record of the same id that was made since our record was there stays: a call that hung may
        arrive when its partition has been another worker's for a while, and who judges a record again may be ended
        before the later one. (Not in a cluster, where a transaction cannot span slots.)
        `late`: verdicts on records that were parked; where a later record of the same id has been judged meanwhile,
        its verdict stays.
        """
        writes = [(self.image_key(image.sha256), _image_hash(image), self._settings.hash_ttl) for image in images]
        for left in reversed(range(_TRIES)):
            ours = [self._verdict_write(one) for one in verdicts]
            with self._unavailable(), self._connected().pipeline(transaction=self._atomic) as pipeline:
                if ours and self._atomic:
                    pipeline.watch(*[key for key, _, _ in ours])
                    replaced = self._replaced(verdicts)
                    ours = [write for write in ours if write[0] not in replaced]
                    pipeline.multi()
                try:
                    foreign = _write(pipeline, [*ours, *writes])
                    break
                except WatchError:  # somebody has just written one of them: look again
                    if not left:
                        raise
        writes += ours
        for one in late:
            if not self._write_unless_overtaken(one):
                writes.append(self._verdict_write(one))
                foreign.add(writes[-1][0])
        if foreign:
            log.warning("redis_key_replaced", keys=foreign, reason="a key under our prefix had another type")
            with self._unavailable(), self._connected().pipeline(transaction=self._atomic) as pipeline:
                _write(pipeline, [write for write in writes if write[0] in foreign], replace=True)

    def _verdict_write(self, one: VerdictWrite) -> _Write:
        key = self.verdict_key(one.verdict.image_id)
        return key, verdict_hash(one.verdict, one.as_json), self._settings.verdict_ttl

    def _write_unless_overtaken(self, one: VerdictWrite) -> bool:
        """Write it where its id has no verdict on a later record of the same partition: one step, because another
        worker may judge that record now. Returns False, and writes nothing, where the key is of another type.
        """
        key, mapping, ttl_s = self._verdict_write(one)

        def write(pipeline: Any) -> None:
            stored_json = pipeline.hget(key, "json")
            pipeline.multi()
            if not overtakes(stored_json, one.verdict):
                pipeline.hset(key, mapping=mapping)
                pipeline.expire(key, ttl_s) if ttl_s else pipeline.persist(key)

        with self._unavailable():
            try:
                self._connected().transaction(write, key)
            except ResponseError as error:
                if not _is_no_hash(error):
                    raise
                return False
        return True

    def _replaced(self, verdicts: Sequence[VerdictWrite]) -> set[str]:
        """Keys of those that are about an earlier record than what is stored. What is stored is read whole only where
        it was made since our record was there, which is rare.
        """
        own = {self.verdict_key(one.verdict.image_id): one for one in verdicts}
        decided = self._fields(list(own), "decided_at")
        since = [key for key, at in decided.items() if isinstance(at, str) and at > own[key].recorded_at]
        texts = self._fields(since, "json").items()
        return {key for key, text in texts if was_replaced(text, own[key].verdict, own[key].recorded_at)}

    def _fields(self, keys: Sequence[str], name: str) -> dict[str, object]:
        """A field of each hash; what is no hash answers with an error, which is handed on."""
        if not keys:
            return {}
        pipeline = self._connected().pipeline(transaction=False)
        for key in keys:
            pipeline.hget(key, name)
        return dict(zip(keys, pipeline.execute(raise_on_error=False), strict=True))

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
        """The stored hash of a verdict; empty where there is none, or something else stands there."""
        return self.verdicts([image_id])[0]

    def verdicts(self, image_ids: Sequence[str]) -> list[dict[str, str]]:
        """The stored hashes of many verdicts, in the order asked; empty where there is none, or something else."""
        with self._unavailable():
            pipeline = self._connected().pipeline(transaction=False)
            for image_id in image_ids:
                pipeline.hgetall(self.verdict_key(image_id))
            answers = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not _is_no_hash(answer):
                    raise answer
            return [{} if _is_no_hash(answer) else answer for answer in answers]

    def latest_id(self, sha256: str) -> str | None:
        """The latest image id with these bytes, as far as the cache remembers."""
        with self._unavailable():
            try:
                image_id: str | None = self._connected().hget(self.image_key(sha256), "image_id")
            except ResponseError as error:
                if not _is_no_hash(error):
                    raise
                return None
            return image_id


def _is_no_hash(answer: object) -> bool:
    """Does a key hold something that we have not written?"""
    return isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")


def _write(pipeline: Any, writes: Sequence[_Write], *, replace: bool = False) -> set[str]:
    """Returns the keys that hold another type than a hash. Raises WatchError, Unavailable."""
    if not writes:
        return set()
    owners: list[str] = []
    for key, mapping, ttl_s in writes:
        if replace:
            pipeline.delete(key)
            owners.append(key)
        pipeline.hset(key, mapping=mapping)
        pipeline.expire(key, ttl_s) if ttl_s else pipeline.persist(key)
        owners += [key, key]
    foreign = set()
    for key, result in zip(owners, pipeline.execute(raise_on_error=False), strict=True):
        if _is_no_hash(result):
            foreign.add(key)
        elif isinstance(result, Exception):
            raise Unavailable("redis", str(result)) from result
    return foreign


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
