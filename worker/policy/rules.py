"""The long form of a policy: rules from the top, the first whose condition holds decides.

Conditions are evaluated in groups, as one expression that gives the number of the first that holds: most of the time of
a rule goes into entering the library. A group whose value is an error is gone through rule by rule, because a rule
whose value is an error does not hold and the next one has its turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel
from pydantic import BaseModel, ConfigDict, Field

from worker.contract import Decision
from worker.policy.expression import Expression, activation, compile_expression
from worker.policy.facts import Facts, path_name, shape_of, shown
from worker.policy.names import running
from worker.policy.outcome import Outcome

MAX_RULES = 200
_GROUP = 8
LABEL = Field(default=None, min_length=1, max_length=64)


class Rule(BaseModel):
    """`when`: a condition in CEL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str
    decision: Decision
    label: str | None = LABEL


class Otherwise(BaseModel):
    """What is decided where no rule holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision: Decision = "review"
    label: str | None = LABEL


class RuleText(BaseModel):
    """The rules as they stand in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="default", min_length=1, max_length=64)
    rules: tuple[Rule, ...] = Field(min_length=1, max_length=MAX_RULES)
    otherwise: Otherwise = Otherwise()


@dataclass(frozen=True, slots=True)
class _Group:
    """Rules `first`, `first` + 1, … in one expression: the number of the one that holds, 0 for none."""

    first: int
    rules: tuple[tuple[Rule, Expression], ...]
    program: cel.Expression | None

    def decides(self, facts: cel.Activation) -> int:
        found = self.program.eval(facts).value() if self.program is not None else None
        if isinstance(found, int):
            return found
        holding = (number for number, (_, when) in enumerate(self.rules, self.first) if when.holds(facts))
        return next(holding, 0)


class Rules:
    """Rules that compiled. Raises ExpressionError through `compile_expression` where one does not."""

    def __init__(self, text: RuleText) -> None:
        self.text = text
        self._compiled = tuple((rule, compile_expression(rule.when)) for rule in text.rules)
        self._groups = tuple(
            _grouped(self._compiled[start : start + _GROUP], start + 1)
            for start in range(0, len(self._compiled), _GROUP)
        )
        self._shape = shape_of(path for _, when in self._compiled for path in when.reads)
        self.headers = frozenset[str]().union(*(when.headers for _, when in self._compiled))

    @property
    def name(self) -> str:
        return self.text.name

    def decide(self, facts: Facts) -> Outcome:
        """By the first rule that holds, with the values that it read."""
        names = facts.as_names(self._shape)
        found = activation(names)
        for group in self._groups:
            if number := group.decides(found):
                rule, when = self._compiled[number - 1]
                return Outcome(rule.decision, (_reason(number, rule, when, names),), _labels(rule))
        return Outcome(self.text.otherwise.decision, ("otherwise",), _labels(self.text.otherwise))

    def summary(self) -> str:
        """In one line."""
        return f"{len(self.text.rules)} rules, otherwise {_said(self.text.otherwise)}"

    def explain(self) -> list[tuple[str, str, str]]:
        """(which part, what it says, what it reads), as `policy check` shows it."""
        lines = [
            (f"rule {number}", f"{_said(rule)} when {_one_line(rule.when)}", ", ".join(map(path_name, when.reads)))
            for number, (rule, when) in enumerate(self._compiled, 1)
        ]
        return [*lines, ("otherwise", _said(self.text.otherwise), "")]

    def doubts(self) -> list[str]:
        """What its rules hardly mean, a line each with rule and column."""
        return [
            f"rule {number}, {doubt}" for number, (_, when) in enumerate(self._compiled, 1) for doubt in when.doubts
        ]

    def meaning(self) -> dict[str, object]:
        """What its version hashes: another name, rule or order is another policy, a comment is not."""
        rules = [{**rule.model_dump(), "when": rule.when.strip()} for rule in self.text.rules]
        return {"name": self.name, "rules": rules, "otherwise": self.text.otherwise.model_dump()}


def _grouped(rules: tuple[tuple[Rule, Expression], ...], first: int) -> _Group:
    # A comment of CEL ends with its line.
    parts = [f"(({when.evaluated}\n) ? {number} : " for number, (_, when) in enumerate(rules, first)]
    try:
        program = running().compile("".join(parts) + "0" + ")" * len(parts), disable_check=True)
    except RuntimeError:  # deeper than the library's parser goes: one by one, then
        program = None
    return _Group(first, rules, program)


def _reason(number: int, rule: Rule, when: Expression, names: dict[str, Any]) -> str:
    values = shown(names, when.reads, when.constants)
    return f"rule {number}: {_one_line(rule.when)}" + (f" ({values})" if values else "")


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines())


def _said(part: Rule | Otherwise) -> str:
    return part.decision + (f" with label {part.label}" if part.label else "")


def _labels(part: Rule | Otherwise) -> tuple[str, ...]:
    return (part.label,) if part.label else ()
