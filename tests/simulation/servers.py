"""Redis, Triton, the storages and the examiner in memory, and what only a simulation makes happen every second.

Redis loses answers, answers when nobody listens any more, runs out of memory, fails over and forgets the last writes.
Triton is reloaded inside a call and fails on some images always. Images are texts (plan.image_bytes); their pixels are
one pixel that names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.simulation.hub import NEVER, Process, Signal
from tests.simulation.plan import HOSTS, image_bytes
from tests.simulation.world import Twin, World
from tests.twins import cache_entry
from worker.clients.redis import CacheEntry, ScoredImage, VerdictWrite
from worker.clients.triton import Inference, InferenceFailed
from worker.contract import ImageInfo, ImageReference
from worker.crop import Pixels
from worker.errors import Rejected, RejectReason, Unavailable
from worker.examine.findings import Examined, Findings
from worker.examine.provenance.trust import load_anchors, reader_version
from worker.item import Address

VERSIONS = ("000000000001", "000000000002", "000000000003", "000000000004")
GROUND = {"good": 0, "poison": 1, "nan": 2}  # the second channel of the pixel
READERS = (reader_version(load_anchors(None)), "an older one")  # of evidence: what is cached is used, or read anew
CANARY_NUMBER = 40  # no image has it
CANARY = np.array([[[[CANARY_NUMBER, GROUND["good"], 0]]]], np.uint8)  # the worker's own is another one each time
MOST_ILLNESSES = 2  # of those that strike the same image alone: one less than the attempts it has
MOST_EXAMINED = 3  # batches at once
SLOW_SHARE = 0.1  # of the images are examined for longer than the others of their batch


@dataclass(slots=True)
class RedisServer:
    """The keys. `late`: writes that nobody waits for any more; they happen before any later call is answered."""

    world: World
    verdicts: dict[str, str] = field(default_factory=dict)
    images: dict[tuple[str, str], ScoredImage] = field(default_factory=dict)
    late: list[Callable[[], None]] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)  # by id: the offset whose verdict a failover has forgotten

    def catch_up(self) -> None:
        late, self.late = self.late, []
        for write in late:
            write()

    def put(self, by: str, image_id: str, as_json: str) -> None:
        self.verdicts[image_id] = as_json
        if self.lost.get(image_id, NEVER) <= _offset(as_json):
            del self.lost[image_id]
        self.world.note("saved", by, image_id, as_json)

    def fail_over(self) -> None:
        """A replica takes over that lacks the last writes."""
        forgotten = list(self.verdicts)[-1:] if self.world.rng.random() < 0.7 else []
        for image_id in forgotten:
            offset = _offset(self.verdicts.pop(image_id))
            self.lost[image_id] = max(offset, self.lost.get(image_id, 0))
        if self.world.rng.random() < 0.5:
            self.images.clear()
        self.world.note("failover", forgotten)


class StoreTwin(Twin):
    """worker.clients.redis.Store."""

    def __init__(self, world: World, process: Process, server: RedisServer) -> None:
        super().__init__(world, world.plan.redis, process)
        self._redis = server

    def ping(self) -> None:
        """Raises Unavailable."""
        self._enter()
        if self._trouble() in ("away", "lost", "late"):
            self._give_up()
            raise Unavailable("redis", "simulated: no answer")

    def cached(self, sha256s: Sequence[str], model_version: str) -> list[CacheEntry | None]:
        """The cache entries, None where there is none."""
        self._enter()
        if self._trouble() not in ("", "oom"):
            self._give_up()
            raise Unavailable("redis", "simulated: no answer to the look-up")
        self._redis.catch_up()
        found = [self._redis.images.get((sha256, model_version)) for sha256 in sha256s]
        self._leave()
        return [one and cache_entry(one) for one in found]

    def save(
        self,
        verdicts: Sequence[VerdictWrite],
        images: Sequence[ScoredImage],
        late: Sequence[VerdictWrite] = (),
    ) -> None:
        """Write verdicts and cache entries; of `late` those that no later record has overtaken."""
        self._enter()
        self._world.note("saving", self._process.name, [one.verdict.image_id for one in verdicts])
        trouble = self._trouble()
        if trouble == "glitch":
            trouble = ("away", "lost", "late", "half")[int(self._random() * 4)]

        def write(share: float = 1.0) -> None:
            stored = self._redis.verdicts
            held = [one for one in verdicts if not was_replaced(one, stored.get(one[0].image_id))]
            held += [one for one in late if not is_overtaken(one, stored.get(one[0].image_id))]
            for verdict, as_json, _ in held[: int(len(held) * share + 0.5)]:
                self._redis.put(self._process.name, verdict.image_id, as_json)
            for image in images:
                self._redis.images[image.sha256, image.model_version] = image

        if trouble == "late":
            self._redis.late.append(write)
        elif trouble not in ("away", "oom"):
            self._redis.catch_up()
            write(0.5 if trouble == "half" else 1.0)
        if trouble:
            self._give_up()
            raise Unavailable("redis", f"simulated: {trouble}")
        self._leave()

    def detector_scores(self, sha256s: Sequence[str], version: str) -> list[dict[str, float] | None]:
        """What a detector of this version said of these bytes."""
        self._enter()
        if self._trouble() not in ("", "oom"):
            self._give_up()
            raise Unavailable("redis", "simulated: no answer to the look-up")
        self._redis.catch_up()
        said = {
            (sha256, found.version): dict(found.scores)
            for (sha256, _), image in self._redis.images.items()
            for found in image.detectors
        }
        self._leave()
        return [said.get((sha256, version)) for sha256 in sha256s]

    def close(self) -> None:
        """Nothing is held."""


def is_overtaken(late: VerdictWrite, stored: str | None) -> bool:
    """Is what is stored about a later record? In the simulation an id has one partition."""
    return stored is not None and _offset(stored) > _offset(late.as_json)


def was_replaced(own: VerdictWrite, stored: str | None) -> bool:
    """Is what is stored about a later record of its partition, decided since ours was there?"""
    if stored is None:
        return False
    there, origin = json.loads(stored), own.verdict.origin
    return (
        origin is not None
        and there["origin"]["partition"] == origin.partition
        and there["origin"]["offset"] > origin.offset
        and there["decided_at"] > own.recorded_at
    )


def _offset(as_json: str) -> int:
    offset: int = json.loads(as_json)["origin"]["offset"]
    return offset


class TritonServer:
    """The model. Its version changes when it is reloaded."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reloads = 0
        self._blamed: dict[
            int, set[float | None]
        ] = {}  # by image: the illnesses in which it failed in a call of its own

    @property
    def version(self) -> str:
        return VERSIONS[self._reloads]

    def reload(self) -> None:
        self._reloads += 1
        self._world.note("reloaded", self.version)

    def strikes(self, number: int, illness: float | None) -> bool:
        """Does it fail on image `number`, alone in its call? It may in every illness (from when on; None for the one
        glitch that an image may meet), but not in a third one: between two of them it scores a plain picture, and
        nobody could tell such an image from one that it cannot compute.
        """
        blamed = self._blamed.setdefault(number, set())
        if illness in blamed:
            return illness is not None
        if number != CANARY_NUMBER and len(blamed) == MOST_ILLNESSES:
            return False
        blamed.add(illness)
        return True

    def scores(self, pixels: Pixels) -> list[list[float]]:
        """Exact in float32: the number of the image, and which version scored it."""
        rows = []
        for number, ground, _ in pixels[:, 0, 0, :].tolist():
            score = float("nan") if ground == GROUND["nan"] else (number + 16 * (self._reloads + 1)) / 128
            rows.append([score, score / 2, score / 4])
        return rows


class TritonTwin(Twin):
    """worker.clients.triton.Triton."""

    def __init__(self, world: World, process: Process, server: TritonServer) -> None:
        super().__init__(world, world.plan.triton, process)
        self._model = server
        self.address = "simulated"

    def is_ready(self, timeout_s: float = 1.0) -> bool:
        """What the server says of itself."""
        del timeout_s
        return self._trouble() != "away"

    def model_version(self, timeout_s: float = 2.0) -> str:
        """The version that is served."""
        del timeout_s
        self._enter()
        if self._trouble() in ("away", "glitch"):
            self._give_up()
            raise Unavailable("triton", "simulated: no answer")
        version = self._model.version
        self._leave()
        return version

    def infer(self, pixels: Pixels, *, timeout_s: float | None = None) -> Inference:
        """Scores, unless the server or an image prevents it."""
        del timeout_s
        self._enter()
        trouble = self._trouble()
        if trouble == "away" or (trouble == "glitch" and self._random() < 0.5):
            self._give_up()
            raise Unavailable("triton", "simulated: no answer")
        names = [(number, ground) for number, ground, _ in pixels[:, 0, 0, :].tolist()]
        if any(ground == GROUND["poison"] for _, ground in names):
            raise InferenceFailed("simulated: this cannot be computed")
        if trouble and (len(names) > 1 or self._model.strikes(names[0][0], self.ill_since())):
            raise InferenceFailed(f"simulated: {trouble}")
        scores = self._model.scores(pixels)
        self._leave()
        return Inference(np.zeros((len(names), 1), np.float32), np.array(scores, np.float32))

    def close(self) -> None:
        """Nothing is held."""


class FetcherTwin:
    """worker.clients.fetch.Fetcher on two storages."""

    allowed = HOSTS

    def __init__(self, world: World, process: Process) -> None:
        self._hosts = {host: Twin(world, world.plan.storages[host], process) for host in HOSTS}

    def address(self, reference: ImageReference) -> Address:
        """Where it leads. Raises Rejected."""
        host = reference.uri.rsplit("/", 2)[0]
        if host not in self._hosts:
            raise Rejected(RejectReason.FETCH_DENIED, "simulated: no such host is allowed", stage="intake")
        return Address(host, host)

    def fetch(self, reference: ImageReference) -> bytes:
        """The image. Raises Rejected or Unavailable."""
        host, kind, number = reference.uri.rsplit("/", 2)
        twin = self._hosts[host]
        twin._enter()
        if twin._trouble():
            twin._give_up()
            raise Unavailable("storage", "simulated: no answer")
        twin._leave()
        if kind == "missing":
            raise Rejected(RejectReason.FETCH_FAILED, "simulated: no such object", stage="intake")
        if kind == "mismatch":
            raise Rejected(RejectReason.HASH_MISMATCH, "simulated: other bytes", stage="intake")
        return image_bytes("cut" if kind == "reference-cut" else "good", int(number))

    def close(self) -> None:
        """Nothing is held."""


class LeaseTwin:
    """Memory that is given back once; whoever reads it afterwards reads somebody else's pixels."""

    def __init__(self, pixels: Pixels, held: set[LeaseTwin]) -> None:
        self._pixels = pixels
        self._held = held
        held.add(self)

    def release(self) -> None:
        """Raises KeyError the second time."""
        self._held.remove(self)
        self._pixels[:] = 255


class ExaminerTwin(Twin):
    """worker.examine.pool.Pool: batches come back in any order, slow images apart from the others."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world, world.plan.triton, process)
        self._done: list[Examined[Any]] = []
        self._under_way = 0
        self._woken = False
        self._changed = Signal(world.hub)
        self.leases: set[LeaseTwin] = set()
        self._tell_slow: Callable[[Any], None] = lambda _token: None

    @property
    def may_submit(self) -> bool:
        """May another batch be submitted now?"""
        return self._under_way < MOST_EXAMINED

    def tell_slow(self, told: Callable[[Any], None]) -> None:
        """`told` hears of each slow image."""
        self._tell_slow = told

    def submit(self, batch: Sequence[tuple[Any, bytes]]) -> None:
        """Examine these images."""
        slow = [one for one in batch if self._random() < SLOW_SHARE]
        for token, _ in slow:
            self._tell_slow(token)
        for part in (slow, [one for one in batch if one not in slow]):
            if part:
                self._under_way += 1
                self._hub.spawn(f"{self._process.name}.child", lambda part=part: self._examine(part), self._process)  # type: ignore[misc]

    def wait(self, timeout_s: float) -> list[Examined[Any]]:
        """What is done."""
        if not self._done and not self._woken:
            self._changed.wait(timeout_s)
        self._woken = False
        done, self._done = self._done, []
        return done

    def wake(self) -> None:
        """End a wait."""
        self._woken = True
        self._changed.fire()

    def close(self) -> None:
        """What is under way does not come back."""

    def _examine(self, batch: Sequence[tuple[Any, bytes]]) -> None:
        self._enter()
        self._leave()
        good: list[tuple[Any, Findings]] = []
        bad: list[tuple[Any, Rejected]] = []
        pixels = np.zeros((len(batch), 1, 1, 3), np.uint8)
        for token, data in batch:
            kind, number = data.decode().rstrip("\0").split(":")
            if kind in GROUND:
                pixels[len(good), 0, 0] = (int(number), GROUND[kind], 0)
                info = ImageInfo(format="png", width=8, height=8, bytes=len(data))
                good.append((token, Findings(info, reader=READERS[self._world.plan.variant % 2])))
            else:
                reason = RejectReason.CORRUPT if kind == "cut" else RejectReason.UNSUPPORTED_FORMAT
                bad.append((token, Rejected(reason, "simulated: cannot be read", stage="decode")))
        pixels = pixels[: len(good)]
        self._done.append(Examined(good, bad, pixels, LeaseTwin(pixels, self.leases) if good else None))
        self._under_way -= 1
        self._changed.fire()
