"""Weights folders to build from, and a real tritonserver of these tests' own (the stack's launcher, other
repositories).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from tritonclient import grpc

from train.release import import_release
from triton_models import build, weights
from triton_models.control import connect
from worker.local.server import NotServing, free_port
from worker.local.triton_server import TritonServer

CHECKOUT = Path(__file__).parents[2]
DEMO = CHECKOUT / "triton_models" / "weights" / "demo"
START_S = 60.0
GRACE_S = 15.0


@dataclass(frozen=True)
class Serving:
    """A running server: its repository, its process and a client."""

    server: TritonServer
    repository: Path
    client: grpc.InferenceServerClient

    def infer(
        self, images: np.ndarray, model: str = "code", outputs: tuple[str, ...] = ("embedding", "scores")
    ) -> dict[str, np.ndarray]:
        """The outputs of one request with `images` [N, 224, 224, 3] (or embeddings for code_heads)."""
        name, kind = ("embedding", "FP32") if model.startswith("code_heads") else ("images", "UINT8")
        tensor = grpc.InferInput(name, list(images.shape), kind)
        tensor.set_data_from_numpy(images)
        answer = self.client.infer(model, [tensor], outputs=[grpc.InferRequestedOutput(output) for output in outputs])
        return {output: answer.as_numpy(output) for output in outputs}


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    """The machine is shared: spinning threads of NumPy and torch would wait for each other."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """The released code's values: the committed part, or the whole set named by ASSAY_GOLDEN."""
    return Path(os.environ.get("ASSAY_GOLDEN") or CHECKOUT / "tests" / "golden")


@pytest.fixture(scope="session")
def golden_folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden encoder and heads, imported as a published release would be."""
    published = tmp_path_factory.mktemp("published")
    (published / "sklearn").mkdir()
    shutil.copy(golden / "encoder" / "model_fp16.safetensors", published / "model.safetensors")
    for path in [*(golden / "heads").glob("*.sav"), *(golden / "heads").glob("*.joblib")]:
        shutil.copy(path, published / "sklearn")
    return import_release(published, tmp_path_factory.mktemp("golden") / "weights")


@pytest.fixture(scope="session")
def golden_weights(golden_folder: Path) -> weights.Weights:
    """The golden weights, loaded."""
    return weights.load(golden_folder)


@pytest.fixture(scope="session")
def small_weights() -> weights.Weights:
    """Random weights with a small bank, for what does not depend on the numbers."""
    return weights.from_arrays(*random_arrays(np.random.default_rng(7)))


def random_arrays(rng: np.random.Generator, bank: int = 20) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Encoder and heads arrays of the right names and shapes."""
    encoder = {
        name: (rng.standard_normal(shape) * 0.05).astype(np.float16) for name, shape in weights.ENCODER_SHAPES.items()
    }
    vectors = rng.standard_normal((5, weights.WIDTH))
    heads = {
        "linear.coef": rng.standard_normal(weights.WIDTH) * 0.1,
        "linear.intercept": np.array([0.1]),
        "knn.bank": rng.standard_normal((bank, weights.WIDTH)).astype(np.float32),
        "knn.labels": np.arange(bank) % 2,
        "svm.support_vectors": vectors,
        "svm.dual_coef": rng.random(5),
        "svm.intercept": np.array([-0.2]),
        "svm.gamma": np.array([1 / weights.WIDTH]),
        "svm.coef0": np.array([0.0]),
        "svm.degree": np.array([3.0]),
    }
    return encoder, heads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small valid weights folder that a test may damage."""
    encoder, heads = random_arrays(np.random.default_rng(7))
    weights.save(tmp_path / "weights", encoder, heads)
    return tmp_path / "weights"


@contextmanager
def serving(directory: Path, repository: Path, *, wait: bool = True) -> Iterator[Serving]:
    """Run a server on `repository` until the block ends; without `wait` it may still be starting, or fail to."""
    server = TritonServer(directory, {name: free_port() for name in TritonServer.port_names}, repository)
    server.start()
    try:
        if wait:
            until_serving(server)
        with closing(connect(server.address, server.control_key)) as client:
            yield Serving(server, repository, client)
    finally:
        server.stop(grace_s=GRACE_S)


def until_serving(server: TritonServer) -> None:
    """Return when the canary is answered; fail with the log when the process ends or START_S is over."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            server.check()
        except NotServing as error:
            if server.running() is None or time.monotonic() > deadline:
                pytest.fail(f"tritonserver does not serve: {error}\n{server.log_tail()}")
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def golden_server(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with the golden weights in the CPU flavour, all three models loaded."""
    directory = tmp_path_factory.mktemp("golden_server")
    build.build(golden_folder, "cpu", directory / "models")
    with serving(directory, directory / "models") as running:
        for name in ("code_encoder", "code_heads"):
            running.client.load_model(name)
        yield running


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Serving]]:
    """`serving`, for tests that start servers of their own."""
    return serving


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m <module> <arguments>` from the checkout and returns what it said."""

    def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(
            argv,
            cwd=CHECKOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )

    return run
