"""Good images beside killers of decoders, in one run (`make beside`): what do the killers cost the good ones?

    python -m tests.faults.beside --good 1000 --rounds 3

Each round sends the good images alone and, on the same worker, others like them among killers; who goes first changes
with the round. A rate is good images by the time from the first record in to the last good verdict, both as Kafka
stamped them. Prints the rates, their ratio and the peak of the memory of worker and decoding processes; exit code 1
where a good image got no verdict, a killer none of its own ends, the median ratio is below 0.8, or memory above what
the settings promise.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from tests.integration.harness import Outside, running_worker, samples, unlike, wait_until
from tests.odd_images import many_scans_jpeg, planted, png_bomb
from worker import settings as settings_module
from worker.bench.load import BenchWorker, own_topics
from worker.bench.memory import bound_bytes
from worker.local import stack as local_stack
from worker.local.server import free_port

PLANTED = Path(__file__).parents[1] / "examine" / "planted"
LEAST_RATIO = 0.8
PATIENCE_S = 600.0
TIMEOUT_MS = "1000"  # each hang is tried three times, and nobody needs to wait longer for it here
_SIDE = 10_000  # with two of them, an image of the 100 megapixels that the limits let through
ORDERS = ("SIGNAL SIGSEGV", "SIGNAL SIGKILL", "SLEEP 600", "SPIN 600", "LOOP", "TAKE 4000000000")


def killers() -> dict[str, bytes]:
    """What ends, holds or fills a decoding process, and pictures as dear as the limits let through."""
    found = {order: planted(order) for order in ORDERS}
    for fmt, options in (("WEBP", {"lossless": True, "method": 0}), ("GIF", {})):
        out = io.BytesIO()
        Image.new("RGB" if fmt == "WEBP" else "P", (_SIDE, _SIDE)).save(out, fmt, **options)
        found[f"large {fmt}"] = out.getvalue()
    found["large PNG"] = png_bomb(_SIDE, _SIDE)
    found["many scans"] = many_scans_jpeg(60)
    return found


@dataclass(frozen=True)
class Phase:
    """Good images a second, and the memory's peak in bytes."""

    rate: float
    peak_bytes: int


class Beside:
    """A worker on a stack of its own, and what is sent to it."""

    def __init__(self, outside: Outside, worker: BenchWorker, dear: Mapping[str, bytes], good: int) -> None:
        self._outside = outside
        self._worker = worker
        self._killers = dear
        self._good = good
        self._sent = 0
        self._pictures = [data for name, data in samples().items() if name.endswith(".jpg")]

    def phase(self, *, attacked: bool) -> Phase:
        """Send, wait for every end, measure. Raises AssertionError where one does not come."""
        names = [f"image/{self._sent + number}" for number in range(self._good)]
        bad: list[str] = []
        every = max(1, self._good // (2 * len(self._killers)))  # each killer twice
        with self._peak() as peak:
            for number, name in enumerate(names):
                self._outside.send(name, unlike(self._pictures[number % len(self._pictures)], self._sent + number))
                if attacked and number % every == 0:
                    kind = list(self._killers)[number // every % len(self._killers)]
                    bad.append(f"killer/{kind}/{self._sent + number}")
                    self._outside.send(bad[-1], self._killers[kind])
            self._outside.flush()
            self._sent += self._good
            wait_until(lambda: self._ended(names), "verdicts on all good images", PATIENCE_S)
            rate = self._rate(names)
            wait_until(lambda: self._ended(bad), "an end of each killer", PATIENCE_S)
        rejected = self._outside.rejections()
        for name in bad:
            assert name in rejected or not name.startswith(tuple(f"killer/{order}" for order in ORDERS)), name
        return Phase(rate, peak[0])

    def _ended(self, names: list[str]) -> bool:
        ends = {key for key, _ in self._ends()}
        return ends.issuperset(names)

    def _ends(self) -> Iterator[tuple[str, int]]:
        for topic in (self._outside.verdicts_topic, self._outside.rejected_topic):
            for record in self._outside.records(topic):
                yield record.key.decode(), record.timestamp  # type: ignore[attr-defined]

    def _rate(self, names: list[str]) -> float:
        wanted = set(names)
        verdicts = {
            record.key.decode(): record.timestamp  # type: ignore[attr-defined]
            for record in self._outside.records(self._outside.verdicts_topic)
        }
        missing = sorted(wanted - verdicts.keys())
        assert not missing, f"good images without a verdict: {missing[:5]}"
        sent = [
            record.timestamp  # type: ignore[attr-defined]
            for record in self._outside.records(self._outside.incoming)
            if record.key.decode() in wanted  # type: ignore[attr-defined]
        ]
        took_ms: int = max(verdicts[name] for name in names) - min(sent)
        return 1000 * len(names) / took_ms

    @contextlib.contextmanager
    def _peak(self) -> Iterator[list[int]]:
        """The highest memory so far, as the only element."""
        highest, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                highest[0] = max(highest[0], self._worker.memory_bytes())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield highest
        finally:
            stop.set()
            thread.join()


def measure(directory: Path, good: int, rounds: int, models: Path | None) -> list[str]:
    """Print what came out. Returns what is wrong with it."""
    env = {**os.environ, **local_stack.up(directory / "stack", models=models).env}
    settings = settings_module.load(environ={name: value for name, value in env.items() if name.startswith("ASSAY_")})
    with own_topics(settings) as names:
        full = {**env, **names, "PYTHONPATH": str(PLANTED), "ASSAY_HTTP__PORT": str(free_port())}
        full |= {"ASSAY_LOG__LEVEL": "warning", "ASSAY_DECODE__TIMEOUT_MS": TIMEOUT_MS}
        outside = Outside(full)
        with running_worker(full, directory / "worker.log") as process:
            worker = BenchWorker(process.process.pid, settings)
            run = Beside(outside, worker, killers(), good)
            run.phase(attacked=False)  # what is set up once is in what follows
            idle = worker.memory_bytes()
            alone: list[Phase] = []
            beside: list[Phase] = []
            for number in range(rounds):
                for attacked in (False, True) if number % 2 == 0 else (True, False):
                    (beside if attacked else alone).append(run.phase(attacked=attacked))
                ratio = beside[-1].rate / alone[-1].rate
                print(f"round {number + 1}: {alone[-1].rate:6.1f}/s alone, {beside[-1].rate:6.1f}/s beside killers "
                      f"({100 * ratio:.0f} %)", flush=True)  # fmt: skip
            assert process.process.poll() is None
        outside.close()
    ratio = statistics.median(with_them.rate / without.rate for with_them, without in zip(beside, alone, strict=True))
    bound = bound_bytes(settings)
    peak = max(phase.peak_bytes for phase in beside) - idle
    calm = max(phase.peak_bytes for phase in alone) - idle
    print(f"median {100 * ratio:.0f} %; memory above idle ({idle / 1e6:.0f} MB): {calm / 1e6:.0f} MB alone, "
          f"{peak / 1e6:.0f} MB beside killers, of {bound / 1e6:.0f} MB promised")  # fmt: skip
    found = [] if ratio >= LEAST_RATIO else [f"the rate falls to {100 * ratio:.0f} %"]
    return found + ([] if peak <= bound else [f"{peak / 1e6:.0f} MB above idle"])


def main(
    good: Annotated[int, typer.Option(help="Good images of a phase.")] = 1000,
    rounds: Annotated[int, typer.Option()] = 3,
    models: Annotated[Path | None, typer.Option(help="A model repository; the demo's when left out.")] = None,
) -> None:
    """Good images beside killers of decoders: what do the killers cost the good ones?"""
    with tempfile.TemporaryDirectory(prefix="assay-beside-") as name:
        directory = Path(name)
        try:
            found = measure(directory, good, rounds, models)
        finally:
            local_stack.down(directory / "stack", purge=True)
    print("\n".join(found) or "the good images keep their rate, and memory its bound")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
