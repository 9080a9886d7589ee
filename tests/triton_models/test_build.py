"""Model repositories: whole or not there, the same for the same weights, and refused when damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from triton_models import build, configuration, weights
from triton_models.build import BuildError, Options
from triton_models.plan import PlanError
from triton_models.weights import HEADS_FILE, WeightsError


def contents(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}


def test_same_weights_give_the_same_repository(folder: Path, tmp_path: Path) -> None:
    """Two builds are equal byte for byte, and the version everywhere is that of the weights."""
    options = Options(threads=1)
    manifest = build.build(folder, "cpu", tmp_path / "a", options)
    build.build(folder, "cpu", tmp_path / "b", options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    version = weights.load(folder).version
    assert manifest["model_version"] == version
    assert f"{manifest['version_number']:012x}" == version
    for name in configuration.MODELS:
        assert f'key: "model_version" value {{ string_value: "{version}" }}' in (tmp_path / "a" / name / "config.pbtxt").read_text()
        assert (tmp_path / "a" / name / str(manifest["version_number"]) / "model.onnx").is_file()


def test_precision_and_layout_do_not_change_the_version(folder: Path, tmp_path: Path) -> None:
    """The version speaks of the weights: an ensemble, a half-precision build and a fused one share it."""
    made = [
        build.build(folder, "cpu", tmp_path / "repository", options) for options in (Options(), Options(code="ensemble"), Options(precision="fp16"))
    ]
    assert len({manifest["model_version"] for manifest in made}) == 1


def test_a_failed_build_keeps_the_previous_repository(folder: Path, tmp_path: Path) -> None:
    """Bad weights leave the repository as it was, and nothing half written beside it."""
    out = tmp_path / "served" / "models"
    build.build(folder, "cpu", out)
    before = contents(out)
    arrays = load_file(folder / HEADS_FILE)
    arrays["knn.bank"][0, 0] = np.nan
    save_file(arrays, folder / HEADS_FILE)
    with pytest.raises(WeightsError, match=r"heads\.safetensors: knn\.bank holds 1 values that are NaN"):
        build.build(folder, "cpu", out)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["models"]


def test_a_new_build_replaces_the_old_one_whole(folder: Path, tmp_path: Path) -> None:
    """After a build with other weights no file of the previous version is left."""
    out = tmp_path / "served" / "models"
    old = build.build(folder, "cpu", out)
    arrays = load_file(folder / HEADS_FILE)
    arrays["linear.intercept"] += 1
    save_file(arrays, folder / HEADS_FILE)
    new = build.build(folder, "cpu", out)
    assert new["model_version"] != old["model_version"]
    assert not [path for path in out.rglob("*") if path.name == str(old["version_number"])]
    assert [path.name for path in out.parent.iterdir()] == ["models"]


def test_a_foreign_folder_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """A folder that holds something else is refused, its content untouched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="no model repository of ours"):
        build.build(folder, "cpu", tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_null_flavour_answers_without_weights(tmp_path: Path) -> None:
    """The null flavour has the same names and tensors and constant scores."""
    manifest = build.build(None, "null", tmp_path / "models")
    path = tmp_path / "models" / "code" / str(manifest["version_number"]) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    embedding, scores = session.run(["embedding", "scores"], {"images": np.zeros((3, 224, 224, 3), np.uint8)})
    assert embedding.shape == (3, 192)
    assert scores.shape == (3, 3)
    assert (scores == 0.5).all()


def test_check_names_the_damaged_file(folder: Path, tmp_path: Path) -> None:
    """A changed, missing or truncated file is found by the manifest and named."""
    repository = tmp_path / "models"
    manifest = build.build(folder, "cpu", repository)
    assert build.check(repository) == manifest
    for name in manifest["files"]:
        shutil.copytree(repository, tmp_path / "copy")
        damaged = tmp_path / "copy" / name
        damaged.write_bytes(damaged.read_bytes()[:-1])
        with pytest.raises(BuildError, match=f"{Path(name).name}: damaged"):
            build.check(tmp_path / "copy")
        damaged.unlink()
        with pytest.raises(BuildError, match=f"{Path(name).name}: the file is missing"):
            build.check(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
    (repository / build.MANIFEST).write_text("{")
    with pytest.raises(BuildError, match="no readable manifest"):
        build.check(repository)


def test_the_repository_holds_its_weights(folder: Path, tmp_path: Path) -> None:
    """The weights travel with the repository, where Triton does not look, and still have its version."""
    manifest = build.build(folder, "cpu", tmp_path / "models")
    assert weights.load(tmp_path / "models" / "code" / build.WEIGHTS_FOLDER).version == manifest["model_version"]


def test_the_command_line_builds_and_checks(folder: Path, tmp_path: Path, command: Callable) -> None:
    """Exit 0 and a line with the version; for bad weights exit 1 and one line that names the file."""
    built = command("triton_models.build", "--weights", folder, "--flavour", "cpu", "--out", tmp_path / "models")
    assert built.returncode == 0
    assert weights.load(folder).version in built.stdout
    assert command("triton_models.build", "--check", tmp_path / "models").returncode == 0
    (folder / HEADS_FILE).write_bytes(b"\x08")
    failed = command("triton_models.build", "--weights", folder, "--flavour", "cpu", "--out", tmp_path / "models")
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1
    assert str(folder / HEADS_FILE) in failed.stderr
    assert json.loads((tmp_path / "models" / build.MANIFEST).read_text())["flavour"] == "cpu"


def test_plans_are_refused_without_tensorrt(folder: Path, tmp_path: Path) -> None:
    """The tensorrt flavour says where to build it when this machine cannot."""
    with pytest.raises(PlanError, match=r"serving image|no GPU is visible"):
        build.build(folder, "tensorrt", tmp_path / "models")
    assert not (tmp_path / "models").exists()
