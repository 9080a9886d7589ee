"""Model repositories: whole or not there, the same for the same weights, and refused when damaged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from triton_models import build, configuration, weights
from triton_models.build import Options
from triton_models.files import exchange, exchange_in_steps
from triton_models.plan import PlanError
from triton_models.repository import MANIFEST, SHADOW, WEIGHTS_FOLDER, BuildError, check
from triton_models.weights import ENCODER_FILE, HEADS_FILE, WeightsError

pytestmark = pytest.mark.slow


def contents(repository: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(repository)): path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()
    }


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
        assert (
            f'key: "model_version" value {{ string_value: "{version}" }}'
            in (tmp_path / "a" / name / "config.pbtxt").read_text()
        )
        assert (tmp_path / "a" / name / str(manifest["version_number"]) / "model.onnx").is_file()


def test_precision_and_layout_do_not_change_the_version(folder: Path, tmp_path: Path) -> None:
    """The version speaks of the weights: an ensemble, a half-precision build and a fused one share it."""
    made = [
        build.build(folder, "cpu", tmp_path / "repository", options)
        for options in (Options(), Options(code="ensemble"), Options(precision="fp16"))
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


@pytest.mark.parametrize(
    ("file", "name", "value", "says"),
    [
        (HEADS_FILE, "svm.gamma", 1e30, r"heads\.safetensors: the svm head"),
        (HEADS_FILE, "linear.coef", 1e38, r"heads\.safetensors: the linear head"),
        (ENCODER_FILE, "norm.weight", 3e38, r"encoder\.safetensors: its embeddings are NaN or infinite in fp32"),
    ],
)
@pytest.mark.parametrize("installed", [True, False], ids=["ONNX Runtime", "onnx alone"])
def test_weights_that_overflow_together_are_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    name: str,
    value: float,
    says: str,
    installed: bool,
) -> None:
    """Numbers that are finite one by one and give NaN or infinity in float32: told with file and head before the
    repository is exchanged.
    """
    if not installed:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "served" / "models"
    build.build(None, "null", out)
    before = contents(out)
    arrays = load_file(folder / file)
    save_file(arrays | {name: np.full(arrays[name].shape, value, np.float32)}, folder / file)
    with pytest.raises(WeightsError, match=says):
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


def test_a_killed_build_leaves_the_previous_repository_whole(folder: Path, tmp_path: Path) -> None:
    """SIGKILL while the draft is written: the repository is as before, and the next build clears what was left."""
    out = tmp_path / "served" / "models"
    before = build.build(folder, "cpu", out)
    arrays = load_file(folder / HEADS_FILE)
    arrays["linear.intercept"] += 1
    save_file(arrays, folder / HEADS_FILE)
    argv = [sys.executable, "-m", "triton_models.build", "--weights", str(folder), "--out", str(out)]
    process = subprocess.Popen(argv, cwd=Path(build.__file__).parents[1])
    while not list(out.parent.glob(".models.draft.*")):
        assert process.poll() is None
    process.kill()
    process.wait(60)
    assert len(list(out.parent.iterdir())) == 2
    assert check(out) == before
    assert build.build(folder, "cpu", out)["model_version"] != before["model_version"]
    assert [path.name for path in out.parent.iterdir()] == ["models"]


def test_folders_change_places(tmp_path: Path) -> None:
    """In one step and, where the file system knows none, in several: each folder has the other's content, nothing is
    left over.
    """
    for swap in (exchange, exchange_in_steps, exchange):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "content").write_text(name)
        swap(tmp_path / "a", tmp_path / "b")
        assert [(tmp_path / name / "content").read_text() for name in "ab"] == ["b", "a"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
        with pytest.raises(OSError, match="nowhere"):
            swap(tmp_path / "nowhere", tmp_path / "b")
        assert (tmp_path / "b" / "content").read_text() == "a"


def test_a_mount_point_is_refused_and_named() -> None:
    """It cannot change places with another folder: the message names it, and where to build instead."""
    with pytest.raises(BuildError, match=r"^/proc: a mount point .* name a folder inside it"):
        build.build(None, "null", Path("/proc"))


def test_a_link_to_a_repository_stays_a_link(folder: Path, tmp_path: Path) -> None:
    """Building onto a symbolic link replaces the folder that it leads to."""
    build.build(None, "null", tmp_path / "real" / "models")
    (tmp_path / "models").symlink_to(tmp_path / "real" / "models")
    build.build(folder, "cpu", tmp_path / "models")
    assert (tmp_path / "models").is_symlink()
    assert check(tmp_path / "real" / "models")["flavour"] == "cpu"


def test_a_foreign_folder_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """A folder that holds something else is refused, its content untouched."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="no model repository of ours"):
        build.build(folder, "cpu", tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_null_flavour_answers_without_weights(folder: Path, tmp_path: Path) -> None:
    """The null flavour has the same names and tensors and constant scores, whatever weights are named beside it."""
    manifest = build.build(None, "null", tmp_path / "models")
    assert build.build(folder, "null", tmp_path / "other") == manifest
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
    assert check(repository) == manifest
    for name in manifest["files"]:
        shutil.copytree(repository, tmp_path / "copy")
        damaged = tmp_path / "copy" / name
        damaged.write_bytes(damaged.read_bytes()[:-1])
        with pytest.raises(BuildError, match=f"{Path(name).name}: damaged"):
            check(tmp_path / "copy")
        damaged.unlink()
        with pytest.raises(BuildError, match=f"{Path(name).name}: the file is missing"):
            check(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")
    (repository / MANIFEST).write_text("{")
    with pytest.raises(BuildError, match="no readable manifest"):
        check(repository)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "assay.models/1"}', "null"])
def test_a_damaged_manifest_is_told(tmp_path: Path, text: str) -> None:
    """JSON that is no manifest, or lacks keys: an error that names the file and says to build again."""
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BuildError, match=r"MANIFEST\.json: .*build the repository"):
        check(tmp_path)


def test_the_repository_holds_its_weights(folder: Path, tmp_path: Path) -> None:
    """The weights travel with the repository, where Triton does not look, and still have its version."""
    manifest = build.build(folder, "cpu", tmp_path / "models")
    assert weights.load(tmp_path / "models" / "code" / WEIGHTS_FOLDER).version == manifest["model_version"]


def test_weights_beyond_float16_are_named(folder: Path, tmp_path: Path) -> None:
    """File and tensor, and what to build with instead."""
    arrays = load_file(folder / ENCODER_FILE)
    arrays["blocks.0.mlp.fc1.weight"] = np.full_like(arrays["blocks.0.mlp.fc1.weight"], 70_000, np.float32)
    save_file(arrays, folder / ENCODER_FILE)
    with pytest.raises(
        WeightsError,
        match=rf"{folder / ENCODER_FILE}: blocks\.0\.mlp\.fc1\.weight holds values beyond float16; build with",
    ):
        build.build(folder, "cpu", tmp_path / "models", Options(precision="fp16"))


def test_check_names_a_damaged_shadow(folder: Path, tmp_path: Path) -> None:
    """A `code_shadow` stands in no manifest: its graph, its code and its configuration are looked at all the same."""
    repository = tmp_path / "models"
    build.build(folder, "cpu", repository)
    shadow = shutil.copytree(repository / "code", repository / SHADOW)
    assert CliRunner().invoke(build.app, ["--check", str(repository)]).exit_code == 0
    for path in (next(shadow.glob("*/model.onnx")), next(shadow.glob("*/model.py")), shadow / "config.pbtxt"):
        whole = path.read_bytes()
        for damage in (whole[:-9], b"\xff\x00", b""):
            path.write_bytes(damage)
            done = CliRunner().invoke(build.app, ["--check", str(repository)])
            (line,) = done.stderr.splitlines()
            assert done.exit_code == 1
            assert line.startswith(f"error: {path}: ") and "rollout unshadow" in line
        path.write_bytes(whole)
    assert check(repository)["code"] == "fused"


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
    assert json.loads((tmp_path / "models" / MANIFEST).read_text())["flavour"] == "cpu"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--out", "/proc/nowhere/models"), 1, "error: /proc/nowhere: No such file or directory"),
        (("--out", "models", "--instances", "0"), 2, "'--instances': Input should be greater than or equal to 1"),
        (("--out", "models", "--threads", "-3"), 2, "'--threads': Input should be greater than or equal to 1"),
        (("--out", "models", "--precision", "bf16"), 1, "error: flavour cpu cannot serve bf16"),
        (("--check", "/nowhere"), 1, "error: /nowhere/MANIFEST.json: no readable manifest"),
    ],
)
def test_the_command_line_refuses_in_a_line(
    folder: Path,
    options: tuple[str, ...],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A place that cannot be written, a count below one: the exit code, and a line that says what is wrong, no
    traceback.
    """
    monkeypatch.chdir(folder.parent)
    arguments = list(options) if "--check" in options else ["--weights", str(folder), *options]
    done = CliRunner().invoke(build.app, arguments)
    assert done.exit_code == code
    assert says in done.stderr.strip().splitlines()[-1]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_plans_are_refused_without_tensorrt(folder: Path, tmp_path: Path) -> None:
    """The tensorrt flavour says where to build it when this machine cannot."""
    with pytest.raises(PlanError, match=r"serving image|no GPU can be used"):
        build.build(folder, "tensorrt", tmp_path / "models")
    assert not (tmp_path / "models").exists()
