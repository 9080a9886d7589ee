"""Bugs that somebody could have written, planted into the core one at a time: what does not find them proves nothing.

Each is a patch of a class of the core that keeps its shape and breaks one promise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

from tests.simulation.plan import Theme, lends_what_waits, parks_beside_another, reads_again, reloads
from tests.simulation.servers import StoreTwin, is_overtaken
from worker.admission import Admission
from worker.clients.triton import InferenceFailed
from worker.errors import Rejected, RejectReason, Unavailable
from worker.inflight import PublishOrder, SingleFlight
from worker.item import Decoded, DecodedBatch, Ended, Item
from worker.model import HashCache
from worker.offsets import OffsetTracker
from worker.queues import StageQueue
from worker.retry import CircuitBreaker
from worker.stages import infer
from worker.stages.decode import Decode
from worker.stages.fetch import Fetch
from worker.stages.infer import Infer
from worker.stages.intake import Intake
from worker.stages.poll import Poll
from worker.stages.publish import Publish, _Draft
from worker.storages import Storages

Function = TypeVar("Function", bound=Callable[..., Any])
PLANTED: dict[str, Callable[[], Any]] = {}  # by name: what plants it, as a context
SEEN_IN: dict[str, Theme] = {  # by name: the histories that show it; other ones seldom do
    "looks_for_a_later_verdict_before_it_writes": parks_beside_another,
    "names_the_version_after_the_look_up": reloads,
    "overwrites_what_the_next_owner_wrote": lends_what_waits,
    "takes_a_record_twice": reads_again,
}


def plant(target: Any, attribute: str) -> Callable[[Function], Function]:
    """The function below stands in for `target.attribute`; its name says what is wrong."""

    def add(function: Function) -> Function:
        PLANTED[function.__name__] = lambda: mock.patch.object(target, attribute, function)
        return function

    return add


def plant_around(target: Any, attribute: str) -> Callable[[Function], Function]:
    """The same for a function whose first argument is the real one."""
    real = getattr(target, attribute)

    def add(function: Function) -> Function:
        stand_in = lambda *args, **options: function(real, *args, **options)  # noqa: E731
        PLANTED[function.__name__] = lambda: mock.patch.object(target, attribute, stand_in)
        return function

    return add


# -- offsets


@plant(OffsetTracker, "committable")
def commits_what_was_only_delivered(self: Any) -> dict[int, int]:
    return {p: one.last_delivered + 1 for p, one in self._partitions.items() if one.last_delivered >= 0}


@plant(OffsetTracker, "finish")
def commits_over_a_gap(self: Any, partition: int, epoch: int, offset: int) -> bool:
    state = self._partitions.get(partition)
    if state is None or state.epoch != epoch:
        return False
    state.finished.add(offset)
    if offset in state.delivered:
        state.delivered.remove(offset)
        state.finished.discard(offset)
    state.next_offset = max(state.next_offset or 0, offset + 1)
    return True


@plant(OffsetTracker, "revoke")
def keeps_the_epoch_of_a_revoked_partition(self: Any, partitions: Any) -> int:
    return 0


@plant(OffsetTracker, "is_current")
def fences_by_partition_alone(self: Any, partition: int, epoch: int) -> bool:
    return partition in self._partitions


@plant_around(OffsetTracker, "deliver")
def takes_a_record_twice(real: Any, self: Any, partition: int, offset: int) -> int | None:
    epoch: int | None = real(self, partition, offset)
    state = self._partitions.get(partition)
    return state.epoch if epoch is None and state is not None else epoch


# -- who else is under way


@plant(SingleFlight, "land")
def loses_the_followers(self: Any, ended: Ended) -> list[Ended]:
    flight = self._flights.get(ended.sha256) if ended.sha256 else None
    if flight is not None and flight[0] is ended.item:
        del self._flights[ended.sha256 or ""]
    return []


@plant_around(SingleFlight, "land")
def lands_twice(real: Any, self: Any, ended: Ended) -> Any:
    flight = self._flights.get(ended.sha256) if ended.sha256 else None
    followers = real(self, ended)
    if followers and flight is not None:
        self._flights[ended.sha256 or ""] = flight
    return followers


@plant_around(SingleFlight, "land")
def gives_followers_the_leaders_id(real: Any, self: Any, ended: Ended) -> Any:
    return [replace(follower, image_id=ended.image_id) for follower in real(self, ended)]


@plant(PublishOrder, "is_first")
def forgets_whose_turn_it_is(self: Any, ended: Ended) -> bool:
    return True


@plant(PublishOrder, "leave")
def never_leaves_the_line(self: Any, ended: Ended) -> Any:
    line = self._lines.get(ended.image_id) if ended.image_id is not None else None
    return line[1] if line is not None and len(line) > 1 and line[0] is ended.item else None


# -- admission and queues


@plant(Admission, "release_fetched")
def never_releases_fetched_bytes(self: Any, size_bytes: int) -> None:
    return


@plant_around(Admission, "release")
def releases_a_byte_too_few(real: Any, self: Any, size_bytes: int, *, aside: bool) -> None:
    real(self, max(0, size_bytes - 1), aside=aside)


@plant(Admission, "set_aside")
def counts_what_is_aside_twice(self: Any) -> bool:
    self.aside += 1
    return True


@plant_around(StageQueue, "put")
def drops_what_finds_a_full_queue(real: Any, self: Any, piece: Any, stop: Any) -> None:
    if not self._is_full():
        real(self, piece, stop)


@plant_around(StageQueue, "get_all")
def takes_all_and_hands_on_one(real: Any, self: Any, wait_s: float) -> Any:
    return real(self, wait_s)[:1]


# -- breaker


@plant(CircuitBreaker, "succeeded")
def never_closes_the_breaker(self: Any) -> None:
    self._failures = 0


@plant_around(CircuitBreaker, "failed")
def waits_for_ever_after_a_failure(real: Any, self: Any, error: Unavailable) -> None:
    real(self, error)
    self._not_before = float("inf")


# -- poll


@plant_around(Poll, "_pause_or_resume")
def never_resumes(real: Any, self: Any, consumer: Any) -> None:
    if not self._paused:
        real(self, consumer)


@plant(Poll, "_records_to_ask_for")
def asks_for_more_than_it_may_admit(self: Any) -> int:
    return 64


@plant(Poll, "_commit")
def believes_a_refused_commit(self: Any, consumer: Any, timeout_ms: int = 1000) -> None:
    offsets = self._under_way.tracker.committable()
    if offsets:
        self._under_way.tracker.committed(offsets)
        consumer.commit(offsets, timeout_ms=timeout_ms)


@plant(Poll, "commit_last")
def leaves_without_the_last_commit(self: Any) -> None:
    return


@plant(Poll, "_drain_on")
def never_ends_the_drain(self: Any, consumer: Any, wait_s: float) -> None:
    self._tools.stop.wait(wait_s)


@plant_around(Poll, "_drain_on")
def drains_without_a_deadline(real: Any, self: Any, consumer: Any, wait_s: float) -> None:
    real(self, consumer, wait_s)
    self._drain_until = float("inf")


# -- intake, fetch, decode


@plant(Intake, "_time_left_s")
def keeps_a_batch_until_it_is_full(self: Any) -> float:
    return 1.0


@plant(Fetch, "_given_up")
def rejects_for_a_storage_that_is_away(self: Any, turn: Any) -> Rejected:
    return Rejected(RejectReason.FETCH_FAILED, turn.error, stage="fetch")


@plant(Fetch, "step")
def lets_go_before_it_tries(self: Any, wait_s: float) -> None:
    self._accept(0.0 if len(self._storages) else wait_s)
    with mock.patch.object(CircuitBreaker, "is_due", new=False):  # no moment for a fetcher either
        overdue = self._storages.overdue()
    for late in overdue:
        self._end(late.referenced, self._given_up(late))
    turn = self._storages.take()
    if turn is not None:
        self._fetch(turn)
    elif len(self._storages):
        self._accept(min(wait_s, 0.05))


PLANTED["overwrites_what_the_next_owner_wrote"] = lambda: mock.patch(
    "tests.simulation.servers.was_replaced", return_value=False
)


PLANTED["lets_a_parked_record_overwrite_a_later_one"] = lambda: mock.patch.object(_Draft, "was_parked", new=False)


@plant_around(StoreTwin, "save")
def looks_for_a_later_verdict_before_it_writes(real: Any, self: Any, ours: Any, images: Any, late: Any = ()) -> None:
    stored = self._redis.verdicts
    late = [one._replace(recorded_at="9") for one in late if not is_overtaken(one, stored.get(one.verdict.image_id))]
    real(self, [*ours, *late], images)


@plant(Storages, "failed")
def loses_a_reference_whose_storage_is_away(self: Any, turn: Any, error: Unavailable) -> None:
    self._storages[turn.address.host].running -= 1
    turn_breaker = self._storages[turn.address.host].breaker
    turn_breaker.failed(error)


@plant(Admission, "release_reference")
def never_releases_a_reference(self: Any) -> None:
    return


@plant_around(Decode, "_hand_on")
def gives_the_scores_of_another_image(real: Any, self: Any, examined: Any) -> None:
    real(self, replace(examined, pixels=examined.pixels[::-1].copy()))


@plant_around(Decode, "_hand_on")
def gives_the_pixels_back_before_they_are_read(real: Any, self: Any, examined: Any) -> None:
    real(self, examined)
    if examined.lease is not None:
        examined.lease.release()


@plant(Decode, "_hand_on")
def forgets_the_bad_images_of_a_batch(self: Any, examined: Any) -> None:
    now = self._tools.clock.monotonic()
    for one, _ in (*examined.good, *examined.bad):
        one.encoded.image.item.release_fetched(self._under_way.admission)
    good = [Decoded(one.encoded.image, found.info, (now - one.at) * 1000) for one, found in examined.good]
    if good:
        self._decoded.put(DecodedBatch(good, examined.pixels, examined.lease), self._tools.stop)


# -- infer


@plant(infer, "_check_canary")
def blames_the_image_for_an_ill_model(model: Any) -> None:
    return


@plant(infer, "_infer_by_one_version")
def names_the_version_after_a_reload(model: Any, pixels: Any) -> Any:
    inference = model.infer(pixels)
    return model.refresh(), inference


@plant_around(Infer, "_judge")
def gives_up_at_the_first_failure(real: Any, self: Any, images: Any, pixels: Any) -> Any:
    self._max_attempts = 1
    return real(self, images, pixels)


@plant_around(Infer, "_judge")
def does_not_count_its_attempts(real: Any, self: Any, images: Any, pixels: Any) -> Any:
    self._max_attempts = 1_000_000_000
    return real(self, images, pixels)


@plant_around(infer, "_check_canary")
def splits_no_batch_that_fails(real: Any, model: Any) -> None:
    real(model)
    raise InferenceFailed("the whole batch")


@plant_around(HashCache, "look_up")
def names_the_version_after_the_look_up(real: Any, self: Any, sha256s: Any, stop: Any) -> Any:
    _, entries = real(self, sha256s, stop)
    return self._model.version, entries


# -- publish


@plant(Publish, "_publish")
def writes_kafka_before_redis(self: Any, batch: Any) -> Any:
    drafts = [self._draft(ended, self._tools.clock.monotonic()) for ended in batch]
    self._produce(drafts)
    self._save(drafts)
    for draft in drafts:
        self._end(draft, self._tools.clock.monotonic())
    return self._released(batch)


@plant(Publish, "_publish")
def ends_an_item_before_it_is_produced(self: Any, batch: Any) -> Any:
    drafts = [self._draft(ended, self._tools.clock.monotonic()) for ended in batch]
    self._save(drafts)
    for draft in drafts:
        self._end(draft, self._tools.clock.monotonic())
    self._produce(drafts)
    return self._released(batch)


@plant(Publish, "_save")
def asks_once_whether_the_partition_is_ours(self: Any, drafts: Any) -> None:
    ours = [one.write for one in drafts if one.write]
    self._store.call(lambda store: store.save(ours, []), self._tools.stop)


@plant(Publish, "_produce")
def takes_a_lost_acknowledgement_for_one(self: Any, drafts: Any) -> None:
    ours = [draft for draft in drafts if self._is_current(draft.ended.item)]
    self._producer.call(lambda producer: producer.produce([self._outgoing(one) for one in ours]), self._tools.stop)


@plant(Publish, "_produce")
def swallows_that_kafka_is_away(self: Any, drafts: Any) -> None:
    ours = [draft for draft in drafts if self._is_current(draft.ended.item)]
    with contextlib.suppress(Unavailable):
        self._producer.client.produce([self._outgoing(one) for one in ours])


@plant(Publish, "_in_turn")
def a_leader_waits_for_its_own_follower(self: Any, batch: Any) -> Any:
    ready = []
    for ended in batch:
        if self._under_way.order.is_first(ended):
            ready.append(ended)
        else:
            self._held[ended.item] = ended
    return ready


@plant_around(Publish, "_released")
def forgets_who_was_held(real: Any, self: Any, batch: Any) -> Any:
    released = real(self, batch)
    return [ended for ended in released if ended.sha256 is None or ended.item is not batch[-1].item][:1]


@plant_around(Item, "release_fetched")
def releases_fetched_bytes_twice(real: Any, self: Any, admission: Any) -> None:
    size_bytes = self.fetched_bytes
    real(self, admission)
    if size_bytes:
        admission.release_fetched(size_bytes)
