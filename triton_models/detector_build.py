"""A detector's place in a model repository: its graph or plan, its configuration, and what verifies it later."""

from __future__ import annotations

import shutil
from pathlib import Path

from triton_models import configuration, graph
from triton_models.detector import EXPECTED_FILE, FOLDER, SPEC_FILE, Detector
from triton_models.detector_graph import graph_of, is_quantised
from triton_models.plan import Compiler
from triton_models.repository import BuildError, file_hash
from triton_models.weights import CARD_FILES, HEADS_FILE

ROWS = 8  # computed at a time on a CPU, as of `code`


def write(
    detector: Detector,
    repository: Path,
    copies: tuple[int, int],
    precision: graph.Precision,
    compiler: Compiler | None,
) -> None:
    """Into the folder of its name. `copies`: instances on a CPU, and threads for each. Raises BuildError, WeightsError,
    PlanError.
    """
    spec, version = detector.spec, detector.version
    place = repository / spec.name
    if place.exists():
        raise BuildError(f"two detectors are called {spec.name}; name them differently in {SPEC_FILE}")
    detector.expected()
    model = graph_of(detector, precision)
    quantised = is_quantised(model)
    if quantised and compiler is not None:
        raise BuildError(f"{spec.name}: a graph with dynamically quantised activations is served on a CPU alone")
    folder = place / str(configuration.version_number(version))
    folder.mkdir(parents=True)
    files = graph.write(model, folder / "model.onnx")
    shape = (*spec.view.size, detector.width)
    described = {"heads": ",".join(spec.heads), "view": spec.view.to_json()}
    if compiler is None:
        code = folder / "model.py"
        shutil.copyfile(Path(__file__).with_name("python_backend.py"), code)
        hashes = {path.name: file_hash(path) for path in (code, *files)}
        serving = {
            "files": configuration.as_json(hashes),
            "threads": str(copies[1]),
            # Quantised by the largest number of all rows: what is beside an image must not change its scores.
            "rows": str(1 if quantised else ROWS),
            "instances": str(copies[0]),
        }
    else:
        key = compiler.key(file_hash(files[0]))
        (folder / key.file_name).write_bytes(compiler.compile(files[0], [*spec.view.size, 3], None))
        serving = {"plan": key.file_name, "capability": compiler.gpu.capability}
    text = configuration.detector_model(spec.name, version, shape, described, serving)
    (place / "config.pbtxt").write_text(text)
    kept = place / FOLDER
    kept.mkdir()
    for name in (SPEC_FILE, HEADS_FILE, EXPECTED_FILE, *CARD_FILES):
        if (detector.folder / name).is_file():
            shutil.copyfile(detector.folder / name, kept / name)
