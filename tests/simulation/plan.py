"""What a seed means: which records are sent, who fails when, who is killed, who takes a partition away.

Drawn apart from the scheduling, so that a plan can be read (`python -m tests.simulation --seed N --plan`). Each history
has only some of the faults (swarm testing): where everything fails at once, nothing gets far enough to go wrong.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

BATCH_ITEMS = (1, 2, 3, 8)
COUNTS, FEW = (2, 4, 6, 8, 8, 12), (1, 2, 4)  # records; ids and contents that meet each other
LAST_BLOW_STEP = 600
SERVERS = ("kafka", "redis", "triton")
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

    @property
    def has_detector(self) -> bool:
        """Is one asked beside `code`?"""
        return self.variant % 7 == 3

    def __str__(self) -> str:
        settings = f"settings {self.variant}, healed at {self.healed_s:.2f} s"
        lines = [f"seed {self.seed}: {self.partitions} partitions, {self.workers} workers, {settings}"]
        lines += [
            f"  {one.partition}/{one.offset} at {one.at_s:.2f}: {one.kind} {one.number} id={one.image_id}"
            for one in self.sent
        ]
        for name in SERVERS:
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


Theme = Callable[[random.Random, Plan], Plan]


def draw(seed: int, theme: Theme | None = None) -> Plan:
    """The plan of a seed: of this theme, or of the one that the seed draws, if any."""
    rng = random.Random(f"plan {seed}")
    chance = rng.random
    partitions = rng.choice((1, 1, 2, 3))
    healed_s = rng.uniform(0.3, PERIOD_S)
    sent, astray = _records(rng, partitions, rng.sample(ODD, rng.choice((0, 1, 2, 4))))
    blows = []
    if chance() < 0.45:
        for _ in range(rng.choice((1, 1, 2, 3))):
            what = "kill" if chance() < 0.6 else "stop"
            blows.append(_blow(rng, what, LAST_BLOW_STEP))
    moves = []
    if chance() < 0.5:
        for _ in range(rng.choice((1, 2, 3))):
            what = rng.choice(("shuffle", "rival", "rival", "rival", "expel", "rewind"))
            moves.append(Move(rng.uniform(0, healed_s), what, rng.randrange(partitions), rng.choice((0.01, 0.3, 1.5))))
    plan = Plan(
        seed=seed,
        partitions=partitions,
        sent=sent,
        workers=rng.choice((1, 1, 1, 2)),
        variant=rng.randrange(1_000_000),
        healed_s=healed_s,
        kafka=_server(rng, healed_s, ("away", "silent", "no-acks"), 0.45),
        redis=_server(rng, healed_s, ("away", "lost", "late", "oom", "slow"), 0.55),
        triton=_server(rng, healed_s, ("away", "ill", "slow"), 0.45),
        storages={host: _server(rng, healed_s, ("away", "slow"), 0.4) for host in HOSTS},
        reloads=tuple(rng.uniform(0, healed_s) for _ in range(rng.choice((0, 0, 0, 1, 2)))),
        failovers=tuple(rng.uniform(0, healed_s) for _ in range(rng.choice((0, 0, 0, 0, 1)))),
        blows=tuple(blows),
        moves=tuple(moves),
        astray=astray,
    )
    share = chance()
    for its_share, one in THEMES:
        if theme is None and 0 <= share < its_share:
            theme = one
        share -= its_share
    if theme is not None:
        plan = theme(rng, plan)
    in_order = sorted(plan.blows, key=lambda one: one.step), sorted(plan.moves, key=lambda one: one.at_s)
    return replace(plan, blows=tuple(in_order[0]), moves=tuple(in_order[1]))


# -- themes: faults that are put where they meet, because chance alone seldom does


def lends_what_waits(rng: random.Random, plan: Plan) -> Plan:
    """A partition goes to another while what was read of it waits for Redis."""
    start = rng.uniform(0.02, 0.2)
    window = Window(start, start + rng.uniform(1.0, 2.5), rng.choice(("away", "lost", "late", "oom")))
    return replace(
        plan,
        healed_s=max(plan.healed_s, start + 1.5),
        redis=Server((window,), 0.0, plan.redis.latency_s),
        moves=tuple(Move(start + rng.uniform(0.02, 0.2), "rival", one, 2.0) for one in range(plan.partitions)),
    )


def reads_again(rng: random.Random, plan: Plan) -> Plan:
    """What is on its way, for longer than usual, is read again."""
    return replace(
        plan,
        triton=Server((Window(0.0, 1.0, "slow"),), 0.0, 0.03),
        moves=tuple(Move(rng.uniform(0.05, 0.6), "rewind", one, 0.0) for one in range(plan.partitions) for _ in FEW),
    )


def parks(rng: random.Random, plan: Plan) -> Plan:
    """A storage is away, perhaps twice, while later records of the same ids need none; perhaps the worker stops."""
    healed_s = max(plan.healed_s, 2.0)
    odd = ["reference", "reference", "reference-cut"]
    sent, astray = _records(rng, plan.partitions, odd, (0.4, 0.7), FEW, FEW)
    back_s = rng.uniform(0.3, healed_s)
    windows = [Window(0.0, back_s, "away")]
    if rng.random() < 0.4:
        windows.append(Window(back_s + rng.uniform(0.05, 0.5), healed_s, "away"))
    stop = (_blow(rng, "stop", LAST_BLOW_STEP // 2),) if rng.random() < 0.4 else ()
    away = Server(tuple(windows), 0.0, 0.03)
    return replace(
        plan,
        healed_s=healed_s,
        sent=sent,
        astray=astray,
        storages=dict.fromkeys(HOSTS, away) if rng.random() < 0.5 else plan.storages | {HOSTS[0]: away},
        blows=(*plan.blows[:1], *stop),
    )


def parks_beside_another(rng: random.Random, plan: Plan) -> Plan:
    """Parked records come back to one worker while another judges later ones of their ids, and Redis is slow."""
    sent, astray = _records(rng, 2, ["reference"], (0.5,), (2,), (12,), (24,))
    sent = tuple(replace(one, at_s=0.12 * number) for number, one in enumerate(sent))
    calm = Server(latency_s=0.005)
    return replace(
        plan,
        partitions=2,
        workers=2,
        variant=rng.choice((0, 43, 60)),  # parked at once, and back a second later: see instance.variant
        sent=sent,
        astray=astray,
        healed_s=5.0,
        kafka=calm,
        triton=calm,
        redis=Server((Window(0.0, 5.0, "slow"),), 0.0, 0.03),
        storages=dict.fromkeys(HOSTS, Server((Window(0.0, rng.uniform(0.2, 1.5), "away"),), 0.0, 0.005)),
        moves=(),
        blows=(),
    )


def reloads(rng: random.Random, plan: Plan) -> Plan:
    """The model is reloaded while it, or the cache of its scores, is asked."""
    times = tuple(rng.uniform(0.1, 1.2) for _ in range(3))
    sent, astray = _records(rng, plan.partitions, (), content_counts=(2, 4), counts=(12, 16))
    sent = tuple(replace(one, at_s=0.08 * number) for number, one in enumerate(sent))
    calm, slow = Server((), 0.0, 0.005), Server((Window(0.0, 2.0, "slow"),), 0.0, 0.03)
    triton, redis = (slow, calm) if rng.random() < 0.5 else (calm, slow)
    return replace(plan, reloads=times, sent=sent, astray=astray, triton=triton, redis=redis, workers=1)


def refuses_commits(rng: random.Random, plan: Plan) -> Plan:
    """Kafka does not take, or does not acknowledge, half of all, until everything else is over."""
    return replace(plan, healed_s=max(plan.healed_s, 2.0), kafka=Server((), rng.choice((0.2, 0.5)), 0.005))


def stops_in_peace(rng: random.Random, plan: Plan) -> Plan:
    """The worker is told to stop at any step, with neither Kafka nor the group in trouble."""
    stop = _blow(rng, "stop", LAST_BLOW_STEP // 3)
    return replace(plan, kafka=Server(latency_s=plan.kafka.latency_s), moves=(), workers=1, blows=(stop,))


def stops_in_trouble(rng: random.Random, plan: Plan) -> Plan:
    """The worker is told to stop while a server is away for longer than it may drain."""
    start = rng.uniform(0.1, 0.4)
    away = Server((Window(start, start + 8.0, "away"),), 0.0, 0.005)
    stop = _blow(rng, "stop", LAST_BLOW_STEP // 3)
    one_second = plan.variant | 1  # see instance.variant
    return replace(plan, healed_s=start + 8.0, variant=one_second, blows=(stop,), **{rng.choice(SERVERS): away})


THEMES: tuple[tuple[float, Theme], ...] = (
    (0.10, lends_what_waits),
    (0.09, reads_again),
    (0.14, parks),
    (0.04, parks_beside_another),
    (0.08, reloads),
    (0.06, refuses_commits),
    (0.06, stops_in_peace),
    (0.04, stops_in_trouble),
)


def _blow(rng: random.Random, what: str, last_step: int) -> Blow:
    return Blow(int(rng.uniform(20, last_step)), what, rng.choice((0.0, 0.05, 0.4)), rng.randrange(4))


def _server(rng: random.Random, healed_s: float, kinds: tuple[str, ...], share: float) -> Server:
    """A server that fails in `share` of the histories."""
    latency_s = rng.choice((0.001, 0.005, 0.03))
    if rng.random() >= share:
        return Server(latency_s=latency_s)
    windows = []
    for _ in range(rng.choice((0, 1, 1, 2))):
        start = rng.uniform(0, healed_s)
        windows.append(Window(start, min(healed_s, start + rng.choice((0.05, 0.3, 1.0, 3.0))), rng.choice(kinds)))
    windows.sort(key=lambda one: one.kind == "slow")  # what is slow and ill at once is ill: one illness, not two
    return Server(tuple(windows), rng.choice((0.0, 0.05, 0.2, 0.5)), latency_s)


def _records(
    rng: random.Random,
    partitions: int,
    odd: Sequence[str],
    odd_shares: Sequence[float] = (0.15, 0.4),
    id_counts: Sequence[int] = (*FEW, 20),
    content_counts: Sequence[int] = (*FEW, 12),
    counts: Sequence[int] = COUNTS,
) -> tuple[tuple[Sent, ...], frozenset[str]]:
    count, ids, contents = rng.choice(counts), rng.choice(id_counts), rng.choice(content_counts)
    odd_share = rng.choice(odd_shares) if odd else 0.0
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
