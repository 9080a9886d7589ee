"""The tree of a checked expression: what stands where, as the library's own serialised form has it."""

from __future__ import annotations

import pytest

from worker.policy.names import checking
from worker.policy.syntax import read_checked


def tree(text: str) -> list[tuple[str, int, str, object]]:
    root = read_checked(checking().compile(text).serialize())
    return [(node.kind, node.at, node.name, node.value) for node in root.walk()]


def test_names_fields_and_constants_have_their_places() -> None:
    """Code points from the beginning; a field and an operator stand where their sign does."""
    assert tree('"é" == headers.a || image.width > -2') == [
        ("call", 17, "_||_", None),
        ("call", 4, "_==_", None),
        ("constant", 0, "", "é"),
        ("field", 14, "a", None),
        ("name", 7, "headers", None),
        ("call", 32, "_>_", None),
        ("field", 25, "width", None),
        ("name", 20, "image", None),
        ("constant", 34, "", -2),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("0.5", 0.5),
        ("-9223372036854775808", -(2**63)),
        ('"a"', "a"),
        ("true", True),
        ("null", None),
    ],
)
def test_constants(text: str, value: object) -> None:
    """Each kind of literal, the smallest integer too."""
    ((kind, _, _, found),) = tree(text)
    assert (kind, found, type(found)) == ("constant", value, type(value))


def test_has_and_macros_are_told_apart() -> None:
    """`has` is no field access, and a macro names the variable that it binds."""
    kinds = [(kind, name) for kind, _, name, _ in tree("has(detectors.clip) && [1].exists(n, n == 1)")]
    assert ("has", "clip") in kinds
    assert ("macro", "n") in kinds
    assert ("list", "") in kinds
