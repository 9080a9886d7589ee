"""Detectors of a repository against the scores that they had where their heads were fitted.

Those (`expected.json`) come from another path: the picture by Pillow, the backbone as it is, heads in float64. So a
view that is not what was fitted on shows as well as a swapped channel, a wrong normalisation or swapped heads.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from triton_models import graph
from triton_models.detector import FOLDER, Detector, Images, pictures, read_spec
from triton_models.detector_graph import is_quantised
from triton_models.repository import BuildError
from triton_models.rows import Row

# Of a score. Graphs in float32: as of `code`. Graphs with quantised activations: another processor's 8-bit products
# differ, and a rounding that tips over moves the scores.
TOLERANCE, QUANTISED_TOLERANCE = 1e-4, 2e-2


def graphs(repository: Path, manifest: dict[str, Any]) -> list[Row]:
    """Each detector's ONNX graph by ONNX Runtime, which must be installed."""
    rows = []
    for name, version in manifest.get("detectors", {}).items():
        path = repository / name / str(int(version, 16)) / "model.onnx"
        found = _Expected(repository / name / FOLDER, path)

        def run(given: Images, path: Path = path) -> npt.NDArray[Any]:
            return graph.run(path, given, ["scores"])["scores"]

        try:
            rows.append(found.row(f"ONNX graph {name}", run))
        except ImportError as error:
            rows.append(Row(f"ONNX graph {name}", skipped=f"{error.name} is not installed"))
    return rows


def served(repository: Path, manifest: dict[str, Any], server: str) -> list[Row]:
    """Each detector as a running server gives it."""
    from tritonclient import grpc  # noqa: PLC0415 - only with --server

    rows = []
    with closing(grpc.InferenceServerClient(server)) as client:
        for name, version in manifest.get("detectors", {}).items():
            found = _Expected(repository / name / FOLDER, repository / name / str(int(version, 16)) / "model.onnx")

            def ask(given: Images, name: str = name, version: str = version) -> npt.NDArray[Any]:
                serves = client.get_model_config(name).config.parameters["model_version"].string_value
                if serves != version:
                    raise BuildError(f"the server serves version {serves or 'unknown'}, the repository holds {version}")
                tensor = grpc.InferInput("images", list(given.shape), "UINT8")
                tensor.set_data_from_numpy(given)
                answer = client.infer(name, [tensor], outputs=[grpc.InferRequestedOutput("scores")], client_timeout=300)
                scores: npt.NDArray[Any] = answer.as_numpy("scores")
                return scores

            rows.append(found.row(f"server {name}", ask))
    return rows


class _Expected:
    """What a detector has to say of `pictures()`, and how far off it may be."""

    def __init__(self, folder: Path, graph_file: Path) -> None:
        spec = read_spec(folder / "detector.toml")
        self._detector = Detector(folder, spec, {}, None)
        quantised = is_quantised(onnx.load(str(graph_file), load_external_data=False))
        self._allowed = QUANTISED_TOLERANCE if quantised else 0.0

    def row(self, name: str, give: Any) -> Row:
        try:
            expected = self._detector.expected()
            views = [self._detector.spec.view.make(picture) for picture in pictures()]
            scores = np.concatenate([give(view[None]) for view in views])
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a form of the model raises is its row of the table
            return Row(name, failure=" ".join(str(error).split())[:160])
        if scores.shape != expected.shape:
            return Row(name, failure=f"scores have shape {list(scores.shape)}, expected {list(expected.shape)}")
        apart = float(np.abs(scores - expected).max())
        margin = max(TOLERANCE, self._allowed)
        clear = np.abs(expected - 0.5) > margin
        labels = int((((scores >= 0.5) != (expected >= 0.5)) & clear).sum())
        return Row(name, score=apart, labels=labels, allowed=self._allowed)
