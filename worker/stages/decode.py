"""Encoded image -> pixels, by whoever examines images apart from the worker.

A bad image leaves its batch with a reason, a slow one leaves it and comes later; the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worker.examine.findings import Examined, Examiner, Findings
from worker.inflight import UnderWay
from worker.item import Decoded, DecodedBatch, Encoded, Ended
from worker.queues import Outlet, StageQueue
from worker.stages.stage import Stage, Tools


@dataclass(frozen=True, slots=True)
class Handed:
    """An image that is being examined, and since when (seconds of the monotonic clock)."""

    encoded: Encoded
    at: float


class Decode(Stage):
    """Hands batches to the examiner and on what comes back. Fetched bytes are released here. One thread."""

    def __init__(
        self,
        examiner: Examiner[Handed],
        tools: Tools,
        under_way: UnderWay,
        *,
        inbox: StageQueue[list[Encoded]],
        decoded: StageQueue[DecodedBatch],
        ended: Outlet[list[Ended]],
    ) -> None:
        self._examiner = examiner
        self._tools = tools
        self._under_way = under_way
        self._inbox = inbox
        self._decoded = decoded
        self._ended = ended
        inbox.listen(examiner.wake)
        examiner.tell_slow(self._set_aside)

    def step(self, wait_s: float) -> None:
        """Hand over what waits, as far as there is place; hand on what is done."""
        while self._examiner.may_submit and (batch := self._inbox.get(0)):
            now = self._tools.clock.monotonic()
            self._examiner.submit([(Handed(encoded, now), encoded.data) for encoded in batch])
        for examined in self._examiner.wait(wait_s):
            self._hand_on(examined)

    def _set_aside(self, handed: Handed) -> None:
        self._under_way.single_flight.set_aside(handed.encoded.image, self._under_way.admission)

    def _hand_on(self, examined: Examined[Handed]) -> None:
        now = self._tools.clock.monotonic()
        handed = [one for one, _ in (*examined.good, *examined.bad)]
        traces = [one.encoded.image.item.trace for one in handed]
        with self._tools.tracing.batch("decode", traces, now - min(one.at for one in handed)):
            for one in handed:
                one.encoded.image.item.release_fetched(self._under_way.admission)
        if examined.bad:
            bad = [Ended.of(one.encoded.image, rejected) for one, rejected in examined.bad]
            self._ended.put(bad, self._tools.stop)
        if not examined.good:
            return
        if examined.good[0][0].encoded.known is not None:  # of its batch nothing but the evidence is asked
            self._ended.put([_known(one, found, now) for one, found in examined.good], self._tools.stop)
            if examined.lease is not None:
                examined.lease.release()
            return
        good = [_decoded(one, found, now) for one, found in examined.good]
        self._decoded.put(DecodedBatch(good, examined.pixels, examined.lease), self._tools.stop)


def _decoded(handed: Handed, found: Findings, now: float) -> Decoded:
    took_ms = (now - handed.at) * 1000
    return Decoded(handed.encoded.image, found.info, took_ms, found.evidence, found.reader)


def _known(handed: Handed, found: Findings, now: float) -> Ended:
    """The scores that the cache has, and what this reader reads; neighbours are the model's and stay."""
    known = handed.encoded.known
    assert known is not None, "a batch of known images has no other"
    evidence = found.evidence.model_copy(update={"nearest": known.evidence.nearest})
    judgement = replace(known, decode_ms=(now - handed.at) * 1000, evidence=evidence, reader=found.reader)
    return Ended.of(handed.encoded.image, judgement)
