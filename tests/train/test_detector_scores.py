"""A detector's folder is measured and calibrated with what CoDE is measured and calibrated with."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.test_detector import DEMO, write_backbone
from train import detector as making
from train.calibration.calibrate import Asked, calibrate
from train.calibration.sample import read_sample
from train.compare import compare
from train.data.images import DataError
from train.data.open import open_source
from train.detector_scores import open_detector
from train.evaluate import Options
from train.measure import Subject, measure
from train.recipe import HeadFit
from train.report import write_report
from triton_models import detector
from triton_models.weights import WeightsError
from worker.contract import DetectorScores, ImageInfo, Scores
from worker.policy import Facts, load_policy

pytestmark = pytest.mark.slow


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Grain on real ones, soft spots on generated ones, no two alike."""
    rng = np.random.default_rng(1)
    for label, size in (("real", (60, 48)), ("fake/soft", (6, 5))):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Heads linear and knn on a small graph of one's own."""
    graph = write_backbone(tmp_path / "draft")
    found = open_source(images).labelled()
    making.make_detector(f"onnx:{graph}", found[:30] + found[-30:], HeadFit(), tmp_path / "mine", ("linear", "knn"))
    return tmp_path / "mine"


def test_a_detector_is_evaluated_as_code_is(folder: Path, images: Path, tmp_path: Path) -> None:
    """By its own view and heads, with everything that is measured of CoDE; the report and the comparison take it."""
    options = Options(resamples=0, robustness=True, sweep_images=6)
    results = measure(Subject(detector=folder), images, tmp_path / "results", options)
    loaded = detector.load(folder)
    assert results["heads"] == ["linear", "knn"]
    assert results["about"]["model version"] == loaded.version
    assert results["fitted_on"] == 60
    (whole,) = (row for row in results["rows"] if row["kind"] == "all")
    assert set(whole["metrics"]) == {"linear", "knn"}
    assert whole["metrics"]["linear"]["auc"]["value"] > 0.95
    assert set(results["robustness"]["none"][""]) == {"linear", "knn"} == set(results["temporal"][0]["auc"])
    with (tmp_path / "results" / "scores.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert "svm" not in row
    by_hash = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in images.rglob("*.png")}
    pixels = np.asarray(Image.open(by_hash[row["id"]]).convert("RGB"))
    embedder, _ = open_detector(folder)
    embedding = embedder.seen.embed(loaded.spec.view.make(pixels)[None])  # type: ignore[arg-type]
    expected = detector.reference_scores(loaded, embedding)
    assert [float(row["linear"]), float(row["knn"])] == pytest.approx(expected[0].tolist(), abs=1e-6)
    page = write_report(tmp_path / "results", tmp_path / "report").read_text()
    assert "Head knn" in page and "Head svm" not in page
    code = Options(resamples=0, controlled=False)
    measure(Subject(weights=DEMO), images, tmp_path / "code", code)
    rows = compare([tmp_path / "results", tmp_path / "code"])
    assert [row["head"] for row in rows] == ["linear", "knn"]


def test_several_crops_are_one_image(images: Path, tmp_path: Path) -> None:
    """CoDE's own encoder on four crops: embeddings of all of them, one score."""
    making.export_detector(DEMO, tmp_path / "grid", crops="grid:4", aggregate="max")
    embedder, heads = open_detector(tmp_path / "grid")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8))
    view = embedder.view(picture)
    import torch

    embedded = embedder.embed(torch.from_numpy(view[None]).permute(0, 3, 1, 2)).numpy()
    assert (view.shape, embedded.shape, heads.names) == ((4 * 224, 224, 3), (1, 4 * 192), ("linear", "knn", "svm"))
    each = detector.reference_scores(detector.load(tmp_path / "grid"), embedded.reshape(4, 192))
    assert heads.scores(embedded) == pytest.approx(each, abs=1e-9)
    with pytest.raises(ValueError, match="no calibration of their own"):
        heads.scores(embedded, "isotonic")


def test_thresholds_of_a_detector(folder: Path, images: Path, tmp_path: Path) -> None:
    """From images or from results the same policy: its rules read the detector's score, and its calibration names that
    detector's version, not `code`'s.
    """
    found = read_sample(None, images, None, detector=folder)
    assert found.left_out == {"fitted on": 60}
    measure(Subject(detector=folder), images, tmp_path / "results", Options(resamples=0, controlled=False))
    again = read_sample(None, None, tmp_path / "results", detector=folder)
    assert again.detector == found.detector == "mine"
    np.testing.assert_allclose(np.sort(again.scores, axis=0), np.sort(found.scores, axis=0), atol=1e-6)
    written = calibrate(found, Asked(0.2), tmp_path / "policy.toml")
    policy = load_policy(tmp_path / "policy.toml")
    assert policy.calibration is not None
    assert policy.calibration.model_version is None
    assert policy.calibration.detectors == {"mine": detector.version_of(folder)} == {"mine": written["model_version"]}
    info = ImageInfo(format="png", width=600, height=480, bytes=9)
    plain = Scores(linear=0.5, knn=0.5, svm=0.5)
    for score, decision in ((1.0, "fake"), (0.0, "real")):
        seen = {"mine": DetectorScores(version=written["model_version"], scores={"linear": score, "knn": 0.5})}
        assert policy.decide(Facts(plain, info, detectors=seen)).decision == decision
    assert policy.decide(Facts(plain, info)).decision == "review"
    assert json.loads((tmp_path / "policy.card.json").read_text())["sample"]
    with pytest.raises(DataError, match="mine has linear, knn"):
        calibrate(found, Asked(0.2, head="svm"), tmp_path / "other.toml")


def test_what_does_not_go_together_is_told(folder: Path, images: Path, tmp_path: Path) -> None:
    """One model at a time; a graph that is missing, or given in another form."""
    with pytest.raises(DataError, match="heads of its own"):
        measure(Subject(detector=folder, weights=DEMO), images, tmp_path / "out", Options())
    with pytest.raises(DataError, match="one of them"):
        read_sample(DEMO, images, None, detector=folder)
    with pytest.raises(WeightsError, match="onnx:FILE"):
        open_detector(folder, "timm:resnet50")
    (folder / "backbone.onnx").rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(WeightsError, match="backbone is missing"):
        open_detector(folder)
    assert open_detector(folder, f"onnx:{tmp_path / 'elsewhere.onnx'}")[0].name == "detector:mine"
