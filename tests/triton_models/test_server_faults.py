"""A real tritonserver whose clients die, which is killed, or whose models are damaged: nobody else is harmed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, shared_memory

from tests.triton_models.pixels import pixels
from triton_models import build
from triton_models.repository import BuildError, check, file_hash
from triton_models.weights import Weights

pytestmark = pytest.mark.integration


def log_of_a_failed_start(directory: Path, serve: Callable) -> list[str]:
    """Start a server on `directory`/models, which must end by itself; the lines of its log."""
    with serve(directory, directory / "models", wait=False) as broken:
        deadline = time.monotonic() + 60
        while broken.server.running() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert broken.server.running() is None
        return broken.server.log.read_text().splitlines()


def unregister(client: grpc.InferenceServerClient, region: str) -> None:
    """As soon as no request uses the region any more."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.unregister_system_shared_memory(region)
        except InferenceServerException as error:
            if "in use" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def test_a_disconnecting_client_harms_nobody(golden_server: Any) -> None:
    """A client that hangs up in the middle of a request, or with its call cancelled, leaves a server that answers
    others.
    """
    body = pixels(64).tobytes()
    with socket.create_connection(("127.0.0.1", golden_server.server.ports["triton_http"]), 5) as hanging:
        head = (
            "POST /v2/models/code/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: "
            f"2\r\nContent-Length: {len(body) + 2}\r\n\r\n{{}}"
        )
        hanging.sendall(head.encode() + body[:1_000_000])
    tensor = grpc.InferInput("images", [64, 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(pixels(64))
    calls = [golden_server.client.async_infer("code", [tensor], callback=lambda **_: None) for _ in range(3)]
    for call in calls:
        call.cancel()
    assert golden_server.infer(pixels(2))["scores"].shape == (2, 3)


def test_a_killed_client_leaves_a_region_that_harms_nobody(golden_server: Any) -> None:
    """A client that registers shared memory and is killed in mid-request: others are served, and its name can be used
    anew.
    """
    code = """
import os, signal, sys
import numpy as np
from tritonclient import grpc
from tritonclient.utils import shared_memory
client, size = grpc.InferenceServerClient(sys.argv[1]), 64 * 224 * 224 * 3
shared_memory.create_shared_memory_region("killed", sys.argv[2], size)
client.register_system_shared_memory("killed", sys.argv[2], size)
tensor = grpc.InferInput("images", [64, 224, 224, 3], "UINT8")
tensor.set_shared_memory("killed", size)
client.async_infer("code", [tensor], callback=lambda **_: None)
os.kill(os.getpid(), signal.SIGKILL)
"""
    key = f"/assay_test_{os.getpid()}_killed"
    left = Path("/dev/shm") / key[1:]
    try:
        done = subprocess.run([sys.executable, "-c", code, golden_server.server.address, key], check=False, timeout=120)
        assert (
            done.returncode == -signal.SIGKILL
        )  # the file may be gone at once: Python's resource tracker outlives its process
    finally:
        left.unlink(missing_ok=True)
    assert golden_server.infer(pixels(2))["scores"].shape == (2, 3)
    unregister(golden_server.client, "killed")
    assert "killed" not in golden_server.client.get_system_shared_memory_status(as_json=True).get("regions", {})


def test_a_killed_server_restarts_with_shared_memory_left_over(
    golden_folder: Path, tmp_path: Path, serve: Callable
) -> None:
    """After SIGKILL in mid-request, a client's shared-memory region still there, the server starts again and serves
    from it.
    """
    build.build(golden_folder, "cpu", tmp_path / "models")
    region, images = "left_over", pixels(4)
    key = f"/assay_test_{os.getpid()}_left_over"
    handle = shared_memory.create_shared_memory_region(region, key, images.nbytes)
    try:
        shared_memory.set_shared_memory_region(handle, [images])
        with serve(tmp_path, tmp_path / "models") as first:
            expected = first.infer(images)["scores"]
            first.client.register_system_shared_memory(region, key, images.nbytes)
            tensor = grpc.InferInput("images", list(images.shape), "UINT8")
            tensor.set_shared_memory(region, images.nbytes)
            first.client.async_infer("code", [tensor], callback=lambda **_: None)
            first.server.running().signal(signal.SIGKILL)
        with serve(tmp_path, tmp_path / "models") as second:
            second.client.register_system_shared_memory(region, key, images.nbytes)
            np.testing.assert_allclose(second.client.infer("code", [tensor]).as_numpy("scores"), expected, atol=1e-5)
    finally:
        shared_memory.destroy_shared_memory_region(handle)


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "missing"])
def test_a_damaged_graph_stops_the_start_with_one_line(
    folder: Path, tmp_path: Path, serve: Callable, damage: str
) -> None:
    """The server does not come up on a damaged file, and its log says in one line which file and what to do."""
    manifest = build.build(folder, "cpu", tmp_path / "models")
    graph = tmp_path / "models" / "code" / str(manifest["version_number"]) / "model.onnx"
    if damage == "missing":
        graph.unlink()
    else:
        content = graph.read_bytes()
        graph.write_bytes(content[: len(content) // 2] if damage == "truncated" else content[:-8] + b"\0" * 8)
    said = [line for line in log_of_a_failed_start(tmp_path, serve) if str(graph) in line]
    assert any(
        ("missing" if damage == "missing" else "damaged or replaced") in line
        and "python -m triton_models.build" in line
        for line in said
    )


def test_another_version_of_the_models_code_stops_the_start(folder: Path, tmp_path: Path, serve: Callable) -> None:
    """A model.py that is not the one that was built, though it runs, is refused by the server and by the check, with
    its name.
    """
    manifest = build.build(folder, "cpu", tmp_path / "models")
    code = tmp_path / "models" / "code" / str(manifest["version_number"]) / "model.py"
    code.write_text(code.read_text() + "\nLATER = True\n")
    with pytest.raises(BuildError, match=r"model\.py: damaged or replaced"):
        check(tmp_path / "models")
    said = [line for line in log_of_a_failed_start(tmp_path, serve) if str(code) in line]
    assert any("damaged or replaced" in line and "python -m triton_models.build" in line for line in said)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("not a number", "its scores has NaN or infinite numbers"), ("two heads", "its scores has shape [1, 2]")],
)
def test_a_graph_that_answers_nonsense_stops_the_start(
    folder: Path, tmp_path: Path, serve: Callable, fault: str, says: str
) -> None:
    """Right hashes, wrong graph: a head missing, or one that gives NaN, is found by a trial before anything is
    served.
    """
    manifest = build.build(folder, "cpu", tmp_path / "models")
    path = tmp_path / "models" / "code" / str(manifest["version_number"]) / "model.onnx"
    old, model = file_hash(path), onnx.load(path)
    if fault == "two heads":
        next(node for node in model.graph.node if node.name == "scores").input.pop()
        next(output for output in model.graph.output if output.name == "scores").type.tensor_type.shape.dim[
            1
        ].dim_value = 2
    else:
        intercept = next(tensor for tensor in model.graph.initializer if tensor.name == "svm.intercept")
        intercept.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), "svm.intercept"))
    onnx.save(model, path)
    configuration = tmp_path / "models" / "code" / "config.pbtxt"
    configuration.write_text(configuration.read_text().replace(old, file_hash(path)))
    assert any(f"{path}: {says}" in line for line in log_of_a_failed_start(tmp_path, serve))


def test_a_damaged_new_version_leaves_the_old_one_serving(
    golden_folder: Path, golden_weights: Weights, folder: Path, tmp_path: Path, serve: Callable
) -> None:
    """Loading a repository whose graph is damaged fails with the file's name; requests go on with the version
    before.
    """
    build.build(golden_folder, "cpu", tmp_path / "models")
    with serve(tmp_path, tmp_path / "models") as running:
        before = running.infer(pixels(2))["scores"]
        manifest = build.build(folder, "cpu", tmp_path / "models")
        graph = tmp_path / "models" / "code" / str(manifest["version_number"]) / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:1000])
        with pytest.raises(InferenceServerException, match=r"model\.onnx"):
            running.client.load_model("code")
        np.testing.assert_array_equal(running.infer(pixels(2))["scores"], before)
        assert (
            running.client.get_model_config("code").config.parameters["model_version"].string_value
            == golden_weights.version
        )
