"""Equal bytes are worked on once, and records of one id leave in the order in which they came."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.properties import given
from worker.contract import ImageInfo, Record, Scores
from worker.errors import Rejected, RejectReason
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Item

SCORES = Scores(linear=0.9, knn=0.8, svm=0.7)
IMAGE = ImageInfo(format="png", width=10, height=20, bytes=3)


def item(image_id: str | None = "a", sha256: str | None = "0" * 64, offset: int = 0) -> Item:
    made = Item(Record("t", 0, offset, 0, None, b"x", []), epoch=1, touched_at=0.0, queued_ms=0.0)
    made.image_id, made.sha256 = image_id, sha256
    return made


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_whatever_order_items_finish_in_each_id_leaves_in_order(ids: list[str], random: object) -> None:
    """Each item leaves exactly once, and per id in order of arrival, when the held ones are followed up as `leave` says."""
    order = PublishOrder()
    items = [item(image_id, offset=offset) for offset, image_id in enumerate(ids)]
    for one in items:
        order.enter(one)
    finishing = list(items)
    random.shuffle(finishing)  # type: ignore[attr-defined]
    held: set[Item] = set()
    left: list[Item] = []
    for one in finishing:
        if not order.is_first(one):
            held.add(one)
            continue
        going: Item | None = one
        while going is not None:
            left.append(going)
            following = order.leave(going)
            going = following if following in held else None
            held.discard(following)  # type: ignore[arg-type]
    assert not held
    assert sorted(one.record.offset for one in left) == list(range(len(items)))
    for image_id in set(ids):
        offsets = [one.record.offset for one in left if one.image_id == image_id]
        assert offsets == sorted(offsets)


def test_an_item_without_an_id_never_waits() -> None:
    """A record whose id is bad stands in no line."""
    order = PublishOrder()
    assert order.is_first(item(None))
    assert order.leave(item(None)) is None


def test_an_id_that_has_left_starts_anew() -> None:
    """Lines are removed when they are empty: a million ids leave nothing behind."""
    order = PublishOrder()
    for offset in range(3):
        one = item(f"id-{offset}", offset=offset)
        order.enter(one)
        assert order.is_first(one)
        assert order.leave(one) is None
    assert order._lines == {}


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=30))
def test_the_first_of_equal_bytes_leads_and_the_others_get_its_result(hashes: list[str]) -> None:
    """Per hash one item is worked on; all others receive its scores, once, marked as from the cache."""
    flights = SingleFlight()
    items = [item(sha256=sha256, offset=offset) for offset, sha256 in enumerate(hashes)]
    leaders = [one for one in items if flights.join(one)]
    assert [one.sha256 for one in leaders] == list(dict.fromkeys(hashes))
    followers: list[Item] = []
    for leader in leaders:
        leader.scores, leader.model_version, leader.image = SCORES, "0123456789ab", IMAGE
        followers += flights.land(leader)
        assert flights.land(leader) == [], "a flight lands once"
    assert sorted(one.record.offset for one in [*leaders, *followers]) == list(range(len(items)))
    for follower in followers:
        assert (follower.scores, follower.model_version, follower.image) == (SCORES, "0123456789ab", IMAGE)
        assert follower.from_cache
        assert flights.land(follower) == []
    assert not any(leader.from_cache for leader in leaders)


def test_followers_share_a_rejection() -> None:
    """Bytes that cannot be decoded are rejected under each id they came with, and not as a cache hit."""
    flights = SingleFlight()
    leader, follower = item("a"), item("b")
    assert flights.join(leader)
    assert not flights.join(follower)
    leader.rejected = Rejected(RejectReason.CORRUPT, "truncated", stage="decode")
    assert flights.land(leader) == [follower]
    assert follower.rejected is leader.rejected
    assert follower.scores is None
    assert not follower.from_cache


def test_the_next_with_the_same_bytes_leads_anew() -> None:
    """After landing the cache knows the scores; the flight is over."""
    flights = SingleFlight()
    first, second = item("a"), item("b")
    assert flights.join(first)
    flights.land(first)
    assert flights.join(second)


def test_an_item_without_a_hash_has_no_followers() -> None:
    """A reference that could not be fetched ends without ever having joined."""
    assert SingleFlight().land(item(sha256=None)) == []
