"""What the page says of a task: plain values, every text from outside made visible (worker/text.py), no markup."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from worker.console.board import Task
from worker.evidence import Nearest
from worker.explain.margins import margins
from worker.policy import Facts, Policy
from worker.text import escape

_MOST_CHARACTERS = 2000
_MOST_LINES = 40


def task_view(task: Task, policy: Policy, queues: list[str], siblings: int = 0) -> dict[str, Any]:
    """A golden item looks like any other: neither `truth` nor its own id's kind is in it. `siblings`: near
    duplicates that could be decided with it.
    """
    verdict = task.verdict
    same_policy = policy.ref.version == verdict.policy.version
    found = margins(policy, Facts.of(verdict))
    return {
        "id": task.id,
        "token": task.token,
        "queue": task.queue,
        "queues": [name for name in queues if name != task.queue],
        "image_id": shown(verdict.image_id),
        "verdict_id": str(verdict.verdict_id),
        "sha256": verdict.sha256,
        "decision": verdict.decision,
        "decided_at": verdict.decided_at,
        "reasons": _lines(verdict.reasons),
        "labels": _lines(verdict.labels),
        "scores": [{"name": one.fact, "value": one.value, "turns_at": one.turns_at, "into": one.into} for one in found],
        "policy": f"{shown(verdict.policy.name)} {verdict.policy.version}",
        "policy_note": "" if same_policy else "limits are those of the policy in force now, which is another one",
        "model": f"{shown(verdict.model.name)} {verdict.model.version}",
        "image": _facts(verdict.image),
        "evidence": [*_facts(verdict.evidence, but=("nearest",)), *_headers(verdict.headers)],
        "neighbours": _neighbours(verdict.evidence.nearest),
        "opinion": task.opinion,
        "siblings": siblings,
        "appeal": shown(task.appeal_note) if task.appeal else None,
        "width": verdict.image.width,
        "height": verdict.image.height,
        "url": f"/image/{task.id}/{task.token}",
    }


def shown(text: str) -> str:
    """On one line, without what a browser or a reader would take for more than text, and not without end."""
    visible = escape(text)
    return visible if len(visible) <= _MOST_CHARACTERS else f"{visible[:_MOST_CHARACTERS]}…"


def _lines(texts: list[str]) -> list[str]:
    return [shown(text) for text in texts[:_MOST_LINES]]


def _neighbours(nearest: Nearest) -> list[tuple[str, str]]:
    """Of each side the nearest image that the model knows, the nearer first; distances are cosine's."""
    sides = (("real", nearest.real), ("fake", nearest.fake))
    found = sorted((one.distance, side, one.label or "unnamed") for side, one in sides if one.distance is not None)
    return [(side, f"{shown(label)}, {distance:.3g} away") for distance, side, label in found]


def _facts(part: BaseModel, before: str = "", but: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(name, value) of whatever is there."""
    lines: list[tuple[str, str]] = []
    for name, value in part:
        if name in but:
            continue
        if isinstance(value, BaseModel):
            lines += _facts(value, f"{before}{name} ")
        elif value is not None:
            lines.append(
                (f"{before}{name}".replace("_", " "), f"{value:.4g}" if isinstance(value, float) else shown(str(value)))
            )
    return lines[:_MOST_LINES]


def _headers(headers: dict[str, str]) -> list[tuple[str, str]]:
    return [(f"header {shown(name)}", shown(value)) for name, value in list(headers.items())[:_MOST_LINES]]
