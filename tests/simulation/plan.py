"""What a seed means: which records are sent, who fails when, who is killed, who takes a partition away.

Drawn apart from the scheduling, so that a plan can be read (`python -m tests.simulation --seed N --plan`). Each history
has only some of the faults (swarm testing): where everything fails at once, nothing gets far enough to go wrong.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any

BATCH_ITEMS = (1, 2, 3, 8)
THEMES = (0.08, 0.12, 0.22)  # so many of the histories have faults that were put where they meet
PERIOD_S = 3.0  # faults begin within it
MAX_IMAGE_BYTES = 64
REFERENCE_TYPE = b"application/vnd.assay.image-ref+json"
HOSTS = ("https://a.example", "https://b.example")

# What becomes of each kind: a verdict, or a rejection for one of these reasons.
EXPECTED: dict[str, tuple[str, ...]] = {
    "good": (),
    "poison": ("inference_failed",),
    "nan": ("inference_failed",),
    "cut": ("corrupt",),
    "text": ("unsupported_format",),
    "empty": ("empty",),
    "tombstone": ("empty",),
    "large": ("too_large",),
    "bad-id": ("bad_image_id",),
    "reference": (),
    "reference-cut": ("corrupt",),
    "no-reference": ("bad_reference",),
    "denied": ("fetch_denied",),
    "missing": ("fetch_failed",),
    "mismatch": ("hash_mismatch",),
}
ODD = tuple(kind for kind in EXPECTED if kind != "good")
BY_REFERENCE = ("reference", "reference-cut", "denied", "missing", "mismatch")


@dataclass(frozen=True, slots=True)
class Sent:
    """One incoming record, and what must become of it. `number` names the content: the first pixel, and the score."""

    partition: int
    offset: int
    at_s: float
    image_id: str
    kind: str
    number: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    image: bytes | None  # the encoded image, also where the record only refers to it

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.image or b"").hexdigest()

    @property
    def trace_id(self) -> int:
        """Names the record in whatever is produced for it."""
        return trace_id(self.partition, self.offset)


@dataclass(frozen=True, slots=True)
class Window:
    """From when to when a server is away, in seconds. `kind` says how."""

    start: float
    end: float
    kind: str


@dataclass(frozen=True, slots=True)
class Server:
    """How a server fails until all is healed: while a window is open, and `rate` of the calls otherwise."""

    windows: tuple[Window, ...] = ()
    rate: float = 0.0
    latency_s: float = 0.005


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to a worker at a step of the scheduler: `kill` or `stop`; it is started anew `after_s` later."""

    step: int
    what: str
    after_s: float
    pick: int


@dataclass(frozen=True, slots=True)
class Move:
    """What happens in the consumer group: `shuffle`, `rival` (another member takes a partition), `expel`, `rewind`."""

    at_s: float
    what: str
    partition: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    partitions: int
    sent: tuple[Sent, ...]
    workers: int
    variant: int
    healed_s: float
    kafka: Server
    redis: Server
    triton: Server
    storages: dict[str, Server]
    reloads: tuple[float, ...] = ()
    failovers: tuple[float, ...] = ()
    blows: tuple[Blow, ...] = ()
    moves: tuple[Move, ...] = ()
    astray: frozenset[str] = field(default_factory=frozenset)  # ids that stand in more than one partition

    def __str__(self) -> str:
        settings = f"settings {self.variant}, healed at {self.healed_s:.2f} s"
        lines = [f"seed {self.seed}: {self.partitions} partitions, {self.workers} workers, {settings}"]
        lines += [
            f"  {one.partition}/{one.offset} at {one.at_s:.2f}: {one.kind} {one.number} id={one.image_id}"
            for one in self.sent
        ]
        for name in ("kafka", "redis", "triton"):
            lines.append(f"  {name}: {getattr(self, name)}")
        lines += [f"  {host}: {server}" for host, server in self.storages.items()]
        lines.append(f"  reloads {self.reloads} failovers {self.failovers}")
        lines += [f"  {one}" for one in (*self.blows, *self.moves)]
        return "\n".join(lines)


def trace_id(partition: int, offset: int) -> int:
    return (partition + 1) * 1_000_000 + offset + 1


def image_bytes(kind: str, number: int) -> bytes:
    """An encoded image of the simulated world: its kind and number as text."""
    return f"{kind}:{number}".encode()


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    chance = rng.random
    partitions = rng.choice((1, 1, 2, 3))
    healed_s = rng.uniform(0.3, PERIOD_S)
    hosts = {host: _server(rng, healed_s, ("away", "slow"), 0.4) for host in HOSTS}
    theme = chance()
    is_parked = THEMES[1] <= theme < THEMES[2]
    sent, astray = _records(rng, partitions, ["reference", "reference-cut"] if is_parked else None)
    blows = []
    if chance() < 0.45:
        for _ in range(rng.choice((1, 1, 2, 3))):
            what = "kill" if chance() < 0.6 else "stop"
            blows.append(Blow(int(rng.uniform(20, 600)), what, rng.choice((0.0, 0.05, 0.4)), rng.randrange(4)))
    moves = []
    if chance() < 0.5:
        for _ in range(rng.choice((1, 2, 3))):
            what = rng.choice(("shuffle", "rival", "rival", "rival", "expel", "rewind"))
            moves.append(Move(rng.uniform(0, healed_s), what, rng.randrange(partitions), rng.choice((0.01, 0.3, 1.5))))
    redis = _server(rng, healed_s, ("away", "lost", "late", "oom", "slow"), 0.55)
    if theme < THEMES[0]:  # a partition goes to another while what was read of it waits for Redis
        start = rng.uniform(0.02, 0.2)
        healed_s = max(healed_s, start + 1.5)
        kind = rng.choice(("away", "lost", "late", "oom"))
        redis = Server((Window(start, start + rng.uniform(1.0, 2.5), kind),), 0.0, redis.latency_s)
        moves = [Move(start + rng.uniform(0.02, 0.2), "rival", partition, 2.0) for partition in range(partitions)]
    elif theme < THEMES[1]:  # what is on its way is read again
        moves = [Move(rng.uniform(0.02, 0.5), "rewind", partition, 0.0) for partition in range(partitions)]
    elif is_parked:  # a storage is away for long, while later records of the same ids need none
        healed_s = max(healed_s, 2.0)
        hosts[HOSTS[0]] = Server((Window(0.0, rng.uniform(0.3, healed_s), "away"),))
    return Plan(
        seed=seed,
        partitions=partitions,
        sent=sent,
        workers=rng.choice((1, 1, 1, 2)),
        variant=rng.randrange(1_000_000),
        healed_s=healed_s,
        kafka=_server(rng, healed_s, ("away", "silent", "no-acks"), 0.45),
        redis=redis,
        triton=_server(rng, healed_s, ("away", "ill", "slow"), 0.45),
        storages=hosts,
        reloads=tuple(rng.uniform(0, healed_s) for _ in range(rng.choice((0, 0, 0, 1, 2)))),
        failovers=tuple(rng.uniform(0, healed_s) for _ in range(rng.choice((0, 0, 0, 0, 1)))),
        blows=tuple(sorted(blows, key=lambda one: one.step)),
        moves=tuple(sorted(moves, key=lambda one: one.at_s)),
        astray=astray,
    )


def _server(rng: random.Random, healed_s: float, kinds: tuple[str, ...], share: float) -> Server:
    """A server that fails in `share` of the histories."""
    latency_s = rng.choice((0.001, 0.005, 0.03))
    if rng.random() >= share:
        return Server(latency_s=latency_s)
    windows = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        start = rng.uniform(0, healed_s)
        windows.append(Window(start, min(healed_s, start + rng.choice((0.05, 0.3, 1.0, 3.0))), rng.choice(kinds)))
    return Server(tuple(windows), rng.choice((0.0, 0.05, 0.2, 0.5)), latency_s)


def _records(rng: random.Random, partitions: int, odd: list[str] | None) -> tuple[tuple[Sent, ...], frozenset[str]]:
    count = rng.choice((2, 4, 6, 8, 8, 12))
    ids = rng.choice((1, 2, 4, 20))
    contents = rng.choice((1, 2, 4, 12))
    odd = odd or rng.sample(ODD, rng.choice((0, 1, 2, 4)))
    odd_share = rng.choice((0.15, 0.4)) if odd else 0.0
    late_share = rng.choice((0.0, 0.3, 1.0))
    is_astray = rng.random() < 0.1
    offsets = [rng.choice((0, 0, 7))] * partitions
    gaps = rng.random() < 0.2
    at_s = 0.0
    sent: list[Sent] = []
    homes: dict[str, set[int]] = {}
    for _ in range(count):
        if rng.random() < late_share:
            at_s += rng.expovariate(8.0)
        kind = rng.choice(odd) if rng.random() < odd_share else "good"
        image_id = f"id-{rng.randrange(ids)}"
        partition = rng.randrange(partitions) if is_astray else int(image_id[3:]) % partitions
        number = 1 + rng.randrange(contents)
        if gaps and rng.random() < 0.3:
            offsets[partition] += rng.randrange(1, 4)
        one = _record(rng, kind, number, image_id, partition, offsets[partition], at_s)
        offsets[partition] += 1
        homes.setdefault(one.image_id, set()).add(partition)
        sent.append(one)
    return tuple(sent), frozenset(image_id for image_id, where in homes.items() if len(where) > 1)


def _record(
    rng: random.Random, kind: str, number: int, image_id: str, partition: int, offset: int, at_s: float
) -> Sent:
    trace = b"00-%032x-00000000000000ff-01" % trace_id(partition, offset)
    headers: list[tuple[str, bytes | None]] = [("traceparent", trace), ("ce_id", image_id.encode())]
    key: bytes | None = rng.choice((None, b"k"))
    stem = "cut" if kind.endswith("cut") else kind if kind in ("poison", "nan", "text") else "good"
    image: bytes | None = image_bytes(stem, number)
    value = image
    if kind in ("empty", "tombstone"):
        value = image = b"" if kind == "empty" else None
    elif kind == "large":
        value = image = image_bytes("large", number) + bytes(MAX_IMAGE_BYTES)
    elif kind == "bad-id":
        headers[1] = ("ce_id", b"\xff\xfe")
    elif kind == "no-reference":
        headers.append(("content-type", REFERENCE_TYPE))
        value = b'{"url": 1}'
        image = None
    elif kind in BY_REFERENCE:
        headers.append(("content-type", REFERENCE_TYPE))
        value = _reference(rng, kind, number)
    return Sent(partition, offset, at_s, image_id, kind, number, key, value, tuple(headers), image)


def _reference(rng: random.Random, kind: str, number: int) -> bytes:
    host = "https://elsewhere.example" if kind == "denied" else rng.choice(HOSTS)
    document: dict[str, Any] = {"uri": f"{host}/{kind}/{number}"}
    if kind == "mismatch":
        document["sha256"] = "0" * 64
    return json.dumps(document).encode()
