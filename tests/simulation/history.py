"""One history: a world drawn from a seed, workers in it, blows at them, and the audit when all is quiet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition

from tests.simulation.audit import Auditor, Finding
from tests.simulation.clock import on_hub
from tests.simulation.detector import DetectorServer
from tests.simulation.hub import NEVER, Stuck
from tests.simulation.instance import Worker, policy_version
from tests.simulation.kafka import SESSION_S, Broker, Written
from tests.simulation.plan import Blow, Move, Plan, Theme, draw
from tests.simulation.rival import Rival
from tests.simulation.servers import RedisServer, TritonServer
from tests.simulation.world import Event, World

PATIENCE_S = 40.0  # of simulated time, once everything is healed
SETTLED_S = 0.2  # so long nothing may be under way: books are closed one after the other
MAX_STEPS = 60_000


@dataclass(frozen=True, slots=True)
class History:
    """What happened, and what was wrong with it."""

    plan: Plan
    events: list[Event]
    findings: list[Finding]
    steps: int
    seconds: float

    @property
    def digest(self) -> str:
        """Equal histories have equal digests."""
        return hashlib.sha256("\n".join(_shown(event) for event in self.events).encode()).hexdigest()

    def timeline(self, last: int = 40) -> str:
        """What led to the first finding: whatever names its records or ids, and what concerns all."""
        about = self.findings[0].about if self.findings else ()
        wanted = [event for event in self.events if _concerns(event, about, self.plan)]
        left_out = len(wanted) - last
        lines = [_shown(event) for event in wanted[-last:]]
        return "\n".join([f"  … {left_out} events before" if left_out > 0 else "", *lines]).strip("\n")

    def report(self) -> str:
        """For a person: what is wrong, how to see it again, and the way there."""
        heads = [str(one) for one in self.findings[:5]]
        again = f"python -m tests.simulation --seed {self.plan.seed}"
        return "\n".join([f"seed {self.plan.seed} ({again})", *heads, self.timeline()])


class _Course:
    """The surroundings of one history, while it runs."""

    def __init__(self, plan: Plan) -> None:
        self.world = World(plan)
        self.hub = self.world.hub
        self.broker = Broker(self.world)
        self.redis = RedisServer(self.world)
        self.triton = TritonServer(self.world)
        self.detector = DetectorServer(self.world)
        self.rival = Rival(self.world, self.broker, self.redis, self.triton, policy_version(plan))
        self.workers: list[Worker] = []
        self.starting = 0
        self._still_since: float | None = None
        self._blows = list(plan.blows)
        times = [*plan.reloads, *plan.failovers, *(one.at_s for one in plan.moves), *(one.at_s for one in plan.sent)]
        self._last_s = max(times)  # when the last thing happens that nobody waits for

    def begin(self) -> None:
        plan = self.world.plan
        for _ in range(plan.workers):
            self.start_worker()
        self.world.spawn("sender", self._send)
        if any(move.what == "rival" for move in plan.moves):
            self.world.spawn("rival", self.rival.run)
        for at_s in plan.reloads:
            self._at(at_s, "reload", self.triton.reload)
            if plan.has_detector:
                self._at(at_s * 0.7, "reload", self.detector.reload)
        for at_s in plan.failovers:
            self._at(at_s, "failover", self.redis.fail_over)
        for move in plan.moves:
            self._at(move.at_s, move.what, lambda move=move: self._move(move))  # type: ignore[misc]
        self._at(plan.healed_s, "healed", lambda: self.world.note("healed"))
        self.hub.alarm = self._strike
        self._set_alarm()

    def start_worker(self) -> None:
        name = f"w{len(self.workers)}"
        self.world.note("started", name)
        self.workers.append(Worker(self.world, name, self.broker, self.redis, self.triton, self.detector))

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def is_quiet(self) -> bool:
        """Everything has happened and is committed, and nobody has anything under way."""
        now = self.hub.now
        if now < self._last_s or self.world.is_broken:
            return self.world.is_broken
        if now > self.world.plan.healed_s + PATIENCE_S:
            return True
        if not self._is_still():
            self._still_since = None
        elif self._still_since is None:
            self._still_since = now
        return self._still_since is not None and now >= self._still_since + SETTLED_S

    def _is_still(self) -> bool:
        broker = self.broker
        return (
            not self.starting
            and broker.is_done
            and sum(len(broker.log[one]) for one in broker.incoming) == len(self.world.plan.sent)
            and all(worker.is_idle for worker in self.alive())
        )

    def _at(self, at_s: float, name: str, act: Callable[[], None]) -> None:
        def body() -> None:
            self.hub.sleep(at_s)
            act()

        self.world.spawn(name, body)

    def _send(self) -> None:
        for one in self.world.plan.sent:
            self.hub.sleep(one.at_s - self.hub.now)
            self.broker.append(one)

    def _move(self, move: Move) -> None:
        self.world.note(move.what, move.partition)
        members = self.broker.members
        if move.what == "shuffle":
            self.broker.shift += 1
            self.broker.changed.fire()
        elif move.what == "rival":
            self.broker.changed.fire()
            self.broker.lent[self.broker.incoming[move.partition]] = self.hub.now + move.for_s + 1.0
        elif move.what == "expel" and members:
            self.broker.expel(members[move.partition % len(members)])
        elif move.what == "rewind":
            for member in members:
                member.rewind(self.broker.incoming[move.partition])

    def _strike(self) -> None:
        """The blows whose step has come."""
        while self._blows and self._blows[0].step <= self.hub.steps:
            blow = self._blows.pop(0)
            alive = self.alive()
            if alive:
                self._hit(alive[blow.pick % len(alive)], blow)
        self._set_alarm()

    def _set_alarm(self) -> None:
        self.hub.alarm_step = self._blows[0].step if self._blows else NEVER

    def _hit(self, worker: Worker, blow: Blow) -> None:
        if blow.what == "kill":
            self.world.note("kill", worker.name)
            self.hub.kill(worker.process)
        else:
            worker.request_stop()

        def revive() -> None:
            self.hub.wait(lambda: not worker.is_alive, None)
            if blow.what == "kill":
                self.hub.sleep(self.world.rng.random() * SESSION_S)
                if worker.library is not None:
                    self.broker.leave(worker.library)
            self.hub.sleep(blow.after_s)
            self.starting -= 1
            self.start_worker()

        self.starting += 1
        self.world.spawn(f"revive {worker.name}", revive)


def run(seed: int, theme: Theme | None = None) -> History:
    """The history of `seed`; `theme`: what it is to be about, whatever the seed draws."""
    return run_plan(draw(seed, theme))


def run_plan(plan: Plan) -> History:
    """A history by a plan."""
    course = _Course(plan)
    findings: list[Finding] = []
    with ExitStack() as stack:
        stack.enter_context(on_hub(course.hub))
        stack.callback(course.hub.close)
        try:
            course.begin()
            course.hub.run(course.is_quiet, MAX_STEPS)
            findings += _defects(course) or _unfinished(course)
            if not findings:
                findings += _farewell(course)
        except Stuck as stuck:
            findings.append(Finding("livelock", str(stuck)))
        auditor = Auditor(plan, policy_version(plan))
        events = course.world.events
        audited = auditor.audit(events, course.redis.verdicts, course.redis.lost)
        auditor.check_repeats(_repeats(events))
        hub = course.hub
        return History(plan, events, findings + audited, hub.steps, hub.now)


def _defects(course: _Course) -> list[Finding]:
    return [
        Finding("defect", f"{name} broke with {type(error).__name__}: {error}")
        for worker in course.workers
        for name, error in worker.errors()
    ]


def _unfinished(course: _Course) -> list[Finding]:
    """Did everything end once the faults had ended?"""
    broker = course.broker
    if course.hub.now <= course.world.plan.healed_s + PATIENCE_S and broker.is_done:
        return []
    behind = {p: (broker.position(p), broker.end(p)) for p in broker.partitions if broker.position(p) < broker.end(p)}
    left = {worker.name: worker.leftovers() for worker in course.alive()}
    about = tuple(
        (p.partition, one.offset)
        for p in behind
        for one in broker.log[p]
        if p != broker.retry and one.offset >= broker.position(p)
    )[:3]
    return [Finding("ends", f"committed and end: {behind}; left {left}", about)]


def _farewell(course: _Course) -> list[Finding]:
    """Nothing may be left over in a worker that has nothing to do; told to stop, it ends."""
    findings = []
    hub = course.hub
    hub.alarm_step = NEVER
    for worker in course.alive():
        if left := worker.leftovers():
            findings.append(Finding("leak", f"{worker.name} has done everything and still holds {left}"))
        worker.request_stop()
    hub.run(lambda: not course.alive(), hub.steps + MAX_STEPS)
    findings += _defects(course)
    findings += [Finding("drain", f"{worker.name} does not end on stop") for worker in course.alive()]
    return findings


def _repeats(events: list[Event]) -> dict[int, int]:
    """By trace id: how often a record was written without an acknowledgement, and so had to be written again."""
    repeats: Counter[int] = Counter()
    open_calls: dict[str, dict[int, int]] = {}
    for kind, _, _, *details in events:
        if kind == "written":
            by, written = details
            traced = dict(written.headers).get("traceparent") or b""
            open_calls.setdefault(by, {})[written.number] = int(traced[3:35] or b"0", 16)
        elif kind == "acknowledged":
            by, numbers = details
            for number in numbers:
                open_calls.get(by, {}).pop(number, None)
    for left in open_calls.values():
        repeats.update(left.values())
    return repeats


def _shown(event: Event) -> str:
    kind, at_s, task, *details = event
    return f"{at_s:9.5f} {task:14} {kind:14} {' '.join(_detail(one) for one in details)}"


def _detail(value: Any) -> str:
    if isinstance(value, Written):
        headers = dict(value.headers)
        what = headers.get("reject_reason") or headers.get("ce_id") or b""
        return f"{value.topic} {_detail(headers.get('traceparent'))} {what.decode()}"
    if isinstance(value, TopicPartition):
        return f"{value.topic}/{value.partition}"
    if isinstance(value, bytes):  # a traceparent, which names the record
        trace = int(value[3:35], 16)
        return f"{trace // 1_000_000 - 1}/{trace % 1_000_000 - 1}"
    if isinstance(value, list):
        return f"[{', '.join(_detail(one) for one in value)}]"
    text = str(value)
    return text if len(text) < 100 or not text.startswith("{") else text[text.find("verdict_id") : 100]


GLOBAL = ("started", "kill", "stop", "ended", "healed", "assigned", "revoking", "revoked", "expelled", "rewound")


def _concerns(event: Event, about: tuple[Any, ...], plan: Plan) -> bool:
    kind, _, _, *details = event
    if kind in GLOBAL or not about:
        return True
    text = " ".join(_detail(one) for one in details)
    places = [one for one in about if isinstance(one, tuple)]
    ids = {one for one in about if isinstance(one, str)}
    ids |= {one.image_id for one in plan.sent if (one.partition, one.offset) in places}
    if kind == "committed":
        return any(details[1].partition == one[0] for one in places) or details[1] in about
    words = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return any(f"{p}/{o}" in words for p, o in places) or any(one in text for one in ids)
