"""Which verdicts people are to see, in which queue, and how urgent: a TOML file, or one queue of all `review`.

[[queues]]                     # from the top; the first that takes a verdict has it
name = "kids"
decisions = ["review", "fake"]
when = 'headers.tenant == "kids" && scores.linear > 0.3'     # CEL, as in a policy
priority = 10                  # higher ones first, whatever their age
share = 0.1                    # a sample, drawn by verdict id
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.contract import Decision, Verdict
from worker.errors import SettingsError
from worker.policy.expression import Expression, ExpressionError, activation, compile_expression
from worker.policy.facts import Facts, shape_of
from worker.settings import variable

CONFLICTS, APPEALS = "conflicts", "appeals"
LEAD_QUEUES = (CONFLICTS, APPEALS)
_MAX_QUEUES = 20
_PRIORITY = 1e13  # more than any time in milliseconds: a priority beats every age


class Queue(BaseModel):
    """One queue as it stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    decisions: tuple[Decision, ...] = Field(default=("review",), min_length=1)
    when: str | None = None
    priority: int = Field(default=0, ge=-100, le=100)
    share: float = Field(default=1.0, gt=0, le=1)
    second_share: float | None = Field(default=None, ge=0, le=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queues: list[Queue] = Field(min_length=1, max_length=_MAX_QUEUES)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a verdict waits. `order`: lower ones are given out first; `needed`: how many opinions it wants."""

    queue: str
    order: float
    needed: int
    share: float


class Queues:
    """The queues that compiled, and those of leads."""

    def __init__(self, queues: list[Queue], second_share: float) -> None:
        """Raises ExpressionError."""
        self._queues = queues
        self._second_share = second_share
        self._when: list[Expression | None] = [compile_expression(one.when) if one.when else None for one in queues]

    @classmethod
    def load(cls, path: Path | None, second_share: float) -> Self:
        """Raises SettingsError with each problem on a line that names the setting."""
        if path is None:
            return cls([Queue(name="review")], second_share)
        where = f"{variable('console', 'queues_path')}={path}"
        try:
            found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError([f"{where}: {error}"]) from None
        except ValidationError as error:
            raise SettingsError(
                [f"{where}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            ) from None
        names = [one.name for one in found.queues]
        twice = sorted({name for name in names if names.count(name) > 1 or name in LEAD_QUEUES})
        if twice:
            raise SettingsError([f"{where}: {', '.join(twice)}: names of queues are unique, and not those of leads"])
        try:
            return cls(found.queues, second_share)
        except ExpressionError as error:
            raise SettingsError([f"{where}: {error}"]) from None

    @property
    def names(self) -> list[str]:
        """Those of reviewers."""
        return [one.name for one in self._queues]

    def open_to(self, *, lead: bool) -> list[str]:
        return [*(LEAD_QUEUES if lead else ()), *self.names]

    def priority_order(self, queue: str) -> float:
        """What is added to a verdict's time to get its order in this queue. Leads' queues come first for leads."""
        if queue in LEAD_QUEUES:
            return -101 * _PRIORITY
        return -next((one.priority for one in self._queues if one.name == queue), 0) * _PRIORITY

    def place(self, verdict: Verdict, decided_ms: int) -> Place | None:
        """Where people see it, or None where nobody does."""
        facts = Facts.of(verdict)
        for queue, when in zip(self._queues, self._when, strict=True):
            if verdict.decision not in queue.decisions or not _holds(when, facts):
                continue
            name = str(verdict.verdict_id)
            if _drawn(name, f"share of {queue.name}") >= queue.share:
                continue
            share = self._second_share if queue.second_share is None else queue.second_share
            needed = 2 if _drawn(name, "second opinion") < share else 1
            return Place(queue.name, self.priority_order(queue.name) + decided_ms, needed, queue.share)
        return None


def _holds(when: Expression | None, facts: Facts) -> bool:
    return when is None or when.holds(activation(facts.as_names(shape_of(when.reads))))


def _drawn(verdict_id: str, purpose: str) -> float:
    """A number in [0, 1) that is the same whenever and wherever it is drawn for this verdict."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{verdict_id}".encode()).digest()[:6], "big") / 2**48
