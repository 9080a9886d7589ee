"""Verification passes what is right and fails on every fault that was planted."""

import json
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from triton_models import build, reference, verify, weights
from triton_models.repository import MANIFEST, WEIGHTS_FOLDER, file_hash
from triton_models.weights import Weights

pytestmark = pytest.mark.slow

DEMO = Path(weights.__file__).with_name("weights") / "demo"
IMAGES = reference.images()[[6, 11, 14]]  # smooth as a photograph, dark or bright as a whole, sharp stripes


@pytest.fixture(scope="session")
def repository(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights in the CPU flavour."""
    out = tmp_path_factory.mktemp("verified") / "models"
    build.build(golden_folder, "cpu", out)
    return out


def failed(rows: list[verify.Row]) -> list[str]:
    return [row.name for row in rows if not row.passes(verify.TOLERANCES["fp32"])]


def test_a_right_repository_passes(repository: Path) -> None:
    """All graphs, PyTorch and scikit-learn agree with float64 far within the tolerance."""
    rows = verify.verify(repository, images=IMAGES)
    assert failed(rows) == []
    assert [row.name for row in rows if row.skipped] == ["server"]
    assert max(row.score for row in rows if row.score is not None) < 2e-5


def constant(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))


def wrong_svm(model: onnx.ModelProto) -> None:
    """P(real) instead of P(fake): the orientation that the released docstring suggests."""
    for name in ("svm.dual_coef", "svm.intercept"):
        constant(model, name, np.negative)


def swapped_bank(model: onnx.ModelProto) -> None:
    """Reals taken for fakes in the 1-NN."""
    for node in model.graph.node:
        if node.name == "knn":
            node.input[0] = "knn/fake"


def swapped_channels(model: onnx.ModelProto) -> None:
    """BGR for RGB."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    before(model, "pixels", helper.make_node("Gather", ["images", "order"], ["bgr"], axis=3), "bgr")


def no_normalisation(model: onnx.ModelProto) -> None:
    """Pixels from 0 to 1, mean and deviation forgotten."""
    constant(model, "mean", np.zeros_like)
    constant(model, "inverse_std", lambda values: np.full_like(values, 1 / 255))


def resized(model: onnx.ModelProto) -> None:
    """Resize(248) + CenterCrop(224), the training tail, where the native pixels belong."""
    add = model.graph.initializer.append
    add(numpy_helper.from_array(np.array([1, 248 / 224, 248 / 224, 1], np.float32), "scales"))
    for name, value in {"starts": [12, 12], "ends": [236, 236], "axes": [1, 2]}.items():
        add(numpy_helper.from_array(np.array(value), name))
    nodes = [
        helper.make_node("Cast", ["images"], ["float_images"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Resize", ["float_images", "", "scales"], ["larger"], mode="linear"),
        helper.make_node("Slice", ["larger", "starts", "ends", "axes"], ["cropped"]),
    ]
    for node in reversed(nodes):
        before(model, "pixels", node, "cropped")


def mean_for_deviation(model: onnx.ModelProto) -> None:
    """Mean and standard deviation taken for each other."""
    mean, std = (np.tile(np.array(values) * 255, weights.PATCH_PX**2) for values in (weights.MEAN, weights.STD))
    constant(model, "mean", lambda _: std)
    constant(model, "inverse_std", lambda _: 1 / mean)


def planar_patches(model: onnx.ModelProto) -> None:
    """Patches flattened as NCHW, for a kernel that is flattened as NHWC."""
    next(node for node in model.graph.node if node.name == "patches/order").attribute[0].ints[:] = [0, 1, 3, 5, 2, 4]


def shuffled_labels(model: onnx.ModelProto) -> None:
    """The bank's labels in another order than its rows: as many reals and fakes as before, but not the same ones."""
    real, fake = (
        next(tensor for tensor in model.graph.initializer if tensor.name == f"knn.{side}") for side in ("real", "fake")
    )
    rows = np.concatenate([numpy_helper.to_array(real), numpy_helper.to_array(fake)], axis=1)
    rows = rows[:, np.random.default_rng(1).permutation(rows.shape[1])]
    constant(model, "knn.real", lambda values: rows[:, : values.shape[1]])
    constant(model, "knn.fake", lambda values: rows[:, -values.shape[1] :])
    for side, part in (("real", rows[:, : real.dims[1]]), ("fake", rows[:, -fake.dims[1] :])):
        constant(model, f"knn.{side}_square", lambda _, part=part: (part**2).sum(axis=0) / 2)


def scores_in_another_order(model: onnx.ModelProto) -> None:
    """The SVM's score where the linear head's belongs."""
    scores = next(node for node in model.graph.node if node.name == "scores")
    scores.input[:] = ["svm", "knn", "linear"]


def no_positions(model: onnx.ModelProto) -> None:
    """Patches without their position embeddings."""
    constant(model, "patch_positions", np.zeros_like)


def before(model: onnx.ModelProto, name: str, node: onnx.NodeProto, value: str) -> None:
    """Put `node` in front and let the node called `name` read `value`."""
    model.graph.node.insert(0, node)
    next(each for each in model.graph.node if each.name == name).input[0] = value


FAULTS = [
    wrong_svm,
    swapped_bank,
    shuffled_labels,
    scores_in_another_order,
    swapped_channels,
    no_normalisation,
    mean_for_deviation,
    planar_patches,
    no_positions,
    resized,
]


def plant(repository: Path, name: str, fault: Callable[[onnx.ModelProto], None]) -> None:
    """Change a model's graph and make every hash agree again, as a faulty exporter would have."""
    manifest: dict[str, Any] = json.loads((repository / MANIFEST).read_text())
    path = repository / name / str(manifest["version_number"]) / "model.onnx"
    old = file_hash(path)
    model = onnx.load(path)
    fault(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    configuration = repository / name / "config.pbtxt"
    configuration.write_text(configuration.read_text().replace(old, file_hash(path)))
    for changed in (path, configuration):
        manifest["files"][changed.relative_to(repository).as_posix()] = file_hash(changed)
    (repository / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails(repository: Path, tmp_path: Path, fault: Callable[[onnx.ModelProto], None]) -> None:
    """SVM orientation, bank, channel order, normalisation, layout, resizing: the faulty graph's row fails, the others
    do not.
    """
    shutil.copytree(repository, tmp_path / "models")
    plant(tmp_path / "models", "code", fault)
    assert failed(verify.verify(tmp_path / "models", images=IMAGES)) == ["ONNX graph code"]


def test_mixed_precision_does_not_hide_a_fault(tmp_path: Path) -> None:
    """The wider tolerance of float16 lets rounding pass and still finds each of the faults, in trained weights (the
    golden 1-NN is near 0.5 everywhere).
    """
    build.build(DEMO, "cpu", tmp_path / "half", build.Options(precision="fp16"))
    tolerance = verify.TOLERANCES["fp16"]
    assert all(row.passes(tolerance) for row in verify.verify(tmp_path / "half", images=IMAGES))
    for fault in FAULTS:
        shutil.copytree(tmp_path / "half", tmp_path / fault.__name__)
        plant(tmp_path / fault.__name__, "code", fault)
        rows = verify.verify(tmp_path / fault.__name__, images=IMAGES)
        assert [row.name for row in rows if not row.passes(tolerance)] == ["ONNX graph code"], fault.__name__


def test_rounding_of_float32_is_no_fault(tmp_path: Path) -> None:
    """An encoder that float32 cannot compute to 1e-4 (a large sum that cancels out) passes where rounding explains it;
    its faults still fail.
    """
    encoder, heads = (load_file(DEMO / name) for name in (weights.ENCODER_FILE, weights.HEADS_FILE))
    encoder = {
        name: array.astype(np.float32) + 1000 * (name in ("cls_token", "patch_embed.proj.bias"))
        for name, array in encoder.items()
    }
    weights.save(tmp_path / "weights", encoder, heads | {"linear.coef": heads["linear.coef"] * 0.1})
    build.build(tmp_path / "weights", "cpu", tmp_path / "models")
    rows = verify.verify(tmp_path / "models", images=IMAGES)
    assert failed(rows) == []
    assert max(row.embedding for row in rows if row.embedding is not None) > verify.TOLERANCES["fp32"].embedding
    for fault in (swapped_channels, planar_patches, resized):
        shutil.copytree(tmp_path / "models", tmp_path / fault.__name__)
        plant(tmp_path / fault.__name__, "code", fault)
        (row,) = [
            row for row in verify.verify(tmp_path / fault.__name__, images=IMAGES) if row.name == "ONNX graph code"
        ]
        assert "embedding differs by" in row.past(verify.TOLERANCES["fp32"])


def test_nothing_compared_is_no_success(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither PyTorch nor ONNX Runtime is installed and no server named, the exit code is 1 and the line says
    what to do.
    """
    for name in ("torch", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    done = CliRunner().invoke(verify.app, [str(repository)])
    assert done.exit_code == 1 and "NOTHING was compared" in done.stdout


def test_a_served_graph_that_was_skipped_is_no_success(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's agreement with float64 says nothing of the graph that is served: where ONNX Runtime is missing, the
    exit code is 1.
    """
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(reference, "images", lambda: IMAGES[:1])
    done = CliRunner().invoke(verify.app, [str(repository)])
    assert done.exit_code == 1 and "PyTorch + scikit-learn" in done.stdout and "it was not run" in done.stdout


def test_nan_does_not_pass() -> None:
    """A form of the model that answers NaN fails, whatever the comparison with NaN says."""
    assert not verify.Row("x", embedding=float("nan"), score=0.0).passes(verify.TOLERANCES["fp32"])
    assert not verify.Row("x", score=float("nan")).passes(verify.TOLERANCES["fp32"])
    assert verify.Row("x", score=0.5e-4).passes(verify.TOLERANCES["fp32"])


def test_other_weights_under_the_same_manifest_fail(repository: Path, folder: Path, tmp_path: Path) -> None:
    """Weights swapped behind the manifest's back are found by their version."""
    shutil.copytree(repository, tmp_path / "models")
    kept = tmp_path / "models" / "code" / WEIGHTS_FOLDER
    manifest = json.loads((tmp_path / "models" / MANIFEST).read_text())
    for name in (weights.ENCODER_FILE, weights.HEADS_FILE):
        shutil.copy(folder / name, kept / name)
        manifest["files"][f"code/{WEIGHTS_FOLDER}/{name}"] = file_hash(kept / name)
    (tmp_path / "models" / MANIFEST).write_text(json.dumps(manifest))
    assert "NumPy float64, version of the weights" in failed(verify.verify(tmp_path / "models", images=IMAGES[:1]))


def test_reference_is_the_released_code(golden: Path, golden_weights: Weights) -> None:
    """The float64 forward pass that everything is compared with gives the golden float64 embeddings to 2e-5."""
    images, expected = (np.load(golden / "encoder" / f"{name}.npz") for name in ("images", "expected"))
    embedding = reference.embeddings(golden_weights, images["images"])
    assert np.abs(embedding - expected["cls_features_f64"]).max() < 2e-5


def test_the_command_line_tells_right_from_wrong(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0 with a table; exit 1 for a fault, and with one line for a damaged repository."""
    (tmp_path / "images").mkdir()
    for index, pixels in enumerate(IMAGES):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    done = CliRunner().invoke(verify.app, [str(repository), "--images", str(tmp_path / "images")])
    assert done.exit_code == 0 and "the same model in every form" in done.stdout
    shutil.copytree(repository, tmp_path / "models")
    plant(tmp_path / "models", "code_heads", wrong_svm)
    done = CliRunner().invoke(verify.app, [str(tmp_path / "models"), "--images", str(tmp_path / "images")])
    assert done.exit_code == 1 and "PAST THE TOLERANCE" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert re.match(
        r"NOT the same model, do not serve this repository: ONNX graph code_heads: score differs by \S+, at "
        r"most 1\.0e-04, labels changed",
        last,
    )
    (tmp_path / "models" / "code" / "config.pbtxt").write_text("")
    (tmp_path / "images" / "9.png").write_bytes(b"no image")
    (tmp_path / "vast").mkdir()
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT")
    png = b"".join(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    (tmp_path / "vast" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 10_000_000
    )  # the worker, where it is imported, has limits of its own
    for arguments, says in (
        ([tmp_path / "models"], "config.pbtxt: damaged"),
        ([repository, "--images", tmp_path / "images"], "9.png: no readable image"),
        (
            [repository, "--images", tmp_path / "vast"],
            "0.png: no readable image (Image size (400000000 pixels) exceeds limit",
        ),
    ):
        done = CliRunner().invoke(verify.app, [str(argument) for argument in arguments])
        (line,) = done.stderr.strip().splitlines()
        assert done.exit_code == 1
        assert says in line


def test_images_are_found_among_other_files(tmp_path: Path) -> None:
    """However many other files come first by name."""
    for index in range(300):
        (tmp_path / f"a{index}.txt").touch()
    Image.fromarray(IMAGES[0]).save(tmp_path / "z.png")
    assert np.array_equal(verify.folder_images(tmp_path), IMAGES[:1])


@pytest.mark.integration
def test_the_running_server_is_part_of_it(golden_server: Any, tmp_path: Path, serve: Callable) -> None:
    """A server with the right model passes, one with a planted fault fails, one that is away fails."""
    rows = verify.verify(golden_server.repository, server=golden_server.server.address, images=IMAGES)
    assert failed(rows) == []
    assert {row.name for row in rows if row.score is not None} >= {"server code", "server code_heads"}
    shutil.copytree(golden_server.repository, tmp_path / "models")
    plant(tmp_path / "models", "code", wrong_svm)
    with serve(tmp_path / "server", tmp_path / "models") as faulty:
        rows = verify.verify(tmp_path / "models", server=faulty.server.address, images=IMAGES)
        assert failed(rows) == ["ONNX graph code", "server code"]
    rows = verify.verify(tmp_path / "models", server=faulty.server.address, images=IMAGES[:1])
    assert any(name.startswith("server") for name in failed(rows))
