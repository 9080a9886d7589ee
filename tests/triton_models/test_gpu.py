"""TensorRT itself: plans built, run, served and refused on a real GPU. To be run inside the serving image (or where
`tensorrt` and a `tritonserver` with its TensorRT backend are on the path):

    python -m pytest -m gpu tests/triton_models -s        # -s shows the table and the throughput

Not run so far for want of a GPU; what can be tried without one is in test_plan.py.
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from triton_models import build, plan, reference, rollout, verify, weights
from triton_models.plan import PlanError
from triton_models.plan_run import run_plan
from triton_models.repository import MANIFEST, check
from worker.local.server import free_port

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
START_S = 300.0
Running = tuple[str, grpc.InferenceServerClient]


@pytest.fixture(scope="module", autouse=True)
def compiler() -> plan.Compiler:
    """TensorRT and the GPU of this machine."""
    try:
        return plan.here()
    except PlanError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def repositories(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden weights as plans in each precision, timings shared."""
    base = tmp_path_factory.mktemp("plans")
    for precision in ("fp32", "fp16", "bf16"):
        build.build(
            golden_folder,
            "tensorrt",
            base / precision,
            build.Options(precision=precision, timing_cache=base / "timings"),
        )
    assert len(list((base / "timings").iterdir())) == 1
    return {precision: base / precision for precision in ("fp32", "fp16", "bf16")}


@contextmanager
def tritonserver(repository: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The image's own server on `repository`, all models loaded; the process, which may have ended, and its gRPC
    address.
    """
    program = shutil.which("tritonserver")
    if program is None:
        pytest.skip("no tritonserver on the path: run this inside the serving image")
    ports = {kind: free_port() for kind in ("grpc", "http", "metrics")}
    argv = [
        program,
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
    ]
    argv += [f"--load-model={name}" for name in ("code", "code_encoder", "code_heads")]
    argv += [f"--{kind}-{option}" for kind, port in ports.items() for option in ("address=127.0.0.1", f"port={port}")]
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            yield process, f"127.0.0.1:{ports['grpc']}"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def serve_plans(tmp_path: Path) -> Callable[[Path], AbstractContextManager[Running]]:
    """Runs the server until the block ends; yields address and client once `code` is ready."""

    @contextmanager
    def serve(repository: Path) -> Iterator[Running]:
        log = tmp_path / "tritonserver.log"
        with (
            tritonserver(repository, log) as (process, address),
            closing(grpc.InferenceServerClient(address)) as client,
        ):
            deadline = time.monotonic() + START_S
            while not is_ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"tritonserver does not serve:\n{log.read_text(errors='replace')[-4000:]}")
                time.sleep(0.2)
            yield address, client

    return serve


def is_ready(client: grpc.InferenceServerClient) -> bool:
    try:
        return bool(client.is_model_ready("code"))
    except InferenceServerException:
        return False


def ask(client: grpc.InferenceServerClient, images: np.ndarray) -> Any:
    tensor = grpc.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return client.infer("code", [tensor])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plans_are_the_model(repositories: dict[str, Path], precision: str) -> None:
    """Every plan, run without a server, is within the tolerance of its precision, and the rows are there."""
    rows = verify.verify(repositories[precision])
    assert {row.name for row in rows} >= {f"TensorRT plan {name}" for name in ("code", "code_encoder", "code_heads")}
    assert [row for row in rows if not row.passes(verify.TOLERANCES[precision])] == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_served_plans_are_the_model(repositories: dict[str, Path], precision: str, serve_plans: Callable) -> None:
    """The running server passes verify; it takes 1 to 256 images and refuses 257; each answer names its weights."""
    version = check(repositories[precision])["model_version"]
    with serve_plans(repositories[precision]) as (address, client):
        rows = verify.verify(repositories[precision], server=address)
        assert [
            row for row in rows if row.skipped.startswith("not loaded") or not row.passes(verify.TOLERANCES[precision])
        ] == []
        for count in (1, 2, 33, 256):
            answer = ask(client, reference.images(4)[np.arange(count) % 4])
            assert answer.as_numpy("scores").shape == (count, 3)
            assert f"{int(answer.get_response().model_version):012x}" == version
        with pytest.raises(InferenceServerException, match="batch"):
            ask(client, np.zeros((257, 224, 224, 3), np.uint8))


def test_golden_values_through_a_plan(
    golden: Path, golden_weights: weights.Weights, repositories: dict[str, Path], serve_plans: Callable
) -> None:
    """In float32 without TF32 the served plan gives the golden embeddings and scores."""
    images, expected = (np.load(golden / "encoder" / f"{name}.npz") for name in ("images", "expected"))
    with serve_plans(repositories["fp32"]) as (_, client):
        answer = ask(client, images["images"])
    assert np.abs(answer.as_numpy("embedding") - expected["cls_features"]).max() < 2e-4
    np.testing.assert_allclose(
        answer.as_numpy("scores"), weights.reference_scores(golden_weights, expected["cls_features_f64"]), atol=1e-4
    )


def test_a_roll_out_of_plans_and_back(
    repositories: dict[str, Path], folder: Path, tmp_path: Path, serve_plans: Callable
) -> None:
    """Another version is loaded beside and in place of the serving one, and taken back, without a restart."""
    old = check(repositories["fp16"])["model_version"]
    new = build.build(folder, "tensorrt", tmp_path / "new", build.Options(precision="fp16"))["model_version"]
    live = tmp_path / "live"
    shutil.copytree(repositories["fp16"], live)
    with serve_plans(live) as (_, client):
        assert rollout.shadow(client, live, tmp_path / "new") == new
        assert rollout.load(client, live, tmp_path / "new") == new
        assert rollout.back(client, live) == old
        assert rollout.versions(client, live) == {"serving": old, "shadow": new, "folder": old, "previous": new}


def test_a_rebuild_with_timings_serves_the_same(
    repositories: dict[str, Path], golden_folder: Path, tmp_path: Path
) -> None:
    """With the timing cache of the first build the second gives plans under the same names, which verify passes."""
    cache = repositories["fp16"].parent / "timings"
    build.build(golden_folder, "tensorrt", tmp_path / "again", build.Options(precision="fp16", timing_cache=cache))
    names = [
        sorted(path.name for path in repository.rglob("*.plan"))
        for repository in (repositories["fp16"], tmp_path / "again")
    ]
    assert names[0] == names[1]
    assert all(row.passes(verify.TOLERANCES["fp16"]) for row in verify.verify(tmp_path / "again"))


def test_a_plan_for_another_gpu_is_not_served(repositories: dict[str, Path], tmp_path: Path) -> None:
    """`--check` says how to rebuild; the server finds no plan for its GPU and ends, naming the command in its log."""
    shutil.copytree(repositories["fp16"], tmp_path / "models")
    capability = plan.visible_gpu().capability
    for name in ("code", "code_encoder", "code_heads"):
        configuration = tmp_path / "models" / name / "config.pbtxt"
        configuration.write_text(configuration.read_text().replace(f'key: "{capability}"', 'key: "1.0"'))
    with tritonserver(tmp_path / "models", tmp_path / "log") as (process, _):
        assert process.wait(START_S) != 0
    assert "rebuild-with-python-m-triton_models.build" in (tmp_path / "log").read_text(errors="replace")
    manifest = json.loads((repositories["fp16"] / MANIFEST).read_text())
    shutil.copytree(repositories["fp16"], tmp_path / "foreign")
    manifest["plans"]["capability"] = "1.0"
    (tmp_path / "foreign" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PlanError, match=r"compute capability 1\.0, here are .*python -m triton_models\.build"):
        check(tmp_path / "foreign")


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch, command: Callable) -> None:
    """CUDA_VISIBLE_DEVICES decides which GPUs a plan is for: with none visible the build says so in a line."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    failed = command(
        "triton_models.build",
        "--weights",
        "triton_models/weights/demo",
        "--flavour",
        "tensorrt",
        "--out",
        "/nowhere/models",
    )
    assert failed.returncode == 1
    assert "no GPU can be used" in failed.stderr


def test_a_truncated_plan_is_told(repositories: dict[str, Path], tmp_path: Path, compiler: plan.Compiler) -> None:
    """Half a plan: TensorRT's words, the file's name and the command to rebuild."""
    whole = next(repositories["fp16"].glob("code/*/*.plan"))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(PlanError, match=r"does not take the plan .*python -m triton_models\.build"):
        run_plan(compiler.trt, tmp_path / whole.name, reference.images(1))
