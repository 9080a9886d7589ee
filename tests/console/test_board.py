"""The board on a real Redis, without consoles: what it makes of reviews and verdicts in any order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.console.harness import Outside
from worker.bench.reviews import bench_review, bench_verdict
from worker.console.board import Board
from worker.console.queues import Queues
from worker.review import Judgement, review_id
from worker.settings import load

pytestmark = pytest.mark.integration


@pytest.fixture
def board(outside: Outside) -> Iterator[Board]:
    own = {name: value for name, value in outside.env.items() if name.startswith("ASSAY_")}
    found = Board(load(None, own), Queues.load(None, 1.0))
    found.caught_up(found.scripts.run_id())
    yield found
    found.scripts.close()


def _said(board: Board, number: int, who: str, decision: Judgement) -> str:
    """As the outbox applies a review of a Kafka topic to a Redis that knows nothing of it."""
    verdict = bench_verdict(number)
    review = bench_review(verdict, review_id(str(verdict.verdict_id), who), who)
    return board.apply(review.model_copy(update={"decision": decision}), review.to_json())


def _add(board: Board, number: int) -> str:
    verdict = bench_verdict(number)
    place = board.queues.place(verdict, 1000 + number)
    assert place is not None and place.needed == 2
    assert board.add(verdict, verdict.to_json(), place, 1000 + number)
    return str(verdict.verdict_id)


def test_what_a_wiped_redis_still_wants(board: Board) -> None:
    """Verdicts that come back after their reviews: one opinion of two wants the other, two that agree are done, two who
    differ go to a lead, and what a lead decided is done; whoever decided already is not asked.
    """
    reviews = {0: "", 1: "f", 2: "ff", 3: "fr", 4: "frf"}
    names = {"f": "fake", "r": "real"}
    for number, letters in reviews.items():
        for who, letter in zip(("anna", "ben", "lea"), letters, strict=False):
            assert _said(board, number, who, names[letter]) == "done"  # type: ignore[arg-type]
    ids = [_add(board, number) for number in reviews]
    assert [_add(board, number) for number in reviews] == ids  # once more changes nothing
    states = {one.name: (one.open, one.waiting, one.second) for one in board.states()}
    assert states == {"conflicts": (1, 0, 1), "appeals": (0, 0, 0), "review": (2, 1, 1)}
    claimed = lambda who, queue: [one.id for one in board.claim(who, [queue], many=5, golden=False)]  # noqa: E731
    assert claimed("anna", "review") == [ids[0]]
    assert claimed("otto", "review") == [ids[1]]
    assert claimed("lea", "conflicts") == [ids[3]]
    task = board.task(ids[1])
    assert task is not None and task.opinion == 2
