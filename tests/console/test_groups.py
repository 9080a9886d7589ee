"""Near duplicates: found ahead, shown together, decided at once, each with an event of its own."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.console.harness import Console, Outside, Visitor, picture, smaller
from tests.integration.harness import wait_until
from worker.bench.reviews import bench_verdict
from worker.console.board import Board
from worker.console.phash import distance, phash
from worker.console.queues import Queues
from worker.settings import load


def _hash(data: bytes) -> str:
    return phash(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_what_looks_alike_has_nearly_the_same_hash() -> None:
    """Recompressed and scaled: a few bits of 64; other pictures: many. Flat ones do not fail."""
    hashes = [_hash(picture(n)) for n in range(12)]
    for n, own in enumerate(hashes):
        for variant in (smaller(picture(n), 1.0, 40), smaller(picture(n), 0.5, 80), smaller(picture(n), 1.7, 60)):
            assert distance(own, _hash(variant)) <= 6
    assert min(distance(one, other) for n, one in enumerate(hashes) for other in hashes[:n]) > 10
    assert len(phash(np.zeros((5, 900, 3), np.uint8))) == 16


@pytest.mark.integration
def test_a_group_is_decided_at_once(outside: Outside, open_console: Callable[..., Console]) -> None:
    """Copies of a picture in other sizes and qualities are one group; they are held together, decided together or not,
    undone together; whoever else works does not get them, and those of others are left to them.
    """
    console = open_console(near_duplicates="true", undo_s="3")
    same = picture(1, (640, 480))
    alike = {"a": same, "b": smaller(same, 1.0, 40), "c": smaller(same, 0.5), "d": smaller(same, 0.8, 60)}
    verdicts = outside.judged(alike | {"other": picture(2), "third": picture(3)})
    names = {str(one.verdict_id): name for name, one in verdicts.items()}

    def grouped() -> bool:
        keys = outside.redis.keys(f"{outside.prefix}{{console}}:group:*")
        return len(keys) == 1 and outside.redis.scard(keys[0]) == 4

    wait_until(grouped, "the group")
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    first, following = anna.claim()
    theirs = ben.claim()
    while first["image_id"] not in alike:
        anna.post("give-back", {"task": first["id"], "token": first["token"], "how": "skip"})
        first, following = anna.claim()
    first = anna.claim()[0]  # what the others have taken meanwhile is not counted any more
    free = alike.keys() - {first["image_id"]} - {one["image_id"] for one in theirs}
    assert first["siblings"] == len(free) and len(free) >= 1
    held = {"task": first["id"], "token": first["token"]}
    assert ben.post("group", held).json()["tasks"] == []
    group = anna.post("group", held).json()["tasks"]
    assert {one["image_id"] for one in group} == free
    assert anna.client.get(f"{group[0]['url']}/view.jpg").status_code == 200
    also = [{"task": one["id"], "token": one["token"]} for one in group]
    body = {**held, "decision": "fake", "seconds": 1.0, "also": [*also, {"task": theirs[0]["id"], "token": "forged"}]}
    said = anna.post("decide", body).json()
    assert len(said["also"]) == len(free) and said["left"] == [theirs[0]["id"]]
    back = anna.post("undo", {"review_id": said["review_id"], "also": said["also"]}).json()
    assert {one["image_id"] for one in back["also"]} == free and back["task"]["id"] == first["id"]
    again = [{"task": one["id"], "token": one["token"]} for one in back["also"]]
    held = {"task": back["task"]["id"], "token": back["task"]["token"]}
    said = anna.post("decide", {**held, "decision": "real", "seconds": 1.0, "also": again}).json()
    for one in (said["review_id"], *said["also"]):
        wait_until(lambda one=one: anna.is_said(one), "it is on Kafka")  # type: ignore[misc]
    events = outside.reviews()
    assert {one["image_id"] for one in events} == {first["image_id"], *free}
    assert {one["decision"] for one in events} == {"real"} and {one["together"] for one in events} == {len(events)}
    assert len({one["group"] for one in events}) == 1 and names[events[0]["group"]] in alike
    assert len({one["review_id"] for one in events}) == len(events)
    assert ben.decide(theirs[0], "fake").status_code == 200
    assert following["image_id"] not in {one["image_id"] for one in theirs}


@pytest.mark.integration
def test_groups_are_bounded_and_do_not_chain(outside: Outside) -> None:
    """A group has 50 members at most, a look at it takes the same commands among thousands of others, and what is near
    to a member alone is not in it.
    """
    own = {name: value for name, value in outside.env.items() if name.startswith("ASSAY_")}
    board = Board(load(None, own), Queues.load(None, 0.0))

    def add(number: int) -> str:
        verdict = bench_verdict(number)
        place = board.queues.place(verdict, number)
        assert place is not None and board.add(verdict, verdict.to_json(), place, number)
        assert board.next_unhashed(1000) == str(verdict.verdict_id)
        return str(verdict.verdict_id)

    base = 0x0F0F_3333_5555_00FF
    near, far = base ^ 0b111111, base ^ 0b1111111111
    first = add(0)
    assert board.join(first, f"{base:016x}") == "" and board.join(add(1), f"{near:016x}") == first
    assert board.join(add(2), f"{far:016x}") == ""  # 10 bits from the leader, 4 from its member
    leaders = [board.join(add(3 + n), f"{base:016x}") for n in range(60)]
    assert leaders[:48] == [first] * 48 and first not in leaders[48:]
    assert board.siblings("anna", first) == 49
    rng = np.random.default_rng(3)
    for n in range(400):
        board.join(add(100 + n), rng.bytes(8).hex())
    assert board.join(add(1000), "") == "" and board.next_unhashed(1000) == ""
    assert max(outside.redis.llen(key) for key in outside.redis.keys(f"{outside.prefix}{{console}}:near:*")) <= 32
    board.scripts.close()
