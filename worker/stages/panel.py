"""The detectors beside `code` in a running worker: who they are, and the stages that ask them (stages/consult.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.clients.redis import Store
from worker.clients.triton import Triton, pixel_regions
from worker.detectors import Description, DetectorWatch, to_detector_scores
from worker.errors import SettingsError, Unavailable
from worker.examine.findings import Examiner
from worker.examine.pool import BATCHES, Pool
from worker.item import Ended
from worker.policy.expression import Expression, ExpressionError, compile_expression
from worker.queues import Outlet
from worker.retry import CircuitBreaker, Guarded
from worker.settings import Settings, variable
from worker.stages.consult import Consult, Eyes, Line, Referral, Referred, Score, When
from worker.stages.stage import Driven, Tools
from worker.telemetry.metrics import Metrics

WHEN_READS = ("scores", "image", "evidence")


def compile_when(settings: Settings) -> Expression | None:
    """`ASSAY_DETECTORS__WHEN`, None where all images are asked about. Raises SettingsError."""
    text = settings.detectors.when.strip()
    if not text:
        return None
    try:
        return compile_expression(text, WHEN_READS)
    except ExpressionError as error:
        raise SettingsError([f"{variable('detectors', 'when')}={text}: {error}"]) from None


@dataclass(frozen=True, slots=True)
class Detector:
    """One of them."""

    name: str
    watch: Guarded[DetectorWatch]


class ChildEyes:
    """Child processes that make one view, and the memory in which the server finds it."""

    def __init__(self, settings: Settings, tools: Tools, watch: DetectorWatch, description: Description) -> None:
        triton = settings.detector_triton(watch.name)
        size, items = description.view.size, min(settings.intake.batch_max_items, description.batch_max_items)
        self._regions = pixel_regions(triton, BATCHES + 2 + triton.calls_in_flight, items, size)
        decode = settings.decode.model_copy(update={"processes": settings.detectors.processes, "device": "cpu"})
        self._pool: Pool[Referred] = Pool(decode, settings.limits, self._regions, tools.metrics, view=description.view)
        self._triton = Triton(triton, items, self._regions, size[0] * size[1] * 3)
        self._open = True
        watch.attach(self._triton)

    @property
    def examiner(self) -> Examiner[Referred]:
        return self._pool

    def close(self) -> None:
        """End the processes and give the memory back."""
        if self._open:
            self._open = False
            self._pool.close()
            self._triton.close()
            self._regions.unlink()


class Panel:
    """All of them, in the order in which they are asked. Raises SettingsError for a wrong expression."""

    def __init__(
        self,
        settings: Settings,
        tools: Tools,
        breaker: Callable[[str], CircuitBreaker],
        open_eyes: Callable[[Settings, Tools, DetectorWatch, Description], Eyes] = ChildEyes,
        client: Callable[[Settings, str], Triton] | None = None,
    ) -> None:
        self._settings = settings
        self._tools = tools
        self._when = When(compile_when(settings))
        self._open_eyes = open_eyes
        self._clients: list[Triton] = []
        self._eyes: list[Eyes] = []
        self.detectors: list[Detector] = []
        for name in settings.detectors.names:
            # Describes, before it is known what there is to see.
            asks = client(settings, name) if client else Triton(settings.detector_triton(name), 1)
            self._clients.append(asks)
            watch = DetectorWatch(name, asks, tools.metrics)
            self.detectors.append(Detector(name, Guarded(watch, breaker(f"detector {name}"))))
            tools.metrics.detectors.expect(name)

    def versions(self) -> dict[str, str]:
        """Name -> version, of those that the server has described."""
        found = {detector.name: detector.watch.client.version for detector in self.detectors}
        return {name: version for name, version in found.items() if version}

    @property
    def breakers(self) -> list[CircuitBreaker]:
        return [detector.watch.breaker for detector in self.detectors]

    def stages(self, store: Guarded[Store], ended: Outlet[list[Ended]]) -> tuple[Outlet[list[Ended]], list[Driven]]:
        """Where judged images go instead of `ended`, and the stages on their way there, from the last to the first."""
        settings, tools = self._settings, self._tools
        stages: list[Driven] = []
        for detector in reversed(self.detectors):
            line, watch = Line.on(tools.clock, ended), detector.watch

            def open_eyes(description: Description, watch: Guarded[DetectorWatch] = watch) -> Eyes:
                eyes = self._open_eyes(settings, tools, watch.client, description)
                self._eyes.append(eyes)
                return eyes

            score = Score(settings, tools, watch, line)
            consult = Consult(settings, tools, watch.client, store, open_eyes, line)
            stages.append(Driven(f"score {detector.name}", score, settings.detectors.calls_in_flight))
            stages.append(Driven(f"consult {detector.name}", consult))
            ended = Referral(watch.client, self._when, tools, inbox=line.referred, beyond=ended)
        return ended, stages

    @property
    def trouble(self) -> str:
        """Why some view cannot be made; empty while all can. Any thread may ask."""
        return next((eyes.examiner.trouble for eyes in self._eyes if eyes.examiner.trouble), "")

    def close(self) -> None:
        """End the processes and let go of the connections. The stages have ended."""
        for eyes in self._eyes:
            eyes.close()
        for client in self._clients:
            client.close()


def try_out(settings: Settings, name: str) -> str:
    """For `check`: is it there, described rightly, and does it score? Raises Unavailable, InferenceFailed."""
    triton = Triton(settings.detector_triton(name).model_copy(update={"shared_memory": "off"}), 1)
    try:
        watch = DetectorWatch(name, triton, Metrics())
        served = watch.refresh()
        to_detector_scores(served.heads, watch.score(watch.canary(served), len(served.heads), timeout_s=20.0)[0])
    except ValueError as error:
        raise Unavailable(f"detector {name}", f"it gives no scores: {error}") from error
    finally:
        triton.close()
    heads = ", ".join(served.heads)
    return f"{triton.address}, version {served.version} scores {heads} of {served.view.to_json()}"
