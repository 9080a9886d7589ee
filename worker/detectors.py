"""A detector beside `code`: what the server says of it, and the calls to it.

Everything that the worker needs to know of one stands in the server's configuration: the tensors, and the parameters
`model_version` (12 hex digits), `heads` (names of the scores, comma separated) and `view` (`worker.crop.View`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from worker.clients.triton import Triton
from worker.crop import Pixels, View
from worker.errors import Unavailable
from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
_HEAD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_UNBATCHED = 1


@dataclass(frozen=True, slots=True)
class Description:
    """A detector as it is served: its version, its heads in the order of `scores`, its view, its largest batch."""

    version: str
    heads: tuple[str, ...]
    view: View
    batch_max_items: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Description:
        """From Triton's configuration of a model. Raises ValueError that says what is wrong with it."""
        parameters = {name: value.get("string_value", "") for name, value in config.get("parameters", {}).items()}
        if missing := [name for name in ("model_version", "heads", "view") if name not in parameters]:
            raise ValueError(f"it lacks the parameter {missing[0]}")
        version = parameters["model_version"]
        if not re.fullmatch(r"[0-9a-f]{12}", version):
            raise ValueError(f"its parameter model_version is {version!r}, 12 hex digits are expected")
        heads = tuple(name.strip() for name in parameters["heads"].split(","))
        if len({*heads}) < len(heads) or not all(map(_HEAD.fullmatch, heads)):
            raise ValueError(f"its parameter heads is {parameters['heads']!r}, different names are expected")
        try:
            view = View.parse(parameters["view"])
        except ValueError as error:
            raise ValueError(f"its parameter view: {error}") from None
        largest = int(config.get("max_batch_size", 0))
        if largest < _UNBATCHED:
            raise ValueError(f"its max_batch_size is {largest}, at least 1 is expected")
        given, made = _tensors(config, "input"), _tensors(config, "output")
        height, width = view.size
        if given != {"images": ("TYPE_UINT8", [height, width, 3])}:
            raise ValueError(f"its input is {given}, but its view makes images TYPE_UINT8 {[height, width, 3]}")
        if made.get("scores") != ("TYPE_FP32", [len(heads)]):
            raise ValueError(f"its output scores is {made.get('scores')}, but it has {len(heads)} heads")
        return cls(version, heads, view, largest)


def _tensors(config: Mapping[str, Any], side: str) -> dict[str, tuple[str, list[int]]]:
    return {one["name"]: (one.get("data_type", ""), [int(size) for size in one["dims"]]) for one in config[side]}


class DetectorWatch:
    """Follows one detector. Thread-safe."""

    def __init__(self, name: str, triton: Triton, metrics: Metrics) -> None:
        self.name = name
        self._triton = triton
        self._metrics = metrics
        self._lock = threading.Lock()
        self._found: Description | None = None

    @property
    def version(self) -> str:
        """12 hex digits; empty before the first `refresh`."""
        return self._found.version if self._found else ""

    @property
    def description(self) -> Description:
        """As last seen; the pipeline waits for the first before it starts."""
        assert self._found is not None, f"detector {self.name} has been described"
        return self._found

    def attach(self, triton: Triton) -> None:
        """Ask through this client from now on: another view needs other memory."""
        self._triton = triton

    def refresh(self) -> Description:
        """Ask the server. Raises Unavailable, in one line, where it lacks the detector or describes it wrongly."""
        try:
            found = Description.of(self._triton.configuration())
        except Unavailable as error:
            raise Unavailable(f"detector {self.name}", error.detail) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"the server's configuration of {self.name} cannot be used: {error}"
            hint = "build it with python -m triton_models.build --detector (docs/detectors.md)"
            raise Unavailable(f"detector {self.name}", f"{problem}; {hint}") from error
        with self._lock:
            if found != self._found:
                before = self._found.version if self._found else None
                view = found.view.to_json()
                log.info("detector_version", detector=self.name, version=found.version, before=before, view=view)
                self._found = found
                self._metrics.detectors.in_use(self.name, found.version)
        return found

    def score(self, pixels: Pixels, heads: int, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """Scores float32 [N, `heads`] of pixels uint8 [N, H, W, 3]. Raises Unavailable or InferenceFailed."""
        outcome = "error"
        try:
            found = self._triton.score(pixels, heads, timeout_s=timeout_s)
            outcome = "ok"
        except Unavailable as error:
            raise Unavailable(f"detector {self.name}", error.detail) from error
        finally:
            self._metrics.detectors.calls.labels(detector=self.name, outcome=outcome).inc()
        self._metrics.detectors.batch_items.labels(detector=self.name).observe(len(pixels))
        return found

    def canary(self, description: Description) -> Pixels:
        """A picture to try it with, uint8 [1, H, W, 3]: slopes and grain, another one each time."""
        height, width = description.view.size
        random = np.random.default_rng()
        across = np.linspace(0, random.uniform(60, 180), width, dtype=np.float32)
        down = np.linspace(0, random.uniform(20, 70), height, dtype=np.float32)
        grain = random.uniform(0, 40, (height, width, 3)).astype(np.float32)
        pixels: Pixels = np.clip(across[None, :, None] + down[:, None, None] + grain, 0, 255).astype(np.uint8)[None]
        return pixels


def to_detector_scores(heads: tuple[str, ...], row: npt.NDArray[np.float32]) -> dict[str, float]:
    """By head, each the shortest decimal that is this float32. Raises ValueError for what is no probability."""
    return {head: probability(value) for head, value in zip(heads, row, strict=True)}


_ROUNDING = 1e-4  # a score further outside of [0, 1] is no score


def probability(value: np.floating[Any]) -> float:
    """What rounding carried past an end is cut. Raises ValueError."""
    if not -_ROUNDING <= value <= 1 + _ROUNDING:
        raise ValueError(f"{value} is no score")
    return min(max(float(str(value)), 0.0), 1.0)
