"""Conditions in CEL: what compiles and what it reads; what does not, with the place and what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from worker.policy.expression import MAX_CHARACTERS, ExpressionError, activation, compile_expression
from worker.policy.names import FACTS

NAMES: dict[str, Any] = {
    "scores": {"linear": 0.97, "knn": 0.5, "svm": 0.4},
    "detectors": {"clip": {"linear": 0.2}},
    "image": {"format": "jpeg", "width": 640, "height": 480, "bytes": 48211, "jpeg_quality": 87, "frames": 1},
    "evidence": {"declared": None, "c2pa": {"state": None}, "nearest": {"fake": {"distance": None, "label": "sdxl"}}},
    "headers": {"tenant": "kids", "x-region": "nz"},
}


def holds(text: str) -> bool:
    return compile_expression(text).holds(activation(NAMES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scores.linear >= 0.93", True),
        ("scores.linear >= 1", False),
        ("1 > scores.linear", True),
        ("scores.linear == 0.97", True),
        ("image.width / 2 == 320", True),
        ("image.width < 640.5", True),
        ("min(image.width, image.height) < 500", True),
        ("max(scores.linear, scores.knn, scores.svm) > 0.9", True),
        ("min(image.width, 0.5) == 0.5", True),
        ('headers.tenant == "kids"', True),
        ('headers["x-region"] == "nz" && "tenant" in headers', True),
        ('"country" in headers', False),
        ('["kids", "teens"].exists(name, name == headers.tenant)', True),
        ('headers.tenant.matches("^k.+s$")', True),
        ("has(detectors.clip) && detectors.clip.linear < 0.3", True),
        ("has(detectors.dino)", False),
        ("detectors.all(name, detectors[name].linear < 0.5)", True),
        ("scores.exists(head, scores[head] > 0.9)", True),
        ('evidence.declared == "generated"', False),
        ("evidence.declared == null", True),
        ('evidence.nearest.fake.label == "sdxl"', True),
        ("true // always", True),
    ],
)
def test_what_holds(text: str, expected: bool) -> None:
    """The language of the contract: heads, numbers of any kind, headers by name, detectors that may be absent."""
    assert holds(text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "detectors.dino.linear > 0.5",
        "evidence.nearest.fake.distance < 0.1",
        '!(headers.country == "NZ")',
        "image.width / 0 == 1",
        "detectors.dino.linear > 0.5 ? true : true",
    ],
)
def test_an_error_does_not_hold(text: str) -> None:
    """What is absent is no 0 and no empty text: a condition that turns on it is false, whatever it says."""
    assert not holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "true || detectors.dino.linear > 0.5",
        "detectors.dino.linear > 0.5 || true",
        "!(false && headers.country == 'NZ')",
        "!(headers.country == 'NZ' && false)",
        "[1, 2].exists(n, headers.country == 'NZ' || n == 2)",
    ],
)
def test_an_error_that_does_not_matter(text: str) -> None:
    """`true || error` is true in either order, as CEL has it."""
    assert holds(text)


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("scoores.linear > 0.5", 1, "unknown name scoores; did you mean scores?"),
        ("scores.lineer > 0.5", 8, "unknown name lineer; did you mean linear?"),
        ('scores["lineer"] > 0.5', 9, "unknown name lineer; did you mean linear?"),
        ("image.width > 1 && image.hight > 1", 26, "unknown name hight; did you mean height?"),
        ('evidence.c2pa.stat == "valid"', 15, "unknown name stat; did you mean state?"),
        ("true || tenant == 'a'", 9, "unknown name tenant; there are scores, detectors, image, evidence, headers"),
        ("minimum(1, 2) == 1", 1, "unknown function minimum; did you mean min?"),
        ("min(1) == 1", 1, "min takes two or three numbers"),
        ('scores.linear > "high"', 15, "> does not work on double, string"),
        ("headers.tenant > 5", 16, "> does not work on string, int"),
        ('image.width == "wide"', 13, "== does not work on int, string"),
        ("scores.linear", 1, "the value is double, not true or false"),
        ("image", 1, "the value is imageinfo, not true or false"),
        ("scores.linear >=", 17, "Syntax error: mismatched input '<EOF>'"),
        ("", 1, "Syntax error: mismatched input '<EOF>'"),
        ("has(scores)", 5, "has() argument must be a field selection"),
        ("size(headers) > 3", 6, 'headers are read by name, as headers.tenant or headers["x-tenant"]'),
        ('"a".matches("(")', 13, "invalid regular expression: missing ): ("),
        ("headers.a.matches(headers.b)", 26, "a pattern is a text in quotes"),
        ("[1].exists(scores, scores > 0)", 11, "scores is the name of a fact; bind another one"),
        ("google.protobuf.Int64Value{value: 1} == 1", 1, "a rule makes no messages"),
    ],
)
def test_what_is_wrong_is_told_with_its_column(text: str, column: int, problem: str) -> None:
    """Unknown names with the nearest known one, wrong types, broken syntax: one line, and where."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert str(caught.value) == f"column {column}: {problem}"


def test_a_place_in_several_lines() -> None:
    """A condition of several lines has a line and a column."""
    with pytest.raises(ExpressionError, match=r"^line 2, column 4: unknown name foo"):
        compile_expression("scores.linear > 0.5 &&\n   foo.bar > 1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2].exists(x, [1, 2].exists(y, x == y))", "a macro inside a macro is not allowed"),
        ('["a"].map(x, x + x).map(x, x + x).size() > 1', "a macro inside a macro is not allowed"),
        (f"{list(range(200))}.exists(x, x == image.width)", "shorten its lists"),
        ("(" * 40 + "true" + ")" * 40, "nested too deeply"),
        (" " * MAX_CHARACTERS + "true", "characters, at most"),
    ],
)
def test_what_could_cost_too_much_is_refused(text: str, problem: str) -> None:
    """Evaluation ends, and soon: that is found out before the first image."""
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("scores.linear > 0.5 || scores.linear < 0.1", ["scores.linear"]),
        ("has(detectors.clip) && detectors.clip.linear > 0.5", ["detectors.clip.linear"]),
        ('"a" in headers && headers["x-b"] == "c"', ["headers.a", "headers.x-b"]),
        ("[1].exists(n, n == image.width) && scores[headers.head] > 0.5", ["image.width", "scores", "headers.head"]),
        ("true", []),
    ],
)
def test_what_a_condition_reads(text: str, reads: list[str]) -> None:
    """Paths of facts in the order of the text, each once."""
    assert [".".join(path) for path in compile_expression(text).reads] == reads


def test_a_condition_may_be_kept_to_some_facts() -> None:
    """Where a fact is not there yet, as for the detectors' own condition, its name is unknown."""
    facts = tuple(name for name in FACTS if name in ("scores", "image", "evidence"))
    assert compile_expression("scores.linear > 0.3 && scores.linear < 0.7", facts)
    with pytest.raises(ExpressionError, match="unknown name detectors"):
        compile_expression("has(detectors.clip)", facts)
