"""Heads on any backbone: a folder that builds and verifies, of an ONNX graph, a timm model, CoDE's own weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from train import detector as subject
from train.data.open import open_source
from train.model import Backbone
from train.recipe import HeadFit
from triton_models import build, detector, detector_verify, verify, weights

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "triton_models" / "weights" / "demo"
SPEC = """
name = "mine"
licence = "Apache-2.0"
[view]
resize = { shorter = 32 }
interpolation = "bilinear"
crop = 24
[backbone]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Grain on real ones, smooth slopes as fakes."""
    rng = np.random.default_rng(1)
    for number in range(60):
        noise = rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)
        slope = np.linspace(rng.integers(0, 90), rng.integers(120, 255), 60)[None, :, None] * np.ones((48, 1, 3))
        for label, pixels in (("real", noise), ("fake/smooth", slope.astype(np.uint8))):
            folder = tmp_path / "images" / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def write_backbone(folder: Path) -> Path:
    """Patches of 4 pixels, bent, and averaged."""
    folder.mkdir()
    weight = np.random.default_rng(2).normal(0, 0.3, (12, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["patches"], strides=[4, 4]),
        helper.make_node("Relu", ["patches"], ["bent"]),
        helper.make_node("GlobalAveragePool", ["bent"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 24, 24])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 12])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "b.onnx")
    (folder / "detector.toml").write_text(SPEC)
    return folder / "b.onnx"


def verified(folder: Path, repository: Path) -> detector_verify.Row:
    """Built beside the demo's `code`, and compared."""
    made = detector.load(folder)
    manifest = build.build(DEMO, "cpu", repository, detectors=[made])
    (row,) = detector_verify.graphs(repository, manifest)
    return row


def test_heads_on_an_onnx_graph_become_a_detector(images: Path, tmp_path: Path) -> None:
    """It tells the two apart, its card says on what, and the served graph gives the same scores."""
    graph = write_backbone(tmp_path / "draft")
    found = open_source(images).labelled()
    card = subject.make_detector(f"onnx:{graph}", found, HeadFit(), tmp_path / "made", ("linear", "knn"))
    assert card["images"] == {"real": 60, "fake": 60}
    assert card["held_out_auc"]["linear"] > 0.9
    assert len(card["fitted_on"]["heads"]) > 0
    made = detector.load(tmp_path / "made")
    assert (made.spec.name, made.spec.heads, made.spec.view.crop) == ("mine", ("linear", "knn"), 24)
    assert card["model_version"] == made.version
    row = verified(tmp_path / "made", tmp_path / "models")
    assert row.score is not None, row.failure
    assert not row.past(verify.TOLERANCES["fp32"])


def test_a_timm_model_becomes_a_detector_with_its_own_view(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vit_small_patch16_384's shape, at random: resized to 384, its own normalisation."""
    monkeypatch.setattr(subject, "timm_backbone", _untrained)
    found = open_source(images).labelled()[::20]
    found = [*found, *open_source(images).labelled()[1::25]]
    subject.make_detector("timm:vit_tiny_patch16_384", found, HeadFit(), tmp_path / "tiny", ("linear",))
    made = detector.load(tmp_path / "tiny")
    assert made.spec.view.size == (384, 384)
    assert made.spec.view.resize == {"shorter": 384}
    assert made.spec.mean == (0.5, 0.5, 0.5)
    row = verified(tmp_path / "tiny", tmp_path / "models")
    assert row.score is not None, row.failure
    assert not row.past(verify.TOLERANCES["fp32"])


def _untrained(name: str) -> Backbone:
    from train.model import timm_backbone

    return timm_backbone(name, pretrained=False)


def test_code_s_weights_are_exported_as_a_detector(tmp_path: Path) -> None:
    """Its encoder in float64 says what is expected."""
    card = subject.export_detector(DEMO, tmp_path / "Mine-2")
    assert card["name"] == "mine_2"
    row = verified(tmp_path / "Mine-2", tmp_path / "models")
    assert row.score is not None, row.failure
    assert not row.past(verify.TOLERANCES["fp32"])


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        ("onnx:/nowhere/b.onnx", "is not there"),
        ("torch:x", "timm:NAME or onnx:FILE"),
        ("timm:vit_tinny", "no such model"),
    ],
)
def test_a_wrong_backbone_is_told(backbone: str, problem: str, images: Path, tmp_path: Path) -> None:
    """Before an image is read, and nothing is written."""
    with pytest.raises(weights.WeightsError, match=problem):
        subject.make_detector(backbone, open_source(images).labelled(), HeadFit(), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_is_written_as_toml_is_read_back() -> None:
    """Tables within tables, and the view's inline one."""
    import tomllib

    spec = {
        "name": "x",
        "view": {"resize": {"to": [3, 4]}, "crop": 5},
        "backbone": {"mean": [0.5, 1.0], "kind": "onnx"},
    }
    assert tomllib.loads(subject.toml(spec)) == spec
    assert json.loads(json.dumps(spec)) == spec
