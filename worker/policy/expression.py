"""A CEL expression over facts: compiled, type-checked and bounded before the first image, then only evaluated.

Whatever is wrong is an ExpressionError with the place and what would be right. An expression always ends (CEL has no
loops but its macros over lists), and cheaply: macros do not nest, and what it may cost at most is counted here.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel

from worker.policy import extremes
from worker.policy.doubts import doubts
from worker.policy.names import FACTS, FUNCTIONS, checking, fields_of, running
from worker.policy.syntax import Node, read_checked

MAX_CHARACTERS = 4096
MAX_STEPS = 1000
_DETECTORS_AT_MOST = 32  # items that a macro over a map of facts is taken to meet
_STEPS_PER_MATCH = 50
_PLACE = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_OVERLOAD = re.compile(r"found no matching overload for '(.+)' applied to '(.*)'")
_WORD = re.compile(r"\w+")
_SIGNS = {"_[_]": "[ ]", "_?_:_": "? :", "-_": "-", "!_": "!", "@in": "in"}

Path = tuple[str, ...]


class ExpressionError(ValueError):
    """What is wrong and where: `str` reads `column 8: unknown name …`."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        super().__init__(f"{_place(text, at)}: {problem}")


def _place(text: str, at: int) -> str:
    before = text[:at].split("\n")
    line = f"line {len(before)}, " if "\n" in text.strip() else ""
    return f"{line}column {len(before[-1]) + 1}"


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition. `reads`: the paths of facts in it, in the order of the text; `constants`: the numbers in it.

    `evaluated`: the text as the library evaluates it. `doubts`: what it hardly means, each `column 8: …`.
    """

    text: str
    reads: tuple[Path, ...]
    constants: tuple[float, ...]
    evaluated: str
    program: cel.Expression
    doubts: tuple[str, ...] = ()

    @property
    def headers(self) -> frozenset[str]:
        """The record's headers that it names."""
        return frozenset(path[1] for path in self.reads if path[0] == "headers")

    def holds(self, activation: cel.Activation) -> bool:
        """Is it true? An expression whose value is an error is not."""
        return self.program.eval(activation).value() is True


@functools.lru_cache(maxsize=1024)
def compile_expression(text: str, facts: tuple[str, ...] = FACTS) -> Expression:
    """`text` as a condition over `facts`. Raises ExpressionError."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(text, 0, f"{len(text)} characters, at most {MAX_CHARACTERS} are allowed")
    try:
        checked = checking().compile(text)
        tree = read_checked(checked.serialize())
    except (RuntimeError, ValueError) as error:
        raise _explained(text, str(error)) from None
    if checked.return_type() not in (cel.Type.BOOL, cel.Type.DYN):
        kind = checked.return_type().name().lower().removeprefix("assay.")
        raise ExpressionError(text, 0, f"the value is {kind}, not true or false")
    _check_names(text, tree, facts)
    steps = _steps(text, tree, inside=False)
    if steps > MAX_STEPS:
        raise ExpressionError(text, 0, f"may take {steps} steps, at most {MAX_STEPS} are allowed; shorten its lists")
    constants = tuple(
        float(node.value) for node in tree.walk() if isinstance(node.value, int | float) and node.value is not True
    )
    evaluated = extremes.replaced(text, tree)
    program = running().compile(evaluated, disable_check=True)
    found = tuple(f"{_place(text, at)}: {doubt}" for at, doubt in doubts(tree))
    return Expression(text, _reads(tree), constants, evaluated, program, found)


def activation(facts: dict[str, Any]) -> cel.Activation:
    """`facts` for one image, for any number of expressions."""
    return running().Activation(facts)


def _explained(text: str, message: str) -> ExpressionError:
    """The library's message in the words of whoever writes policies."""
    match = _PLACE.search(message)
    if match is None or int(match[2]) == 0:
        return ExpressionError(text, 0, "nested too deeply" if "recursion" in message else message.split("\n", 1)[0])
    line, column, problem = int(match[1]), int(match[2]), match[3].removesuffix(" [INVALID_ARGUMENT]")
    at = sum(len(part) + 1 for part in text.split("\n")[: line - 1]) + column - 1
    if found := re.match(r"undeclared reference to '(\w+)", problem):
        name = found[1]
        is_function = text[at : at + 1] == "("
        begin = text.rfind(name, 0, at + len(name))
        if name in FUNCTIONS:
            return ExpressionError(text, max(begin, 0), f"{name} takes two or three numbers")
        known = FUNCTIONS if is_function else FACTS
        what = "function" if is_function else "name"
        return ExpressionError(text, max(begin, 0), _unknown(what, name, known))
    if found := re.match(r"undefined field '(.+)' not found in struct '(.+)'", problem):
        begin = text.find(found[1], at)
        return ExpressionError(text, at if begin < 0 else begin, _unknown("name", found[1], fields_of(found[2])))
    if found := _OVERLOAD.match(problem):
        sign = _SIGNS.get(found[1], found[1].strip("_"))
        types = found[2].strip("()").replace("wrapper(", "").replace(")", "").replace("assay.", "")
        return ExpressionError(text, at, f"{sign} does not work on {types or 'nothing'}")
    return ExpressionError(text, at, problem.split(" expecting {")[0])


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    return f"unknown {what} {name}; {hint}"


def _check_names(text: str, tree: Node, facts: tuple[str, ...]) -> None:
    """What the type checker leaves open: the heads, headers by name, patterns, and facts that are not had here."""
    named = {id(node.children[0]) for node in tree.walk() if _key(node) is not None}
    named |= {id(node.children[1]) for node in tree.walk() if _is_membership(node)}
    for node in tree.walk():
        key, owner = _key(node), node.children[0] if node.children else node
        if key is not None and owner.kind == "name" and owner.name == "scores" and key not in fields_of("scores"):
            place = _WORD.search(text, node.at)
            at = text.find(key, place.start() if place else node.at)
            raise ExpressionError(text, max(at, 0), _unknown("name", key, fields_of("scores")))
        if node.kind == "name" and node.name in FACTS and node.name not in facts:
            raise ExpressionError(text, node.at, _unknown("name", node.name, facts))
        if node.kind == "name" and node.name == "headers" and id(node) not in named:
            raise ExpressionError(text, node.at, 'headers are read by name, as headers.tenant or headers["x-tenant"]')
        if node.kind == "macro" and node.name in FACTS:
            raise ExpressionError(text, node.at, f"{node.name} is the name of a fact; bind another one")
        if node.kind == "call" and node.name == "matches":
            _check_pattern(text, node)


def _check_pattern(text: str, node: Node) -> None:
    pattern = node.children[-1]
    if not isinstance(pattern.value, str):
        raise ExpressionError(text, pattern.at, "a pattern is a text in quotes")
    tried = running().compile('"".matches(pattern)', disable_check=True).eval(data={"pattern": pattern.value})
    if not isinstance(tried.value(), bool):
        raise ExpressionError(text, pattern.at, str(tried.value()).removeprefix("INVALID_ARGUMENT: "))


def _key(node: Node) -> str | None:
    """The field that a node reads of its first child: `x.key`, `has(x.key)`, `x["key"]`."""
    if node.kind in ("field", "has"):
        return node.name
    if node.kind == "call" and node.name == "_[_]" and isinstance(node.children[1].value, str):
        return node.children[1].value
    return None


def _is_membership(node: Node) -> bool:
    """`"key" in x`, which reads a field of its second child."""
    return node.kind == "call" and node.name == "@in" and isinstance(node.children[0].value, str)


def _reads(tree: Node) -> tuple[Path, ...]:
    """Every path of facts, in the order of the text; one that another goes on from is left out."""
    found: list[Path] = []

    def visit(node: Node) -> Path | None:
        """The path that `node` is, having recorded the paths below it that go no further."""
        key = _key(node)
        if node.kind == "name":
            return (node.name,) if node.name in FACTS else None
        if _is_membership(node):
            owner = visit(node.children[1])
            if owner:
                found.append((*owner, str(node.children[0].value)))
            return None
        if key is not None:
            owner = visit(node.children[0])
            return (*owner, key) if owner else None
        for child in node.children:
            path = visit(child)
            if path:
                found.append(path)
        return None

    path = visit(tree)
    if path:
        found.append(path)
    unique = list(dict.fromkeys(found))
    return tuple(path for path in unique if not any(other != path and other[: len(path)] == path for other in unique))


def _steps(text: str, node: Node, *, inside: bool) -> int:
    """What evaluating `node` may cost at most, in nodes visited."""
    if node.kind == "macro":
        if inside:
            raise ExpressionError(text, node.at, "a macro inside a macro is not allowed: its cost has no useful bound")
        turns = sum(len(part.children) if part.kind == "list" else 0 for part in node.children[0].walk())
        turns += sum(_DETECTORS_AT_MOST for part in node.children[0].walk() if part.kind in ("name", "map"))
        costs = [_steps(text, child, inside=True) for child in node.children]
        return costs[0] + turns * sum(costs[1:])
    own = _STEPS_PER_MATCH if node.kind == "call" and node.name == "matches" else 1
    return own + sum(_steps(text, child, inside=inside) for child in node.children)
