"""What a reviewer's page asks for: images, decisions, a way back; each answers with JSON."""

from __future__ import annotations

import secrets
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Route

from worker.console.board import Opinion, Task, mark_of
from worker.console.users import Person
from worker.console.views import shown, task_view
from worker.console.web import Console, Refused, call
from worker.policy import Policy
from worker.review import MAX_NOTE_CHARACTERS, Review, ReviewedVerdict, review_id

_AHEAD = 2  # one on the screen, one that is fetched meanwhile
_PAUSE_S = 300
_GROUP_MOST = 12
_NOT_YOURS = "this image is not yours any more; it was given to somebody else, or decided"
Id = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Claim(_Asked):
    queue: str | None = Field(default=None, max_length=40)


class Held(_Asked):
    task: str = Id
    token: str = Id


class Renew(_Asked):
    held: list[Held] = Field(max_length=40)


class GiveBack(Held):
    how: Literal["release", "skip", "move"]
    queue: str | None = Field(default=None, max_length=40)


class Decide(Held):
    decision: Literal["real", "fake", "unsure"]
    reason: str | None = Field(default=None, max_length=64)
    note: str = Field(default="", max_length=MAX_NOTE_CHARACTERS)
    seconds: float = Field(ge=0, le=86_400)
    also: list[Held] = Field(default=[], max_length=_GROUP_MOST, description="near duplicates that it decides, too")


class Undo(_Asked):
    review_id: str = Id
    also: list[Annotated[str, Id]] = Field(default=[], max_length=_GROUP_MOST)


class Said(_Asked):
    review_ids: list[Annotated[str, Id]] = Field(max_length=100)


class Appeal(_Asked):
    verdict_id: str = Id
    note: str = Field(min_length=1, max_length=MAX_NOTE_CHARACTERS)


def claim(console: Console, person: Person, asked: Claim) -> dict[str, Any]:
    """What is on the screen, and what comes next."""
    open_to = console.board.queues.open_to(lead=person.is_lead)
    if asked.queue is not None and asked.queue not in open_to:
        raise Refused(404, "there is no such queue for you")
    golden = secrets.randbelow(10_000) < console.settings.console.golden_share * 10_000
    queues = [asked.queue] if asked.queue else open_to
    tasks = console.board.claim(person.name, queues, many=_AHEAD, golden=golden)
    policy = console.policy()
    return {"tasks": [_view(console, person, task, policy, open_to) for task in tasks]}


def _view(console: Console, person: Person, task: Task, policy: Policy, open_to: list[str]) -> dict[str, Any]:
    siblings = console.board.siblings(person.name, task.id) if task.group else 0
    return task_view(task, policy, open_to, siblings)


def group(console: Console, person: Person, asked: Held) -> dict[str, Any]:
    """Near duplicates of an image that is one's own: they are one's own now, too."""
    open_to, policy = console.board.queues.open_to(lead=person.is_lead), console.policy()
    found = console.board.hold_group(person.name, asked.task, asked.token, _GROUP_MOST)
    return {"tasks": [task_view(task, policy, open_to) for task in found]}


def renew(console: Console, person: Person, asked: Renew) -> dict[str, Any]:
    return {"held": console.board.renew(person.name, [(one.task, one.token) for one in asked.held])}


def give_back(console: Console, person: Person, asked: GiveBack) -> dict[str, Any]:
    if asked.how == "move":
        if asked.queue not in [*console.board.queues.open_to(lead=True)]:
            raise Refused(422, "queue: there is no such queue")
        done = console.board.move(person.name, asked.task, asked.token, asked.queue)
    else:
        done = console.board.give_back(person.name, asked.task, asked.token, skip=asked.how == "skip")
    if not done:
        raise Refused(409, "this image is not yours any more")
    return {"done": True}


def decide(console: Console, person: Person, asked: Decide) -> dict[str, Any]:
    """Takes the decision. It is on Kafka once `said` says so."""
    settings = console.settings.console
    if asked.reason is not None and asked.reason not in settings.reasons:
        raise Refused(422, f"reason: one of {', '.join(settings.reasons)} is expected")
    if asked.reason is None and asked.decision in settings.reason_required:
        raise Refused(422, f"reason: {asked.decision} needs one")
    together = 1 + len(asked.also)
    review = _decide_one(console, person, asked, asked, together)
    others, left = [], []
    for held in asked.also:
        try:
            others.append(_decide_one(console, person, asked, held, together))
        except Refused:
            left.append(held.task)
    undo_ms = settings.undo_s * 1000
    if not undo_ms:
        console.outbox.hurry()
    streak = console.board.scripts.do("incrby", f"streak:{person.name}", together)
    console.board.scripts.do("expire", f"streak:{person.name}", _PAUSE_S)
    return {
        "review_id": review,
        "also": others,
        "left": left,
        "undo_ms": undo_ms,
        "break": streak % settings.break_after_images < together,
    }


def _decide_one(console: Console, person: Person, asked: Decide, held: Held, together: int) -> str:
    """The review's id. Raises Refused."""
    review = str(review_id(held.task, held.token))
    task = console.board.held_by(person.name, held.task, held.token)
    if task is None:
        return _taken_before(console, review, asked)
    undo_ms = console.settings.console.undo_s * 1000
    answer = console.board.decide(_review(task, person, asked, together), task.id, task.token, undo_ms)
    if answer == "same":
        return _taken_before(console, review, asked)
    if answer != "ok":
        raise Refused(409, _NOT_YOURS)
    if task.truth is not None:
        console.board.scripts.do("set", f"truth:{review}", task.truth, ex=3600)
    return review


def _taken_before(console: Console, review: str, asked: Decide) -> str:
    """The review's id, where this was answered already under its token: the same answer, sent again, is the same act.
    Another is refused.
    """
    before = console.board.opinion_of(review)
    if before is None and console.board.state_of(review) == "unknown":
        raise Refused(409, _NOT_YOURS)
    now = Opinion(asked.decision, asked.reason or "", mark_of(asked.note.strip()))
    if before is not None and before != now:
        what = f"{before}, and not {now}" if str(before) != str(now) else f"{before}, without the note that came now"
        raise Refused(
            409,
            f"it was answered already and that answer counts: {what}; take it back with undo, or appeal",
            review_id=review,
            before={"decision": before.decision, "reason": before.reason or None},
            now={"decision": now.decision, "reason": now.reason or None},
        )
    return review


def _review(task: Task, person: Person, asked: Decide, together: int) -> Review:
    verdict = task.verdict
    now = time.time()
    return Review(
        review_id=review_id(task.id, task.token),
        verdict_id=verdict.verdict_id,
        image_id=verdict.image_id,
        sha256=verdict.sha256,
        decision=asked.decision,
        reason=asked.reason,
        note=asked.note.strip(),
        reviewer=person.name,
        queue=task.queue,
        verdict=ReviewedVerdict.of(verdict),
        golden=task.truth is not None,
        truth=task.truth,
        appeal=task.appeal,
        opinion=task.opinion,
        share=task.share,
        decided_at=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        # The page says how long it was looked at; it cannot be longer than it was had.
        seconds=round(min(asked.seconds / together, max(0.0, now - task.held_ms / 1000)), 2),
        group=uuid.UUID(task.group) if task.group else None,
        together=together,
    )


def undo(console: Console, person: Person, asked: Undo) -> dict[str, Any]:
    task_id = console.board.undo(person.name, asked.review_id)
    if task_id is None:
        raise Refused(409, "it is too late: the decision has gone out")
    open_to, policy = console.board.queues.open_to(lead=person.is_lead), console.policy()
    task = console.board.task(task_id)
    back = [console.board.undo(person.name, one) for one in asked.also]
    others = [found for one in back if one and (found := console.board.task(one)) is not None]
    return {
        "task": _view(console, person, task, policy, open_to) if task else None,
        "also": [task_view(one, policy, open_to) for one in others],
    }


def said(console: Console, _person: Person, asked: Said) -> dict[str, Any]:
    """Of each decision: done (it is on Kafka), waiting, or unknown; of a golden item afterwards what it was."""
    states: dict[str, Any] = {}
    for one in asked.review_ids:
        state = console.board.state_of(one)
        states[one] = {"state": state}
        if state == "done" and (truth := console.board.scripts.do("get", f"truth:{one}")):
            states[one]["truth"] = truth
    return {"said": states}


def appeal(console: Console, person: Person, asked: Appeal) -> dict[str, Any]:
    became = console.board.appeal(asked.verdict_id, person.name, asked.note)
    if became == "not_done":
        raise Refused(409, "only what is decided, and not too long ago, can be appealed")
    if became == "decided_since":
        raise Refused(409, "a lead has decided it since you appealed with these words; say what is new")
    console.audit.note("appeal", person.name, "", verdict_id=asked.verdict_id, note=shown(asked.note))
    return {"done": True}


def _reviews(person: Person) -> bool:
    return person.may_review


ROUTES = [
    Route("/api/claim", call(Claim, claim, allowed=_reviews), methods=["POST"]),
    Route("/api/renew", call(Renew, renew, allowed=_reviews), methods=["POST"]),
    Route("/api/give-back", call(GiveBack, give_back, allowed=_reviews), methods=["POST"]),
    Route("/api/decide", call(Decide, decide, allowed=_reviews), methods=["POST"]),
    Route("/api/group", call(Held, group, allowed=_reviews), methods=["POST"]),
    Route("/api/undo", call(Undo, undo, allowed=_reviews), methods=["POST"]),
    Route("/api/said", call(Said, said, allowed=_reviews), methods=["POST"]),
    Route("/api/appeal", call(Appeal, appeal, allowed=_reviews), methods=["POST"]),
]
