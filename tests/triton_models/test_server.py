"""The CPU flavour on a real tritonserver: the golden numbers, every batch size, wrong requests, kills and damaged
files.
"""

import http.client
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, shared_memory

from tests.triton_models.heads import predicted, tie_distance
from tests.triton_models.pixels import pending, pixels
from triton_models import build, weights
from triton_models.weights import WIDTH, Weights

pytestmark = pytest.mark.integration


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
            merged: dict[int, float] = {}
            for _ in range(6):  # a slow machine may merge none before all are cancelled: nothing was tried then
                cancel_behind(running, at_work, waiting)
                running.infer(pixels(1))
                found = compute_ms_per_image(running.client)
                merged = {size: took for size, took in found.items() if size % count == 0}
                if merged:
                    break
            assert merged, "no batch was merged behind the one at work"
            # Seen: 0.1 ms where the model skips them, 26 ms where it does not.
            assert max(merged.values()) < compute_ms_per_image(running.client)[len(many)] / 10
    finally:
        shared_memory.destroy_shared_memory_region(handle)


def cancel_behind(running: Any, at_work: Any, waiting: Any) -> None:
    """Cancel thirty requests while the model computes another; Triton has had time to merge some of them for it."""
    answered = threading.Event()
    running.client.async_infer("code", [at_work], callback=lambda **_: answered.set())
    calls = [running.client.async_infer("code", [waiting], callback=lambda **_: None) for _ in range(30)]
    deadline = time.monotonic() + 60
    while pending(running.server.ports["triton_metrics"]) < len(calls) // 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    for call in calls:
        call.cancel()
    assert answered.wait(60)


def compute_ms_per_image(client: grpc.InferenceServerClient) -> dict[int, float]:
    """For each size of a batch that `code` was given: what an image of it took, in ms."""
    batches = client.get_inference_statistics("code").model_stats[0].batch_stats
    return {
        int(batch.batch_size): batch.compute_infer.ns / 1e6 / batch.compute_infer.count / batch.batch_size
        for batch in batches
    }


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
