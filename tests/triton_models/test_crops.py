"""A detector that looks at several crops: one view that holds them, one graph that makes one answer of theirs."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.triton_models.test_detector import DEMO
from triton_models import (
    build,
    detector,
    detector_build,
    detector_graph,
    detector_verify,
    graph,
    reference,
    verify,
    weights,
)

pytestmark = pytest.mark.slow

SIDE = 224
WANTED = {"grid:4": "median", "texture:3": "max"}


def folder_of(where: Path, crops: str, aggregate: str) -> detector.Detector:
    """CoDE's demo weights under several crops, by the command that users have."""
    pytest.importorskip("timm", reason="timm is in the train extra: make setup-all")
    from train.detector import export_detector

    export_detector(DEMO, where, crops=crops, aggregate=aggregate)
    return detector.load(where)


@pytest.fixture(scope="module", params=WANTED)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> detector.Detector:
    crops: str = request.param
    return folder_of(tmp_path_factory.mktemp("crops") / "wide", crops, WANTED[crops])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> detector.Detector:
    return folder_of(tmp_path_factory.mktemp("crops") / "wide", "grid:4", "mean")


def test_the_answer_is_that_of_the_crops_put_together(found: detector.Detector, tmp_path: Path) -> None:
    """Each crop by the float64 reference of CoDE, then mean, median or maximum by NumPy."""
    pictures = detector.pictures(4)
    crops = [found.spec.view.apart(found.spec.view.make(picture)[None]) for picture in pictures]
    alone = [weights.reference_scores(found.whole, reference.embeddings(found.whole, each)) for each in crops]
    expected = np.stack([getattr(np, found.spec.aggregate)(scores, axis=0) for scores in alone])
    graph.write(detector_graph.graph_of(found), tmp_path / "model.onnx")
    views = np.stack([found.spec.view.make(picture) for picture in pictures])
    ours = graph.run(tmp_path / "model.onnx", views, ["scores", "embedding"])
    assert np.abs(ours["scores"] - expected).max() < 1e-4
    assert ours["embedding"].shape == (4, 192)
    assert max(float(np.ptp(scores, axis=0).max()) for scores in alone) > 0.01, "crops that are all alike prove nothing"


@pytest.mark.integration
def test_it_is_served_beside_code(
    wide: detector.Detector, tmp_path: Path, serve: Callable[..., AbstractContextManager[Any]]
) -> None:
    """By the real server, which is compared with what was expected; a batch gives each image what it gets alone."""
    build.build(DEMO, "cpu", tmp_path / "models", detectors=[wide])
    with serve(tmp_path / "run", tmp_path / "models") as serving:
        rows = verify.verify(tmp_path / "models", server=serving.server.address)
        assert not verify.verdict(rows, build.check(tmp_path / "models"))
        views = np.stack([wide.spec.view.make(picture) for picture in detector.pictures()])
        together = serving.infer(views, "wide")["scores"]
        alone = np.concatenate([serving.infer(view[None], "wide")["scores"] for view in views])
    assert np.abs(together - alone).max() < 1e-5


@pytest.mark.parametrize("change", [{"aggregate": "max"}, {"crops": "texture:4"}, {"crops": "grid:9"}])
def test_other_crops_and_another_aggregate_are_another_version_and_are_seen(
    change: dict[str, str], wide: detector.Detector, tmp_path: Path
) -> None:
    """A repository built for other crops than the heads' scores were made with must not be served."""
    spec = wide.spec
    spec = dataclasses.replace(
        spec,
        aggregate=change.get("aggregate", spec.aggregate),
        view=dataclasses.replace(spec.view, crops=change.get("crops", spec.view.crops)),
    )
    wrong = dataclasses.replace(wide, spec=spec)
    assert wrong.version != wide.version
    detector_build.write(wrong, tmp_path / "models", (1, 1), "fp32", None)
    kept = tmp_path / "models" / "wide" / detector.FOLDER / "detector.toml"
    kept.write_text(kept.read_text().replace("grid:4", spec.view.crops).replace('"mean"', f'"{spec.aggregate}"'))
    (row,) = detector_verify.graphs(tmp_path / "models", {"detectors": {"wide": wrong.version}})
    assert row.score is not None, row.failure
    assert row.past(verify.TOLERANCES["fp32"])


def test_a_detector_without_crops_keeps_its_version() -> None:
    """What was calibrated before there were crops still is."""
    folder = Path(detector.__file__).parent / "detectors" / "clip"
    spec = detector.read_spec(folder / "detector.toml")
    before = detector.Detector(folder, spec, weights.read(folder / "heads.safetensors"), None)
    assert before.version == "b8eb88bb14be"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('"grid:4"', '"grid:5"'), "view.crops is 'grid:5'"),
        (('"grid:4"', '"texture:99"'), "view.crops is 'texture:99'"),
        (('"grid:4"', '"spiral:4"'), "view.crops is 'spiral:4'"),
        (('aggregate = "mean"\n', ""), "aggregate is ''"),
        (('aggregate = "mean"', 'aggregate = "mode"'), "aggregate is 'mode'"),
        (('crops = "grid:4"', 'crops = "grid:4"\nresize = { shorter = 256 }'), "native size"),
        (('crops = "grid:4"\n', ""), "aggregate is 'mean'"),
    ],
)
def test_a_wrong_description_is_told(
    change: tuple[str, str], problem: str, wide: detector.Detector, tmp_path: Path
) -> None:
    """With the field and what is expected."""
    shutil.copytree(wide.folder, tmp_path / "wrong")
    text = (tmp_path / "wrong" / "detector.toml").read_text()
    assert change[0] in text
    (tmp_path / "wrong" / "detector.toml").write_text(text.replace(*change))
    with pytest.raises(weights.WeightsError, match=problem):
        detector.load(tmp_path / "wrong")
