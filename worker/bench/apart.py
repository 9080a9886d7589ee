"""Images examined as a worker does it, for the benchmarks: by the pool of processes, into regions of no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.clients.shared_memory import Regions
from worker.contract import ImageInfo
from worker.crop import Pixels
from worker.examine.pool import BATCHES, Pool
from worker.settings import DecodeSettings, LimitSettings
from worker.telemetry.metrics import Metrics

_WAIT_S = 1.0


class Apart:
    """A pool, asked like a function. Batches overlap as they do in a worker."""

    def __init__(self, pool: Pool[int], batch_max_items: int) -> None:
        self._pool = pool
        self._rows = batch_max_items

    @property
    def decoder(self) -> str:
        """What decodes most images: `gpu` or `cpu` is DALI, `pillow` is without it."""
        return self._pool.decoder

    @property
    def processes(self) -> int:
        """How many decode at once."""
        return self._pool.shares.quick

    def examine(self, images: Sequence[bytes]) -> dict[int, tuple[ImageInfo, Pixels]]:
        """Header and crop of each by its index; those that are rejected are missing."""
        found: dict[int, tuple[ImageInfo, Pixels]] = {}
        for number, info, pixels in self._run(images):
            found[number] = (info, pixels.copy())
        return found

    def decode(self, images: Sequence[bytes]) -> int:
        """The same without a result, as fast as it goes: how many there were."""
        return sum(1 for _ in self._run(images))

    def _run(self, images: Sequence[bytes]) -> Iterator[tuple[int, ImageInfo, Pixels]]:
        left = len(images)
        batches = iter(range(0, len(images), self._rows))
        start: int | None = next(batches, None)
        while left:
            while start is not None and self._pool.may_submit:
                self._pool.submit(list(enumerate(images))[start : start + self._rows])
                start = next(batches, None)
            for examined in self._pool.wait(_WAIT_S):
                left -= len(examined.good) + len(examined.bad)
                for row, (number, findings) in enumerate(examined.good):
                    yield number, findings.info, examined.pixels[row]
                if examined.lease is not None:
                    examined.lease.release()


@contextmanager
def examined_apart(settings: DecodeSettings, limits: LimitSettings, batch_max_items: int) -> Iterator[Apart]:
    """A pool that is ready; its processes end with the block. Raises SettingsError without the GPU asked for."""
    pool: Pool[int] = Pool(settings, limits, Regions(BATCHES + 1, batch_max_items, None), Metrics())
    try:
        while pool.trouble:
            pool.wait(_WAIT_S)
        yield Apart(pool, batch_max_items)
    finally:
        pool.close()
