"""A policy's file -> policy, or a line for each thing that is wrong with it: rule, column, what would be right."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from worker.contract import Decision
from worker.errors import SettingsError
from worker.policy.calibration import Calibration
from worker.policy.expression import ExpressionError, compile_expression
from worker.policy.policy import Policy
from worker.policy.rules import Otherwise, Rule, Rules, RuleText
from worker.policy.thresholds import Thresholds

_SHORT = ("head", "fake_from", "real_below")
_LONG = ("rules", "otherwise")
Model = TypeVar("Model", bound=BaseModel)
_TABLES: dict[str, type[BaseModel]] = {"rules": Rule, "otherwise": Otherwise}


def load_policy(path: Path | None, variable: str = "", also_decides: Mapping[str, str] | None = None) -> Policy:
    """The policy in the file, or the built-in one. `variable` is the setting that named the file.

    Raises SettingsError with a line for each problem that names the file and the rule or the field.
    """
    if path is None:
        return Policy(also_decides=also_decides or {})
    where = f"{variable}={path}" if variable else str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as some editors write it
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{where}: {error}"]) from None
    return parse_policy(text, where, also_decides)


def parse_policy(text: str, where: str, also_decides: Mapping[str, str] | None = None) -> Policy:
    """The policy that `text` is; `where` begins each problem. Raises SettingsError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError([f"{where}: {error}"]) from None
    table = document.pop("calibration", None)
    problems: list[str] = []
    calibration: Calibration | None = None
    form: Rules | Thresholds | None = None
    if table is not None:
        calibration, problems = _model(Calibration, table, "calibration.")
    if any(name in document for name in _LONG) and any(name in document for name in _SHORT):
        problems.append("both forms in one file: either rules, or head, fake_from and real_below")
    elif any(name in document for name in _LONG):
        form, found = _rules(document, text)
        problems += found
    elif document:
        form, found = _model(Thresholds, document, "")
        problems += found
    else:
        problems.append("no policy in it: either [[rules]], or head, fake_from and real_below")
    if problems or form is None:
        raise SettingsError([f"{where}: {problem}" for problem in problems])
    return Policy(form, calibration, also_decides or {})


def _rules(document: dict[str, Any], text: str) -> tuple[Rules | None, list[str]]:
    """The rules, or what is wrong with each; every rule is looked at."""
    problems: list[str] = []
    try:
        rules = RuleText.model_validate(document)
    except ValidationError as error:
        # A rule that is wrong is left out before they are counted: that there are none is then no news.
        items = [item for item in error.errors() if item["type"] != "too_short" or not document["rules"]]
        problems += [_rule_problem(item, document, text) for item in items]
    written = document.get("rules")
    for number, rule in enumerate(written if isinstance(written, list) else [], 1):
        try:
            if isinstance(rule, dict) and isinstance(rule.get("when"), str):
                compile_expression(rule["when"])
        except ExpressionError as error:
            problems.append(f"rule {number}, {error}")
    return (None, problems) if problems else (Rules(rules), [])


def _rule_problem(item: Any, document: dict[str, Any], text: str) -> str:
    loc = item["loc"]
    if not loc or loc[0] not in _LONG or (loc[0] == "rules" and len(loc) < 3):
        return _problem(item, RuleText, "")
    in_rules = loc[0] == "rules"
    place = f"rule {loc[1] + 1}" if in_rules else "otherwise"
    field = str(loc[-1])
    column = _column(text, field, loc[1] if in_rules else None)
    if field == "decision" and item["type"] == "literal_error":
        decision = (document["rules"][loc[1]] if in_rules else document["otherwise"])["decision"]
        return f"{place}, column {column}: unknown decision {decision!r}; {_nearest(str(decision), get_args(Decision))}"
    if item["type"] == "missing":
        return f"{place}: {field} is missing"
    return f"{place}, column {column}: {_problem(item, _TABLES[loc[0]], '')}"


def _column(text: str, field: str, rule: int | None) -> int:
    """Where in its line the value of `field` begins, in that rule or in `[otherwise]`; 1 where it is not found."""
    header = r"^[ \t]*\[\[[ \t]*rules[ \t]*\]\]" if rule is not None else r"^[ \t]*\[[ \t]*otherwise[ \t]*\]"
    begins = [match.end() for match in re.finditer(header, text, re.MULTILINE)]
    if (rule or 0) >= len(begins):
        return 1
    section = re.split(r"^[ \t]*\[", text[begins[rule or 0] :], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.search(rf"^([ \t]*[\"']?{re.escape(field)}[\"']?[ \t]*=[ \t]*)", section, re.MULTILINE)
    return len(found[1]) + 1 if found else 1


def _model(model: type[Model], values: Any, prefix: str) -> tuple[Model | None, list[str]]:
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        return None, [_problem(item, model, prefix) for item in error.errors()]


def _problem(item: Any, model: type[BaseModel], prefix: str) -> str:
    name = ".".join(map(str, item["loc"])) or "policy"
    if item["type"] == "extra_forbidden":
        return f"{prefix}{name}: unknown field; {_nearest(str(item['loc'][-1]), tuple(model.model_fields))}"
    return f"{prefix}{name}: {item['msg']}"


def _nearest(name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
