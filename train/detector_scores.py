"""A detector's folder as what `evaluate` and `calibrate` measure: its own view, its backbone, its heads.

Views are made by the worker's own code. The backbone is that which its heads were fitted through (train/detector.py)
and that the served graph is verified against; scores are triton_models.detector's reference, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from train.detector import Seen
from train.heads import CHUNK_ROWS, Calibration
from train.model import Backbone, code_backbone
from triton_models import detector
from triton_models.detector import Detector
from triton_models.weights import WeightsError
from worker.crop import View
from worker.examine import views


@dataclass(frozen=True)
class DetectorEmbedder:
    """`train.embed.Embedder`. An embedding [D] is those of all crops of its view, one behind the other."""

    loaded: Detector
    seen: Seen | Backbone

    @property
    def name(self) -> str:
        return f"detector:{self.loaded.spec.name}"

    def view(self, picture: Image.Image) -> np.ndarray:
        view = View.parse(self.loaded.spec.view.to_json())
        return views.of_pixels(np.asarray(picture.convert("RGB")), view)

    def digest(self) -> bytes:
        return f"detector {self.loaded.version}".encode()

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        made = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        apart = self.loaded.spec.view.apart(made)
        if isinstance(self.seen, Seen):
            found = torch.from_numpy(self.seen.embed(apart).astype(np.float32))
        else:
            found = self.seen.embed(torch.from_numpy(apart).permute(0, 3, 1, 2))
        return found.reshape(len(made), -1)


@dataclass(frozen=True)
class DetectorHeads:
    """`train.heads.Scorer`: the heads that the detector serves."""

    loaded: Detector

    @property
    def names(self) -> tuple[str, ...]:
        return self.loaded.spec.heads

    @property
    def not_calibrated(self) -> list[str]:
        return list(self.names)

    def scores(self, embeddings: np.ndarray, calibration: Calibration | None = None) -> np.ndarray:
        """float64 [N, K]. Raises ValueError for a calibration: a detector has none."""
        if calibration is not None:
            raise ValueError("a detector's heads have no calibration of their own: leave --calibration away")
        rows = embeddings.reshape(len(embeddings) * self.loaded.spec.view.count, -1)
        step = CHUNK_ROWS * self.loaded.spec.view.count
        chunks = [
            detector.reference_scores(self.loaded, rows[start : start + step]) for start in range(0, len(rows), step)
        ]
        return np.concatenate(chunks) if chunks else np.zeros((0, len(self.names)))


def open_detector(folder: Path, graph: str | None = None) -> tuple[DetectorEmbedder, DetectorHeads]:
    """The detector in `folder`; `graph`: `onnx:FILE`, its backbone where the folder lacks it. Raises WeightsError."""
    kind, _, file = (graph or "").partition(":")
    if graph is not None and (kind != "onnx" or not file):
        raise WeightsError(f"--backbone {graph}: beside --detector it is onnx:FILE, the graph that its folder lacks")
    loaded = detector.load(folder, Path(file) if graph else None)
    spec = loaded.spec
    seen = Seen(loaded.graph, spec.view, spec.mean, spec.std, spec.output) if loaded.graph else code_backbone(folder)
    return DetectorEmbedder(loaded, seen), DetectorHeads(loaded)
