"""What a person waits for costs the same however many images wait: counted in Redis' commands, not in time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.console.harness import Outside
from worker.bench.reviews import bench_review, bench_verdict
from worker.console.board import Board
from worker.console.queues import Queues
from worker.review import review_id
from worker.settings import load

pytestmark = pytest.mark.integration


def _fill(board: Board, first: int, last: int) -> None:
    for number in range(first, last):
        verdict = bench_verdict(number)
        place = board.queues.place(verdict, number)
        assert place is not None and board.add(verdict, verdict.to_json(), place, number)


def _calls(board: Board) -> int:
    """Commands that Redis ran so far, those inside of scripts too."""
    found: dict[str, Any] = board.scripts.info("commandstats")
    return sum(int(one["calls"]) for name, one in found.items() if name != "cmdstat_info")


def _one_image(board: Board, who: str) -> dict[str, int]:
    """Commands for what a person and the pages do with one image, by act."""
    counts = {}
    before = _calls(board)
    (task,) = board.claim(who, board.queues.names, many=1, golden=False)
    counts["claim"], before = _calls(board) - before, _calls(board)
    assert board.renew(who, [(task.id, task.token)]) == [task.id]
    counts["renew"], before = _calls(board) - before, _calls(board)
    review = bench_review(task.verdict, review_id(task.id, task.token), who)
    assert board.decide(review, task.id, task.token, 0) == "ok"
    counts["decide"], before = _calls(board) - before, _calls(board)
    (due,) = board.take_due(60_000)
    assert board.apply(review, due.event) == "done"
    counts["out"], before = _calls(board) - before, _calls(board)
    board.states()
    counts["queues"], before = _calls(board) - before, _calls(board)
    board.recent(0, 100)
    counts["history"] = _calls(board) - before
    return counts


def test_many_images_cost_as_few_do(outside: Outside) -> None:
    """A claim, a decision and the pages take the same commands with 3,000 images waiting as with 100, and each image
    the same memory.
    """
    own = {name: value for name, value in outside.env.items() if name.startswith("ASSAY_")}
    board = Board(load(None, own), Queues.load(None, 0.0))
    board.caught_up(board.scripts.run_id())
    _fill(board, 0, 5)
    _one_image(board, "anna")  # scripts are loaded with their first call
    _fill(board, 5, 105)
    few, memory = _one_image(board, "anna"), int(board.scripts.info("memory")["used_memory"])
    _fill(board, 105, 3105)
    many = _one_image(board, "anna")
    assert many == few
    per_image = (int(board.scripts.info("memory")["used_memory"]) - memory) / 3000
    assert per_image < 4 * len(bench_verdict(1).to_json())
    board.scripts.close()
