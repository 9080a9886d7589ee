"""The board: who has which image, what they decided, and what is still to be seen. All of it stands in Redis.

Every method may be called from any thread and any console, and raises Unavailable where Redis is away. After Redis was
started anew nothing is given out until the reviews on Kafka have been looked at (`outbox.py`): it may have forgotten
the last second.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.clients.redis_scripts import Scripts
from worker.console import group_scripts
from worker.console.queues import CONFLICTS, LEAD_QUEUES, Place, Queues
from worker.console.scripts import SCRIPTS
from worker.contract import Verdict
from worker.errors import Unavailable
from worker.review import Review, review_hash
from worker.settings import Settings

TAG = "console"
_AT_ONCE = 20
_MOST_IN_GROUP = 50
Decided = Literal["ok", "same", "gone", "not_yours"]
Appealed = Literal["not_done", "waits", "decided_since"]
_APPEALED: tuple[Appealed, ...] = ("not_done", "waits", "decided_since")


@dataclass(frozen=True, slots=True)
class Task:
    """A verdict that somebody is to look at. `opinion`: 1 for the first person who sees it."""

    id: str
    token: str
    queue: str
    verdict: Verdict
    held_ms: int
    share: float = 1.0
    opinion: int = 1
    truth: Literal["real", "fake"] | None = None
    appeal: bool = False
    appeal_note: str = ""
    appealed_by: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """A decision on its way to Kafka. `tries`: how often somebody took it, this time included."""

    review_id: str
    event: str
    tries: int


@dataclass(frozen=True, slots=True)
class Opinion:
    """A decision in short: `note` is a mark of its text."""

    decision: str
    reason: str
    note: str

    @classmethod
    def of(cls, review: Review) -> Opinion:
        return cls(review.decision, review.reason or "", mark_of(review.note))

    @classmethod
    def read(cls, text: str | None) -> Opinion | None:
        parts = (text or "").split("\n")
        return cls(*parts) if len(parts) == 3 else None

    @property
    def text(self) -> str:
        return "\n".join((self.decision, self.reason, self.note))

    def __str__(self) -> str:
        return f"{self.decision} ({self.reason})" if self.reason else self.decision


@dataclass(frozen=True, slots=True)
class QueueState:
    """`oldest_ms`: time of the oldest verdict that is not done, held ones included; None where there is none."""

    name: str
    open: int
    waiting: int
    second: int
    oldest_ms: int | None


class Board:
    """See above."""

    def __init__(self, settings: Settings, queues: Queues) -> None:
        self._settings = settings.console
        self._redis = settings.redis
        self.queues = queues
        self.scripts = Scripts(settings.redis, TAG, SCRIPTS | group_scripts.SCRIPTS)
        self._lock = threading.Lock()
        self._caught_up = ""

    # What fills it.

    def add(self, verdict: Verdict, as_json: str, place: Place, decided_ms: int) -> bool:
        """Have it seen. False where its queue is full; one that is there or was done already is left as it is."""
        answer = self.scripts.call(
            "add",
            str(verdict.verdict_id),
            place.queue,
            place.order,
            decided_ms,
            place.needed,
            place.share,
            as_json,
            self._settings.max_queued,
            "1" if self._settings.near_duplicates else "",
            self.queues.priority_order(CONFLICTS),
        )
        return int(answer) >= 0

    def next_unhashed(self, lease_ms: int) -> str:
        """The id of a task whose picture is to be looked at for near duplicates, or nothing."""
        return str(self.scripts.call("next_unhashed", lease_ms))

    def join(self, task_id: str, phash: str) -> str:
        """Put it into the group of what looks alike; `phash` is empty where there is no picture. The group's name."""
        keep_s, apart = self._settings.keep_ttl, self._settings.near_distance
        return str(self.scripts.call("join", task_id, phash, apart, _MOST_IN_GROUP, keep_s))

    # What a person does.

    def claim(self, who: str, queues: Sequence[str], *, many: int, golden: bool) -> list[Task]:
        """What `who` has on the screen and next, the former first; what they have already is given again."""
        self._check_caught_up()
        nonce = secrets.token_urlsafe(12)
        flag = "1" if golden else ""
        alone_ms = round(self._settings.lead_alone_ttl * 1000)
        ids = self.scripts.call("claim", who, self._settings.lock_s * 1000, many, nonce, flag, alone_ms, *queues)
        return [task for task in map(self.task, ids) if task is not None]

    def task(self, task_id: str) -> Task | None:
        """The task as it stands, or None where there is none."""
        found = self.scripts.do("hgetall", f"task:{task_id}")
        if not found.get("verdict"):
            return None
        return Task(
            id=task_id,
            token=found.get("token", ""),
            queue=found["queue"],
            verdict=Verdict.model_validate_json(found["verdict"]),
            held_ms=int(found.get("held_ms", 0)),
            share=float(found.get("share", 1)),
            opinion=int(found.get("given", 0)) + 1,
            truth=found.get("truth"),
            appeal="appeal" in found,
            appeal_note=found.get("appeal_note", ""),
            appealed_by=found.get("appealed_by", ""),
            group=found.get("group", ""),
        )

    def held_by(self, who: str, task_id: str, token: str) -> Task | None:
        """The task, where `who` has it under this token."""
        found = self.task(task_id)
        mine = found is not None and found.token == token and token != ""
        return found if mine and self.scripts.do("hget", f"task:{task_id}", "holder") == who else None

    def renew(self, who: str, held: Sequence[tuple[str, str]]) -> list[str]:
        """Keep them for another while. The ids of those that are still theirs."""
        flat = [part for pair in held for part in pair]
        return list(self.scripts.call("renew", who, self._settings.lock_s * 1000, *flat))

    def siblings(self, who: str, task_id: str) -> int:
        """How many near duplicates `who` could have beside it."""
        return int(self.scripts.call("siblings", who, task_id, *self.queues.names))

    def hold_group(self, who: str, task_id: str, token: str, most: int) -> list[Task]:
        """Near duplicates of what `who` has, which they have now, too."""
        nonce = secrets.token_urlsafe(12)
        lock_ms = self._settings.lock_s * 1000
        ids = self.scripts.call("hold_group", who, task_id, token, lock_ms, nonce, most, *self.queues.names)
        return [task for task in map(self.task, ids) if task is not None]

    def give_back(self, who: str, task_id: str, token: str, *, skip: bool = False) -> bool:
        return bool(self.scripts.call("give_back", who, task_id, token, "skip" if skip else "release"))

    def move(self, who: str, task_id: str, token: str, queue: str) -> bool:
        order = self.queues.priority_order(queue)
        return bool(self.scripts.call("give_back", who, task_id, token, "move", queue, order))

    def decide(self, review: Review, task_id: str, token: str, undo_ms: int) -> Decided:
        """Take a decision; it goes to Kafka once it can no longer be undone."""
        answer: Decided = self.scripts.call(
            "decide",
            review.reviewer,
            task_id,
            token,
            str(review.review_id),
            review.to_json(),
            undo_ms,
            review.decision,
        )
        return answer

    def undo(self, who: str, review_id: str) -> str | None:
        """The id of the task, which `who` has again; None where it is too late."""
        token = secrets.token_urlsafe(12)
        return self.scripts.call("undo", who, review_id, self._settings.lock_s * 1000, token) or None

    def appeal(self, task_id: str, who: str, note: str) -> Appealed:
        """Have a lead decide it again; said twice it is one appeal. `not_done`: or it is not remembered any more."""
        order = self.queues.priority_order("appeals")
        return _APPEALED[int(self.scripts.call("appeal", task_id, order, who, note))]

    def set_golden(self, image_id: str, truth: Literal["real", "fake"] | None, verdict_json: str) -> bool:
        """Make it golden, or (None) not any more. Whether something changed."""
        if truth is None:
            return bool(self.scripts.do("hdel", "golden", image_id))
        item = {"queue": self.queues.names[0], "truth": truth, "verdict": verdict_json}
        return bool(self.scripts.do("hset", "golden", image_id, json.dumps(item)))

    def state_of(self, review_id: str) -> Literal["done", "waiting", "unknown"]:
        """Is the decision on Kafka, on its way, or has Redis never heard of it?"""
        if self.scripts.do("exists", f"said:{review_id}"):
            return "done"
        return "waiting" if self.scripts.do("hexists", "outbox", review_id) else "unknown"

    def opinion_of(self, review_id: str) -> Opinion | None:
        """What was taken under this id, on its way or on Kafka."""
        if event := self.scripts.do("hget", "outbox", review_id):
            return Opinion.of(Review.model_validate_json(event))
        return Opinion.read(self.scripts.do("get", f"said:{review_id}"))

    # What brings decisions to Kafka.

    def take_due(self, lease_ms: int) -> list[Due]:
        flat = self.scripts.call("take", lease_ms, _AT_ONCE)
        return [Due(flat[i], flat[i + 1], int(flat[i + 2])) for i in range(0, len(flat), 3)]

    def apply(self, review: Review, as_json: str) -> str:
        """It is on Kafka: let Redis know, whatever Redis knew. Returns what became of it, '' where that was known."""
        keep_s, task = self._settings.keep_ttl, "" if review.golden else str(review.verdict_id)
        if not review.golden:
            key = f"{self._redis.key_prefix}review:{review.image_id}"
            fields = [part for pair in review_hash(review, as_json).items() for part in pair]
            self.scripts.call("store", review.decided_at, self._redis.verdict_ttl, *fields, key=key)
        order = self.queues.priority_order(CONFLICTS)
        return str(
            self.scripts.call(
                "apply",
                str(review.review_id),
                task,
                review.reviewer,
                review.decision,
                as_json,
                keep_s,
                order,
                Opinion.of(review).text,
            )
        )

    def oldest_outgoing_ms(self) -> int | None:
        """When the oldest decision that is not on Kafka yet is due."""
        found = self.scripts.do("zrange", "due", 0, 0, withscores=True)
        return int(found[0][1]) if found else None

    def is_born(self) -> bool:
        """Has this Redis ever been filled? One that lost everything has not."""
        return bool(self.scripts.do("exists", "born"))

    def caught_up(self, run_id: str) -> None:
        """Everything on Kafka has been applied to the server that is called so."""
        self.scripts.do("set", "born", "1")
        with self._lock:
            self._caught_up = run_id

    def _check_caught_up(self) -> None:
        run_id = self.scripts.run_id()
        with self._lock:
            behind = run_id != self._caught_up
        if behind or not self.is_born():
            raise Unavailable("redis", "it was started anew or emptied; the reviews on Kafka are being looked at first")

    # What can be said about it.

    def free_places(self, queue: str) -> int:
        """How many images more the queue takes."""
        return max(0, self._settings.max_queued - int(self.scripts.do("zcard", f"age:{queue}")))

    def states(self) -> list[QueueState]:
        """Of every queue, those of leads too."""
        return [self._state(name) for name in [*LEAD_QUEUES, *self.queues.names]]

    def _state(self, name: str) -> QueueState:
        do = self.scripts.do
        oldest = do("zrange", f"age:{name}", 0, 0, withscores=True)
        return QueueState(
            name=name,
            open=do("zcard", f"age:{name}"),
            waiting=do("zcard", f"wait:{name}"),
            second=do("zcard", f"second:{name}"),
            oldest_ms=int(oldest[0][1]) if oldest else None,
        )

    def recent(self, start: int, count: int) -> list[dict[str, Any]]:
        """The latest reviews, newest first."""
        return [json.loads(text) for text in self.scripts.do("lrange", "recent", start, start + count - 1)]

    def uncount(self, name: str) -> None:
        """Takes one back."""
        self.scripts.call("uncount", name)

    def counted(self, name: str, seconds: int) -> int:
        """Counts one more of `name`; how many there were within so many seconds of the first."""
        return int(self.scripts.call("count", name, seconds))


def mark_of(note: str) -> str:
    """Tells one note from another; nothing for none."""
    return hashlib.sha256(note.encode()).hexdigest()[:8] if note else ""
