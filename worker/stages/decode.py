"""Encoded image -> pixels. One bad image leaves its batch with a reason; the others go on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worker.contract import ImageInfo
from worker.errors import Rejected
from worker.examine.headers import check_limits, peek
from worker.examine.pixels import Decoder
from worker.inflight import UnderWay
from worker.item import Decoded, DecodedBatch, Encoded, Ended
from worker.queues import StageQueue
from worker.settings import LimitSettings
from worker.stages.stage import Stage, Tools


class Decode(Stage):
    """Checks headers and runs the decoder on each batch. Fetched bytes are released here."""

    def __init__(
        self,
        limits: LimitSettings,
        open_decoder: Callable[[], Decoder],
        tools: Tools,
        under_way: UnderWay,
        *,
        inbox: StageQueue[list[Encoded]],
        decoded: StageQueue[DecodedBatch],
        ended: StageQueue[list[Ended]],
    ) -> None:
        self._limits = limits
        self._open_decoder = open_decoder
        self._decoder: Decoder | None = None  # opened by the thread that uses it
        self._tools = tools
        self._admission = under_way.admission
        self._inbox = inbox
        self._decoded = decoded
        self._ended = ended

    def step(self, wait_s: float) -> None:
        """Decode one batch."""
        if self._decoder is None:
            self._decoder = self._open_decoder()
        batch = self._inbox.get(wait_s)
        if batch is None:
            return
        with self._tools.tracing.batch("decode", [encoded.image.item.trace for encoded in batch]):
            self._decode(self._decoder, batch)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()

    def _decode(self, decoder: Decoder, batch: list[Encoded]) -> None:
        started = self._tools.clock.monotonic()
        bad: list[Ended] = []
        sound: list[tuple[Encoded, ImageInfo]] = []
        for encoded in batch:
            try:
                sound.append((encoded, self._check(encoded.data)))
            except Rejected as rejected:
                bad.append(Ended.of(encoded.image, rejected))
        decoded = decoder.decode([encoded.data for encoded, _ in sound], [info for _, info in sound])
        elapsed_ms = (self._tools.clock.monotonic() - started) * 1000
        bad += [Ended.of(sound[row][0].image, rejected) for row, rejected in decoded.failures.items()]
        for encoded in batch:
            encoded.image.item.release_fetched(self._admission)
        if bad:
            self._ended.put(bad, self._tools.stop)
        good = [row for row in range(len(sound)) if row not in decoded.failures]
        if good:
            images = [Decoded(sound[row][0].image, sound[row][1], elapsed_ms) for row in good]
            whole = len(good) == len(sound)
            pixels = decoded.pixels if whole else np.ascontiguousarray(decoded.pixels[good])
            self._decoded.put(DecodedBatch(images, pixels), self._tools.stop)

    def _check(self, data: bytes) -> ImageInfo:
        info = peek(data)
        check_limits(info, self._limits)
        return info
