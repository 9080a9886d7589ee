"""Triton's client against a server that answers wrongly: whatever it says, no image is to blame, and nothing breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest
from pydantic import SecretStr
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from worker.clients.triton import CONTROL_HEADER, InferenceFailed, Triton
from worker.errors import Unavailable
from worker.model import canary
from worker.settings import TritonSettings

VERSION = "abcdefabcdef"
PIXELS = np.full((3, 224, 224, 3), 7, np.uint8)


class Lying(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Scores everything 0.5; `bend` changes its answers."""

    def __init__(self) -> None:
        self.bend: Callable[[Any], None] = lambda _answer: None
        self.abort: tuple[grpc.StatusCode, str] | None = None
        self.orders: list[tuple[str, str]] = []

    def ModelConfig(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # gRPC names them
        config = model_config_pb2.ModelConfig(name="code")
        config.parameters["model_version"].string_value = VERSION
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryModelLoad(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.orders.append(("load", str(dict(context.invocation_metadata()).get(CONTROL_HEADER))))
        return service_pb2.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, _request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.orders.append(("unload", str(dict(context.invocation_metadata()).get(CONTROL_HEADER))))
        return service_pb2.RepositoryModelUnloadResponse()

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if self.abort:
            context.abort(*self.abort)
        count = request.inputs[0].shape[0]
        answer = service_pb2.ModelInferResponse(model_name="code", model_version="1")
        for name, width in (("embedding", 192), ("scores", 3)):
            output = answer.outputs.add()
            output.name, output.datatype = name, "FP32"
            output.shape.extend([count, width])
            answer.raw_output_contents.append(np.full((count, width), 0.5, np.float32).tobytes())
        self.bend(answer)
        return answer


@pytest.fixture
def lying() -> Iterator[tuple[Lying, str]]:
    servicer = Lying()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def triton(lying: tuple[Lying, str]) -> Iterator[Triton]:
    client = Triton(TritonSettings(url=lying[1], shared_memory="off"), 8)
    yield client
    client.close()


def scores_of(answer: Any) -> Any:
    return answer.outputs[1]


def fewer_bytes(answer: Any) -> None:
    answer.raw_output_contents[1] = answer.raw_output_contents[1][:-4]


def odd_bytes(answer: Any) -> None:
    answer.raw_output_contents[0] = answer.raw_output_contents[0][:-3]


def another_type(answer: Any) -> None:
    scores_of(answer).datatype = "FP64"
    answer.raw_output_contents[1] *= 2


def text(answer: Any) -> None:
    scores_of(answer).datatype = "BYTES"


def no_type(answer: Any) -> None:
    scores_of(answer).datatype = "FP128"


def two_heads(answer: Any) -> None:
    scores_of(answer).shape[1] = 2
    answer.raw_output_contents[1] = answer.raw_output_contents[1][: 3 * 2 * 4]


def more_rows(answer: Any) -> None:
    scores_of(answer).shape[0] = 6
    answer.raw_output_contents[1] *= 2


def flat(answer: Any) -> None:
    del scores_of(answer).shape[:]
    scores_of(answer).shape.append(9)


def nothing(answer: Any) -> None:
    del answer.outputs[1], answer.raw_output_contents[1]


def no_embedding(answer: Any) -> None:
    answer.outputs[0].name = "other"


@pytest.mark.parametrize(
    "bend",
    [fewer_bytes, odd_bytes, another_type, text, no_type, two_heads, more_rows, flat, nothing, no_embedding],
)
def test_an_answer_that_is_not_as_described_is_the_server_s_fault(
    lying: tuple[Lying, str], triton: Triton, bend: Callable[[Any], None]
) -> None:
    """It is waited for like a server that is away; mended, the same client goes on."""
    assert triton.infer(PIXELS).scores.shape == (3, 3)
    lying[0].bend = bend
    with pytest.raises(Unavailable, match="model code answered"):
        triton.infer(PIXELS)
    lying[0].bend = lambda _answer: None
    assert triton.infer(PIXELS).scores.shape == (3, 3)


def test_a_refused_call_is_told_from_a_server_that_is_away(lying: tuple[Lying, str], triton: Triton) -> None:
    """The one may be an image's fault, the other never is."""
    lying[0].abort = (grpc.StatusCode.INTERNAL, "something bad")
    with pytest.raises(InferenceFailed):
        triton.infer(PIXELS)
    lying[0].abort = (grpc.StatusCode.UNAVAILABLE, "unknown model")
    with pytest.raises(Unavailable):
        triton.infer(PIXELS)


def test_a_model_is_loaded_with_the_key_that_the_server_wants(lying: tuple[Lying, str]) -> None:
    """Triton compares the header that its option names; inference goes without it."""
    client = Triton(TritonSettings(url=lying[1], shared_memory="off", control_key=SecretStr("k3y")), 8)
    lying[0].abort = (grpc.StatusCode.INTERNAL, "stub process is not healthy")
    try:
        with pytest.raises(Unavailable, match="not healthy"):
            client.infer(PIXELS)
    finally:
        client.close()
    assert lying[0].orders == [("unload", "k3y"), ("load", "k3y")]


@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", "https_proxy", "HTTP_PROXY"])
def test_no_proxy_of_the_environment_is_asked(
    lying: tuple[Lying, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The server is on the inside, whatever the environment names for the outside."""
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = Triton(TritonSettings(url=lying[1], shared_memory="off"), 8)
    try:
        assert client.model_version() == VERSION
    finally:
        client.close()


def test_canaries_are_pictures_and_never_the_same() -> None:
    """A model that fails on everything but one picture must not pass by that one."""
    one, other = canary(), canary()
    assert one.shape == (1, 224, 224, 3) and one.dtype == np.uint8
    assert one.std() > 10 and not np.array_equal(one, other)
