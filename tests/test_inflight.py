"""Equal bytes are worked on once, and records of one id leave in the order in which they came."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.properties import given
from tests.twins import VERSION, scores
from worker.admission import Admission
from worker.contract import ImageInfo, Record
from worker.errors import Rejected, RejectReason
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Ended, Identified, Item, Judgement
from worker.settings import FlowSettings

JUDGEMENT = Judgement(
    ImageInfo(format="png", width=10, height=20, bytes=3), scores(0.9), VERSION, decode_ms=1.0, infer_ms=2.0
)
CORRUPT = Rejected(RejectReason.CORRUPT, "truncated", stage="decode")


def item(offset: int = 0) -> Item:
    return Item(Record("t", 0, offset, 0, None, b"x", []), epoch=1, touched_at=0.0, queued_ms=0.0)


def image(image_id: str = "a", sha256: str = "0" * 64, offset: int = 0) -> Identified:
    return Identified(item(offset), image_id, sha256)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_whatever_order_items_finish_in_each_id_leaves_in_order(ids: list[str], chance: random.Random) -> None:
    """Each item leaves exactly once, and per id in order of arrival, when the held ones are followed up as `leave`
    says.
    """
    order = PublishOrder()
    items = [Ended.of(image(image_id, offset=offset), CORRUPT) for offset, image_id in enumerate(ids)]
    for one in items:
        order.enter(one.image_id or "", one.item)
    finishing = list(items)
    chance.shuffle(finishing)
    held: dict[Item, Ended] = {}
    left: list[Ended] = []
    for one in finishing:
        if not order.is_first(one):
            held[one.item] = one
            continue
        going: Ended | None = one
        while going is not None:
            left.append(going)
            following = order.leave(going)
            going = held.pop(following, None) if following is not None else None
    assert not held
    assert len(order) == 0
    assert sorted(one.item.record.offset for one in left) == list(range(len(items)))
    for image_id in set(ids):
        offsets = [one.item.record.offset for one in left if one.image_id == image_id]
        assert offsets == sorted(offsets)


def test_an_item_without_an_id_never_waits() -> None:
    """A record whose id is bad stands in no line."""
    order = PublishOrder()
    nameless = Ended(item(), None, None, CORRUPT)
    assert order.is_first(nameless)
    assert order.leave(nameless) is None


def test_an_id_that_has_left_starts_anew() -> None:
    """Lines are removed when they are empty: a million ids leave nothing behind."""
    order = PublishOrder()
    for offset in range(3):
        one = Ended.of(image(f"id-{offset}", offset=offset), CORRUPT)
        order.enter(f"id-{offset}", one.item)
        assert order.is_first(one)
        assert order.leave(one) is None
    assert len(order) == 0


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=30))
def test_the_first_of_equal_bytes_leads_and_the_others_get_its_outcome(hashes: list[str]) -> None:
    """Per hash one image is worked on; all others receive its scores, once, marked as from the cache and without
    times.
    """
    flights, admission = SingleFlight(), Admission(FlowSettings())
    images = [image(sha256=sha256, offset=offset) for offset, sha256 in enumerate(hashes)]
    leaders = [one for one in images if flights.join(one, admission)]
    assert [one.sha256 for one in leaders] == list(dict.fromkeys(hashes))
    followers: list[Ended] = []
    for leader in leaders:
        ended = Ended.of(leader, JUDGEMENT)
        followers += flights.land(ended)
        assert flights.land(ended) == [], "a flight lands once"
    assert sorted(one.item.record.offset for one in [*leaders, *followers]) == list(range(len(images)))
    for follower in followers:
        assert follower.outcome == JUDGEMENT.shared()
        assert flights.land(follower) == []
    assert len(flights) == 0


def test_a_shared_judgement_is_a_cache_hit() -> None:
    """Scores, version and header are the leader's; nothing was decoded or inferred for this one."""
    shared = JUDGEMENT.shared()
    assert (shared.scores, shared.model_version, shared.info) == (JUDGEMENT.scores, VERSION, JUDGEMENT.info)
    assert (shared.from_cache, shared.decode_ms, shared.infer_ms) == (True, None, None)


def test_followers_share_a_rejection() -> None:
    """Bytes that cannot be decoded are rejected under each id they came with."""
    flights, admission = SingleFlight(), Admission(FlowSettings())
    leader, follower = image("a"), image("b")
    assert flights.join(leader, admission)
    assert not flights.join(follower, admission)
    (shared,) = flights.land(Ended.of(leader, CORRUPT))
    assert (shared.item, shared.image_id, shared.outcome) == (follower.item, "b", CORRUPT)


def test_those_that_wait_for_a_slow_image_keep_nobody_out_either() -> None:
    """Those that follow it already, and those that come; whoever is set aside twice counts once."""
    flights, admission = SingleFlight(), Admission(FlowSettings())
    leader, early, late, other = (
        image(name, sha256="y" if name == "other" else "x") for name in ("a", "b", "c", "other")
    )
    for _ in range(4):
        admission.admit(1)
    assert [flights.join(one, admission) for one in (leader, early, other)] == [True, False, True]
    flights.set_aside(leader, admission)
    assert not flights.join(late, admission)
    flights.set_aside(leader, admission)
    assert [one.item.aside for one in (leader, early, late, other)] == [True, True, True, False]
    assert (admission.items, admission.aside) == (1, 3)


def test_only_who_leads_sets_others_aside() -> None:
    """An image whose flight is over, or that another leads, is slow by itself."""
    flights, admission = SingleFlight(), Admission(FlowSettings())
    leader, follower, over = image("a"), image("b"), image("c", sha256="z")
    for _ in range(3):
        admission.admit(1)
    assert [flights.join(one, admission) for one in (leader, follower)] == [True, False]
    flights.set_aside(over, admission)
    assert [one.item.aside for one in (leader, follower, over)] == [False, False, True]
    flights.set_aside(image("d"), admission)
    assert [one.item.aside for one in (leader, follower)] == [False, False]


def test_the_next_with_the_same_bytes_leads_anew() -> None:
    """After landing the cache knows the scores; the flight is over."""
    flights, admission = SingleFlight(), Admission(FlowSettings())
    first, second = image("a"), image("b")
    assert flights.join(first, admission)
    flights.land(Ended.of(first, JUDGEMENT))
    assert flights.join(second, admission)


def test_an_item_without_a_hash_has_no_followers() -> None:
    """A reference that could not be fetched ends without ever having joined."""
    assert SingleFlight().land(Ended(item(), "a", None, CORRUPT)) == []
