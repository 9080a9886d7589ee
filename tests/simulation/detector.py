"""A detector beside `code`, in some of the histories: its server, which is reloaded apart, and what a worker has of it.

It shares `code`'s troubles (one server serves both) and is shown the contested images (contested.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.simulation.contested import FROM, NAME, VERSIONS, score
from tests.simulation.hub import Process
from tests.simulation.servers import CANARY, ExaminerTwin, TritonServer
from tests.simulation.world import Twin, World
from worker.clients.triton import InferenceFailed
from worker.crop import Pixels, View
from worker.detectors import Description, DetectorWatch
from worker.errors import Unavailable
from worker.settings import Settings
from worker.stages.panel import Panel
from worker.stages.stage import Tools

SETTINGS = {"names": [NAME], "when": f"scores.linear >= {FROM}"}
_VIEW = View(crop=1)


class DetectorServer(TritonServer):
    """The model beside `code`."""

    @property
    def version(self) -> str:
        return VERSIONS[self._reloads]

    def scores(self, pixels: Pixels) -> list[list[float]]:
        """One head."""
        return [[score(number, self.version)] for number in pixels[:, 0, 0, 0].tolist()]


class DetectorTwin(Twin):
    """worker.clients.triton.Triton, as detectors use it."""

    def __init__(self, world: World, process: Process, server: DetectorServer) -> None:
        super().__init__(world, world.plan.triton, process)
        self._model = server

    def configuration(self, timeout_s: float = 2.0) -> dict[str, Any]:
        """What the server says of it. Raises Unavailable."""
        del timeout_s
        self._enter()
        if self._trouble() in ("away", "glitch"):
            self._give_up()
            raise Unavailable("triton", "simulated: no answer")
        told = {"model_version": self._model.version, "heads": "linear", "view": _VIEW.to_json()}
        self._leave()
        return {
            "parameters": {name: {"string_value": value} for name, value in told.items()},
            "max_batch_size": 4,
            "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["1", "1", "3"]}],
            "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": ["1"]}],
        }

    def score(self, pixels: Pixels, heads: int, *, timeout_s: float | None = None) -> np.ndarray:
        """Scores, unless the server or an image prevents it."""
        del timeout_s
        assert heads == 1, "it has one head"
        self._enter()
        trouble = self._trouble()
        if trouble == "away" or (trouble == "glitch" and self._random() < 0.5):
            self._give_up()
            raise Unavailable("triton", "simulated: no answer")
        numbers = pixels[:, 0, 0, 0].tolist()
        if trouble and (len(numbers) > 1 or self._model.strikes(numbers[0], self.ill_since())):
            raise InferenceFailed(f"simulated: {trouble}")
        found = np.array(self._model.scores(pixels), np.float32)
        self._leave()
        return found

    def close(self) -> None:
        """Nothing is held."""


class EyesTwin:
    """worker.stages.panel.ChildEyes."""

    def __init__(self, world: World, process: Process) -> None:
        self.examiner: Any = ExaminerTwin(world, process)

    def close(self) -> None:
        """Nothing is held."""


class Beside:
    """What one worker has of the detector: the real panel over twins."""

    def __init__(
        self, world: World, process: Process, server: DetectorServer, settings: Settings, tools: Tools, breaker: Any
    ) -> None:
        self._eyes: list[EyesTwin] = []

        def client(_settings: Settings, _name: str) -> Any:
            return DetectorTwin(world, process, server)

        def open_eyes(_settings: Settings, _tools: Tools, _watch: DetectorWatch, _found: Description) -> EyesTwin:
            self._eyes.append(EyesTwin(world, process))
            return self._eyes[-1]

        self.panel = Panel(settings, tools, breaker, open_eyes, client)
        for detector in self.panel.detectors:
            detector.watch.client.canary = lambda _description: CANARY  # type: ignore[method-assign]

    def refresh(self) -> None:
        """Raises Unavailable."""
        for detector in self.panel.detectors:
            detector.watch.client.refresh()

    @property
    def leases(self) -> int:
        """Batches of pixels that nobody has given back."""
        return sum(len(eyes.examiner.leases) for eyes in self._eyes)
