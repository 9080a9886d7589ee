"""`min` and `max` are evaluated by the library's own functions: the same values, whatever is around them, and no memory
that stays.
"""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import strategies as st

from tests.properties import given
from worker.bench.policy import FACTS
from worker.policy import load_policy
from worker.policy.expression import activation, compile_expression

NUMBERS = st.integers(-50, 50) | st.floats(-50, 50).map(lambda value: round(value, 3))


def holds(text: str, **image: float) -> bool:
    return compile_expression(text).holds(activation({"image": image, "headers": {"a": "min(1)"}}))


@given(st.sampled_from(["min", "max"]), st.lists(NUMBERS, min_size=2, max_size=3))
def test_the_values_are_those_of_python(name: str, numbers: list[float]) -> None:
    """Of integers, of doubles and of both; beside one another and inside one another."""
    expected = {"min": min, "max": max}[name](numbers)
    written = ", ".join(map(str, numbers))
    assert holds(f"{name}({written}) == {expected}")
    assert holds(f"{name}({written}, {expected}) == {expected}" if len(numbers) == 2 else "true")
    assert holds(f"min({name}({written}), max(99, 100)) == {expected} && {name}({written}) < 100")


@pytest.mark.parametrize(
    "text",
    [
        "min(image.width, image.height) % 2 == 0",
        "min(image.width, 2.5) / 2.0 == 1.25",
        "max(image.width, 2.5) / 2.0 == 320.0",
        "min (image.width, image.height) == 480",
        'min(image.width, headers.a == ")" ? 1.5 : 2.5) == 2.5 && headers.a == "min(1)"',
        "max(1.5, // a comment ) of a rule\n image.width) == 640.0",
        "max(1.5, r'a\\)'.size() > 0 ? 2 : 1) == 2.0",
        "[1, 2, 3].exists(n, min(n, image.width) == 3)",
    ],
)
def test_what_stands_around_them(text: str) -> None:
    """Integers stay integers, others are doubles; texts and comments may hold parentheses, and macros repeat a call."""
    assert holds(text, width=640, height=480)


def test_deciding_keeps_no_memory() -> None:
    """A function in Python, called from a rule, kept 100 bytes of each call for good."""
    policy = load_policy(None)
    for _ in range(200):
        policy.decide(FACTS)
    tracemalloc.start()
    try:
        for _ in range(2000):
            policy.decide(FACTS)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000
