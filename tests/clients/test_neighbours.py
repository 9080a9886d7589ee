"""Neighbours as a server says them, and as a damaged one does: evidence, never a reason to fail."""

from __future__ import annotations

import numpy as np
import pytest

from worker.clients.neighbours import groups_of, to_nearest
from worker.evidence import Nearest, Neighbour

ROWS = np.array([[3, 7, 1, 0], [4, 9, -1, 5]], np.int32)
DISTANCES = np.array([[0.25, 0.5], [0.125, 2.0]], np.float32)
OUTPUTS = [{"name": name} for name in ("embedding", "scores", "nearest", "distances")]


def test_neighbours_are_distances_and_the_names_of_groups() -> None:
    """A group that nobody named, or that is beyond the list, is null."""
    first, second = to_nearest(ROWS, DISTANCES, 2, ("sdxl", "phones"))
    assert first == Nearest(real=Neighbour(distance=0.25, label="phones"), fake=Neighbour(distance=0.5, label="sdxl"))
    assert second == Nearest(real=Neighbour(distance=0.125), fake=Neighbour(distance=2.0))


@pytest.mark.parametrize(
    ("rows", "distances"),
    [
        (None, DISTANCES),
        (ROWS[:1], DISTANCES),
        (ROWS.astype(np.int64), DISTANCES),
        (ROWS, DISTANCES[:, :1]),
        (ROWS, DISTANCES.astype(np.float64)),
        (ROWS, None),
    ],
)
def test_outputs_of_another_form_say_nothing(rows: object, distances: object) -> None:
    """Nothing is read into them, and no image fails."""
    assert to_nearest(rows, distances, 2, ()) == ()


@pytest.mark.parametrize("distance", [np.nan, np.inf, -0.5, 2.5])
def test_a_distance_that_is_none_is_left_out(distance: float) -> None:
    """As is a row of -1, which is none."""
    ((one),) = to_nearest(ROWS[:1], np.array([[distance, 0.5]], np.float32), 1, ("a", "b"))
    assert one.real == Neighbour()
    assert one.fake.distance == 0.5
    ((none),) = to_nearest(np.array([[-1, -1, 0, 0]], np.int32), DISTANCES[:1], 1, ("a",))
    assert none == Nearest()


def test_a_distance_that_rounding_carried_past_its_end_is_cut() -> None:
    """Float32 may say a little more than 2."""
    (one,) = to_nearest(ROWS[:1], np.array([[2.0001, 0.5]], np.float32), 1, ())
    assert one.real.distance == 2.0


@pytest.mark.parametrize(
    ("text", "names"),
    [('["a", "b"]', ("a", "b")), ("", ()), ("{", ()), ('{"a": 1}', ()), ('["' + "x" * 999 + '"]', ("x" * 256,))],
)
def test_groups_are_read_from_the_configuration(text: str, names: tuple[str, ...]) -> None:
    """Whatever somebody wrote there."""
    assert groups_of({"output": OUTPUTS, "parameters": {"groups": {"string_value": text}}}) == names


def test_a_model_without_these_outputs_tells_none() -> None:
    """An older one, or somebody else's."""
    assert groups_of({"output": OUTPUTS[:2], "parameters": {"groups": {"string_value": '["a"]'}}}) is None
    assert groups_of({}) is None
