"""The CPU flavour on a real tritonserver: the golden numbers, every batch size, wrong requests, kills and damaged
files.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, shared_memory

from tests.triton_models.heads import predicted, tie_distance
from triton_models import build, weights
from triton_models.repository import BuildError, check, file_hash
from triton_models.weights import WIDTH, Weights

pytestmark = pytest.mark.integration


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)


def log_of_a_failed_start(directory: Path, serve: Callable) -> list[str]:
    """Start a server on `directory`/models, which must end by itself; the lines of its log."""
    with serve(directory, directory / "models", wait=False) as broken:
        deadline = time.monotonic() + 60
        while broken.server.running() is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert broken.server.running() is None
        return broken.server.log.read_text().splitlines()


def test_golden_values_through_the_server(golden: Path, golden_weights: Weights, golden_server: Any) -> None:
    """Embeddings within the golden tolerance, scores those of the published heads, from `code` and from its parts
    alike.
    """
    images, expected = (np.load(golden / "encoder" / f"{name}.npz") for name in ("images", "expected"))
    answer = golden_server.infer(images["images"])
    assert np.abs(answer["embedding"] - expected["cls_features"]).max() < 2e-4
    np.testing.assert_allclose(
        answer["scores"], weights.reference_scores(golden_weights, expected["cls_features_f64"]), atol=1e-4
    )
    embedding = golden_server.infer(images["images"], "code_encoder", ("embedding",))["embedding"]
    np.testing.assert_allclose(embedding, answer["embedding"], atol=2e-5)
    data, known = (np.load(golden / "heads" / f"{name}.npz") for name in ("data", "expected"))
    scores = golden_server.infer(data["test_X"], "code_heads", ("scores",))["scores"]
    np.testing.assert_allclose(scores[:, 0], known["linear_predict_proba"][:, 1], atol=2e-6)
    assert np.array_equal(scores[:, 2] >= 0.5, known["svm_predict"] == -1)


def test_configuration_names_the_version(golden_weights: Weights, golden_server: Any) -> None:
    """The parameter `model_version` of each model is the weights', and each answer carries it as a number."""
    for name in ("code", "code_encoder", "code_heads"):
        parameters = golden_server.client.get_model_config(name).config.parameters
        assert parameters["model_version"].string_value == golden_weights.version
    tensor = grpc.InferInput("images", [1, 224, 224, 3], "UINT8")
    tensor.set_data_from_numpy(pixels(1))
    answer = golden_server.client.infer("code", [tensor]).get_response()
    assert f"{int(answer.model_version):012x}" == golden_weights.version


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 33, 256])
def test_every_batch_size_is_served(golden_server: Any, count: int) -> None:
    """1 to 256 images a request, from each of the models; an image's scores do not depend on its company."""
    images = pixels(count)
    answer = golden_server.infer(images)
    assert answer["embedding"].shape == (count, WIDTH) and answer["scores"].shape == (count, 3)
    alone = golden_server.infer(images[-1:])
    np.testing.assert_allclose(answer["scores"][-1:], alone["scores"], atol=1e-5)
    np.testing.assert_allclose(
        golden_server.infer(images, "code_encoder", ("embedding",))["embedding"], answer["embedding"], atol=2e-5
    )
    np.testing.assert_allclose(
        golden_server.infer(answer["embedding"], "code_heads", ("scores",))["scores"], answer["scores"], atol=1e-5
    )


def test_labels_are_scikit_learns_on_10_000_embeddings(
    golden: Path, golden_weights: Weights, golden_server: Any
) -> None:
    """Through the server, too, score >= 0.5 is each published head's own predict; only a 1-NN tie below 1e-5 may
    differ.
    """
    x = np.random.default_rng(6).standard_normal((10_000, WIDTH)).astype(np.float32)
    scores = np.concatenate(
        [golden_server.infer(part, "code_heads", ("scores",))["scores"] for part in np.split(x, 50)]
    )
    differs = (scores >= 0.5) != predicted(golden, x)
    assert not differs[:, [0, 2]].any()
    assert (tie_distance(golden_weights, x)[differs[:, 1]] < 1e-5).all()


def test_prefetching_is_on(golden_server: Any) -> None:
    """No priority and no queue policy: either turns Triton's prefetching off, and requests then stall for half a
    second.
    """
    for name in ("code", "code_encoder", "code_heads"):
        batching = golden_server.client.get_model_config(name).config.dynamic_batching
        assert batching.priority_levels == 0
        assert not batching.HasField("default_queue_policy")


def test_scores_alone_may_be_asked_for(golden_server: Any) -> None:
    """One graph gives either output without the other; an ensemble on 24.10 refuses that."""
    assert set(golden_server.infer(pixels(1), outputs=("scores",))) == {"scores"}


def test_concurrent_requests_get_their_own_rows(golden_server: Any) -> None:
    """Requests that the server merges into one batch come apart again in the right order."""
    images = pixels(12, seed=4)
    expected = golden_server.infer(images)["scores"]
    answers: dict[int, np.ndarray] = {}
    sizes = [1, 2, 1, 3, 2, 3]
    starts = np.cumsum([0, *sizes[:-1]])
    threads = [
        threading.Thread(
            target=lambda start=start, size=size: answers.update(
                {int(start): golden_server.infer(images[start : start + size])["scores"]}
            )
        )
        for start, size in zip(starts, sizes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    got = np.concatenate([answers[int(start)] for start in starts])
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [
        ((257, 224, 224, 3), np.uint8, "batch"),
        ((1, 224, 224, 4), np.uint8, "shape"),
        ((1, 3, 224, 224), np.uint8, "shape"),
        ((1, 100, 100, 3), np.uint8, "shape"),
        ((1, 224, 224, 3), np.float32, "data-type|datatype|data type"),
        ((224, 224, 3), np.uint8, "shape"),
        ((0, 224, 224, 3), np.uint8, "size"),
    ],
)
def test_a_wrong_request_is_refused_clearly(golden_server: Any, shape: tuple[int, ...], kind: type, says: str) -> None:
    """Too many images or none, another size, layout or type: an error that says what is wrong, and the server serves
    on.
    """
    tensor = grpc.InferInput("images", list(shape), "UINT8" if kind is np.uint8 else "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, kind))
    with pytest.raises(InferenceServerException, match=says):
        golden_server.client.infer("code", [tensor])
    assert golden_server.infer(pixels(1))["scores"].shape == (1, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_no_numbers_are_refused_alone(golden_server: Any, value: float) -> None:
    """A request to `code_heads` with NaN or infinity in one row hears of it; those that come at the same moment get
    their scores.
    """
    x = np.random.default_rng(3).standard_normal((4, WIDTH)).astype(np.float32)
    expected = golden_server.infer(x, "code_heads", ("scores",))["scores"]
    bad = x.copy()
    bad[2, 5] = value
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        try:
            answers[number] = golden_server.infer(bad if number == 3 else x, "code_heads", ("scores",))["scores"]
        except InferenceServerException as error:
            answers[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "embedding holds NaN or infinite numbers" in str(answers.pop(3))
    assert len(answers) == 7
    for scores in answers.values():
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_batch_size_beyond_32_bits_costs_nobody_else(golden_server: Any) -> None:
    """Triton takes 2^40 images for none at all and lets the request through: the model refuses it alone."""
    tensor = {
        "name": "images",
        "shape": [2**40, 224, 224, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": 150528},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", golden_server.server.ports["triton_http"], timeout=60)
    with closing(connection):
        connection.request(
            "POST",
            "/v2/models/code/infer",
            head + pixels(1).tobytes(),
            {"Inference-Header-Content-Length": str(len(head))},
        )
        answer = connection.getresponse()
        assert (
            answer.status,
            "images has shape [224, 224, 3], expected [N, 224, 224, 3]" in answer.read().decode(),
        ) == (400, True)
    assert golden_server.infer(pixels(1))["scores"].shape == (1, 3)


def test_cancelled_requests_are_not_computed(folder: Path, tmp_path: Path, serve: Callable) -> None:
    """Requests cancelled while the model is at work on others cost no computing, not even those that Triton has merged
    for it by then.
    """
    build.build(folder, "cpu", tmp_path / "models", build.Options(instances=1, threads=1))
    many, count, key = pixels(256), 15, f"/assay_test_{os.getpid()}_cancelled"
    handle = shared_memory.create_shared_memory_region("cancelled", key, many.nbytes)  # so that all are there at once
    try:
        with serve(tmp_path, tmp_path / "models") as running:
            running.client.register_system_shared_memory("cancelled", key, many.nbytes)
            at_work, waiting = (
                grpc.InferInput("images", [size, *many.shape[1:]], "UINT8") for size in (len(many), count)
            )
            at_work.set_shared_memory("cancelled", many.nbytes)
            waiting.set_shared_memory("cancelled", many[:count].nbytes)
            answered = threading.Event()
            running.client.async_infer("code", [at_work], callback=lambda **_: answered.set())
            calls = [running.client.async_infer("code", [waiting], callback=lambda **_: None) for _ in range(30)]
            deadline = time.monotonic() + 60
            while pending(running.server.ports["triton_metrics"]) < len(calls) // 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for call in calls:
                call.cancel()
            assert answered.wait(60)
            running.infer(pixels(1))
            merged = {size: took for size, took in compute_ms_per_image(running.client).items() if size % count == 0}
            assert merged, "no batch was merged behind the one at work"
            # Seen: 0.1 ms where the model skips them, 26 ms where it does not.
            assert max(merged.values()) < compute_ms_per_image(running.client)[len(many)] / 10
    finally:
        shared_memory.destroy_shared_memory_region(handle)


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


def compute_ms_per_image(client: grpc.InferenceServerClient) -> dict[int, float]:
    """For each size of a batch that `code` was given: what an image of it took, in ms."""
    batches = client.get_inference_statistics("code").model_stats[0].batch_stats
    return {
        int(batch.batch_size): batch.compute_infer.ns / 1e6 / batch.compute_infer.count / batch.batch_size
        for batch in batches
    }


def pending(metrics_port: int) -> float:
    """Requests that wait in the server's queues."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("nv_inference_pending_request_count{")
    )


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


def test_the_null_flavour_serves(tmp_path: Path, serve: Callable) -> None:
    """Constant scores under the same names, for measuring everything but the model."""
    build.build(None, "null", tmp_path / "models")
    with serve(tmp_path, tmp_path / "models") as running:
        assert (running.infer(pixels(5))["scores"] == 0.5).all()


def test_the_ensemble_gives_the_same_scores(
    golden_folder: Path, golden_server: Any, tmp_path: Path, serve: Callable
) -> None:
    """`code` as an ensemble of its parts answers what the single graph answers; loading it loads the parts."""
    build.build(golden_folder, "cpu", tmp_path / "models", build.Options(code="ensemble"))
    with serve(tmp_path, tmp_path / "models") as running:
        np.testing.assert_allclose(
            running.infer(pixels(3))["scores"], golden_server.infer(pixels(3))["scores"], atol=1e-5
        )
        assert all(running.client.is_model_ready(name) for name in ("code_encoder", "code_heads"))
