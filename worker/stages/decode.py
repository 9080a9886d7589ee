"""Bytes -> pixels: the second room. One bad image leaves its batch with a reason; the others go on."""

from __future__ import annotations

import time

import numpy as np

from worker.decoder import Decoder
from worker.errors import Stopping
from worker.flow import Flow, HandOver
from worker.item import Batch, Item
from worker.retry import StopSignal
from worker.settings import DecodeSettings
from worker.telemetry.tracing import Tracing

IDLE_S = 0.2


class Decode:
    """Runs the decoder on each batch. What an item held beyond its record (a fetched image) is let go here."""

    def __init__(
        self,
        settings: DecodeSettings,
        *,
        flow: Flow,
        inbox: HandOver[Batch],
        infer: HandOver[Batch],
        publish: HandOver[list[Item]],
        tracing: Tracing,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._flow = flow
        self._inbox = inbox
        self._infer = infer
        self._publish = publish
        self._tracing = tracing
        self._stop = stop

    def run(self) -> None:
        """Work until `stop` is set."""
        decoder = Decoder(self._settings)
        try:
            while not self._stop.is_set():
                batch = self._inbox.get(IDLE_S)
                if batch is not None:
                    with self._tracing.batch("decode", [item.trace for item in batch.items]):
                        self._decode(decoder, batch.items)
        except Stopping:
            return
        finally:
            decoder.close()

    def _decode(self, decoder: Decoder, items: list[Item]) -> None:
        started = time.monotonic()
        infos = [item.image for item in items if item.image is not None]
        decoded = decoder.decode([item.data for item in items], infos)
        elapsed_ms = (time.monotonic() - started) * 1000
        for item in items:
            item.decode_ms = elapsed_ms
            item.let_go_fetched(self._flow)
        bad = []
        for index, rejected in decoded.failures.items():
            items[index].rejected = rejected
            bad.append(items[index])
        if bad:
            self._publish.put(bad, self._stop)
        good = [index for index in range(len(items)) if index not in decoded.failures]
        if good:
            pixels = decoded.pixels if not bad else np.ascontiguousarray(decoded.pixels[good])
            self._infer.put(Batch([items[index] for index in good], pixels), self._stop)
