"""The local stack itself, on its real servers; a model repository of a few lines stands in for the real models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis
import tritonclient.grpc as grpcclient
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from tritonclient.utils import InferenceServerException

from tests.triton_processes import model_processes
from worker.clients import kafka_topics
from worker.clients.triton import CONTROL_HEADER
from worker.local import processes, stack
from worker.local.kafka_server import PARTITIONS, TOPICS
from worker.local.triton_server import TritonServer
from worker.settings import KafkaSettings

pytestmark = pytest.mark.integration

_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        batches = [pb_utils.get_input_tensor_by_name(request, "%(input)s").as_numpy() for request in requests]
        answers = [np.full((len(batch), %(width)d), 0.5, np.float32) for batch in batches]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("%(output)s", answer)]) for answer in answers]
"""
_IMAGES = '{ name: "images" data_type: TYPE_UINT8 dims: [224, 224, 3] }'
_EMBEDDING = '{ name: "embedding" data_type: TYPE_FP32 dims: [192] }'
_SCORES = '{ name: "scores" data_type: TYPE_FP32 dims: [3] }'
_STEPS = """ensemble_scheduling { step [
  { model_name: "code_encoder" model_version: -1
    input_map { key: "images" value: "images" } output_map { key: "embedding" value: "embedding" } },
  { model_name: "code_heads" model_version: -1
    input_map { key: "embedding" value: "embedding" } output_map { key: "scores" value: "scores" } } ] }"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract's three models with constant answers: an ensemble of two Python models."""
    repository = tmp_path_factory.mktemp("models")
    for name, kind, inputs, outputs in (
        ("code", 'platform: "ensemble" ' + _STEPS, _IMAGES, f"{_EMBEDDING}, {_SCORES}"),
        ("code_encoder", 'backend: "python"', _IMAGES, _EMBEDDING),
        ("code_heads", 'backend: "python"', _EMBEDDING, _SCORES),
    ):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(
            f'name: "{name}" {kind} max_batch_size: 64 input [{inputs}] output [{outputs}]'
        )
    (repository / "code_encoder" / "1" / "model.py").write_text(
        _MODEL % {"input": "images", "output": "embedding", "width": 192}
    )
    (repository / "code_heads" / "1" / "model.py").write_text(
        _MODEL % {"input": "embedding", "output": "scores", "width": 3}
    )
    return repository


@pytest.fixture(scope="module")
def mended_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run directory of one stack for all tests that leave it whole: each begins with `up`."""
    directory = tmp_path_factory.mktemp("mended") / "stack"
    yield directory
    stack.down(directory, purge=True)


def pid_of(status: stack.StackStatus, name: str) -> int:
    service = status.services[name]
    assert service is not None
    return service.pid


def processes_below(directory: Path) -> list[str]:
    """Command lines of the living processes that name the run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in command:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def test_everything_serves_when_up_returns_and_a_second_up_changes_nothing(mended_stack, models):
    """After `up` the topics are there, Redis answers, and a second `up` finds the same processes at the same
    addresses.
    """
    first = stack.up(mended_stack, models=models)
    settings = KafkaSettings(bootstrap_servers=[first.env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]])
    partitions = {topic.name: topic.partitions for topic in kafka_topics.topics(settings)}
    assert {name: partitions.get(name) for name in TOPICS} == dict.fromkeys(TOPICS, PARTITIONS)
    assert redis.Redis.from_url(first.env["ASSAY_REDIS__URL"]).ping()
    assert stack.up(mended_stack, models=models) == first
    assert stack.discover(mended_stack) == first.env


def test_only_the_stack_itself_loads_models(mended_stack, models):
    """Loading a model runs its code: a web page's request to the local port, which needs no answer, loads nothing."""
    stack.up(mended_stack, services=["triton"], models=models)
    ports = json.loads((mended_stack / "stack.json").read_text())["ports"]
    address = f"http://127.0.0.1:{ports['triton_http']}/v2"
    page = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
    code = "raise SystemExit(1)"
    planted = {"parameters": {"config": '{"backend": "python"}', "file:1/model.py": b64encode(code.encode()).decode()}}
    for path, body in (
        ("repository/index", {}),
        ("repository/models/code/unload", {}),
        ("repository/models/planted/load", planted),
        ("systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 1}),
    ):
        answer = httpx.post(f"{address}/{path}", headers=page, content=json.dumps(body), trust_env=False)
        assert answer.status_code == 403, f"{path}: {answer.status_code} {answer.text}"
        assert "restricted" in answer.text
    with grpcclient.InferenceServerClient(f"127.0.0.1:{ports['triton_grpc']}") as client:
        for order in (client.get_model_repository_index, partial(client.unload_model, "code")):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                order()
        key = Path(stack.status(mended_stack).env["ASSAY_TRITON__CONTROL_KEY_FILE"]).read_text(encoding="ascii")
        client.load_model("code", headers={CONTROL_HEADER: key})  # as the worker does
    server = TritonServer(mended_stack, ports, models)
    server.check()
    server.heal()  # the stack has the key
    assert server.control_key not in json.dumps(stack.status(mended_stack).env)
    assert (mended_stack / "triton" / "control.key").stat().st_mode & 0o077 == 0


def test_concurrent_ups_start_one_stack(private_stack):
    """Several `up` at the same time end with one server, the same for all of them."""
    code = (
        "from pathlib import Path; from worker.local import stack; "
        f"print(stack.up(Path({str(private_stack)!r}), services=['redis']).to_json())"
    )
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: subprocess.check_output([sys.executable, "-c", code], text=True), range(3)))
    assert len({pid_of(stack.StackStatus.model_validate_json(answer), "redis") for answer in answers}) == 1


@pytest.mark.parametrize("victim", ["kafka", "redis", "triton"])
def test_a_killed_server_comes_back_at_its_address_with_its_data(mended_stack, models, victim):
    """After kill -9 of one server `up` starts that one again, alone, at the same address, and what was stored is still
    there.
    """
    before = stack.up(mended_stack, models=models)
    store = redis.Redis.from_url(before.env["ASSAY_REDIS__URL"])
    store.set("kept", "yes")
    store.config_set("appendfsync", "always")  # what is under test is the restart, not the last second
    store.set("kept too", "yes")
    producer = KafkaProducer(bootstrap_servers=before.env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"], acks="all")
    sent = producer.send(TOPICS[0], b"kept", partition=0).get(timeout=30)
    producer.close()

    os.kill(pid_of(before, victim), signal.SIGKILL)
    after = stack.up(mended_stack, models=models)

    assert after.env == before.env
    assert {name for name in before.services if pid_of(before, name) != pid_of(after, name)} == {victim}
    assert store.mget("kept", "kept too") == [b"yes", b"yes"]
    consumer = KafkaConsumer(bootstrap_servers=after.env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"], consumer_timeout_ms=20_000)
    consumer.assign([TopicPartition(TOPICS[0], 0)])
    consumer.seek(TopicPartition(TOPICS[0], 0), sent.offset)
    assert next(consumer).value == b"kept"
    consumer.close()


def test_a_killed_model_process_is_healed(mended_stack, models):
    """Triton goes on calling itself ready when a model's process is gone; `up` sees that no inference works and heals
    it in place.
    """
    before = stack.up(mended_stack, services=["triton"], models=models)
    (copy,) = model_processes(pid_of(before, "triton"), "code_heads")
    os.kill(copy, signal.SIGKILL)
    lines: list[str] = []
    after = stack.up(mended_stack, services=["triton"], models=models, report=lines.append)
    assert any("not healthy" in line for line in lines)
    assert pid_of(after, "triton") == pid_of(before, "triton")


def test_a_killed_triton_leaves_no_orphans(private_stack, models):
    """The model processes and shared memory of a Triton that was killed are gone after `down`, those of others are not
    touched.
    """
    status = stack.up(private_stack, services=["triton"], models=models)
    server = TritonServer(
        private_stack.resolve(), json.loads((private_stack / "stack.json").read_text())["ports"], models
    )
    assert list(Path("/dev/shm").glob(f"{server.shared_memory_prefix}*"))
    foreign = Path(f"/dev/shm/assay_other_{os.getpid()}")
    foreign.touch()
    try:
        os.kill(pid_of(status, "triton"), signal.SIGKILL)
        stack.down(private_stack)
        assert not list(Path("/dev/shm").glob(f"{server.shared_memory_prefix}*"))
        assert foreign.exists()
    finally:
        foreign.unlink()
    assert processes_below(private_stack) == []


def test_a_server_that_lives_but_does_not_answer_is_restarted(private_stack, monkeypatch):
    """A Redis that was stopped in its tracks (SIGSTOP) is replaced, at its address."""
    monkeypatch.setattr("worker.local.redis_server.RedisServer.patience_s", 0.5)
    before = stack.up(private_stack, services=["redis"])
    os.kill(pid_of(before, "redis"), signal.SIGSTOP)
    after = stack.up(private_stack, services=["redis"])
    assert after.env == before.env
    assert pid_of(after, "redis") != pid_of(before, "redis")


def test_changed_models_are_served(mended_stack, models, tmp_path):
    """`up` with another repository restarts Triton alone."""
    before = stack.up(mended_stack, services=["redis", "triton"], models=models)
    copy = shutil.copytree(models, tmp_path / "copy")
    after = stack.up(mended_stack, services=["redis", "triton"], models=copy)
    assert pid_of(after, "triton") != pid_of(before, "triton")
    assert pid_of(after, "redis") == pid_of(before, "redis")


def test_down_leaves_no_process_and_keeps_the_data(private_stack, models):
    """After `down` nothing of the stack runs; the next `up` is at the same addresses with the data; `purge` removes the
    directory.
    """
    before = stack.up(private_stack, models=models)
    redis.Redis.from_url(before.env["ASSAY_REDIS__URL"]).set("kept", "yes")
    assert stack.down(private_stack) == stack.StackStatus(services=dict.fromkeys(stack.SERVICES), env={})
    assert processes_below(private_stack) == []
    assert stack.discover(private_stack) is None
    after = stack.up(private_stack, services=["redis"])
    assert redis.Redis.from_url(after.env["ASSAY_REDIS__URL"]).get("kept") == b"yes"
    assert after.env == before.env
    stack.down(private_stack, purge=True)
    assert not private_stack.exists()


def test_the_stack_survives_the_end_of_its_command(private_stack):
    """Ctrl-C for the command, or its end, does not reach the servers: they are in sessions of their own."""
    status = stack.up(private_stack, services=["redis"])
    assert os.getsid(pid_of(status, "redis")) == pid_of(status, "redis")


def test_a_record_of_25_megabytes_goes_through(stack, worker_env):
    """The broker takes and gives back the largest image that the worker's default limit allows."""
    image = os.urandom(25_000_000)
    topic = worker_env["ASSAY_KAFKA__INCOMING_TOPIC"]
    producer = KafkaProducer(
        bootstrap_servers=worker_env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"], max_request_size=32 * 1024 * 1024, acks="all"
    )
    producer.send(topic, image, partition=0).get(timeout=60)
    producer.close()
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=worker_env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"],
        auto_offset_reset="earliest",
        consumer_timeout_ms=60_000,
    )
    assert next(consumer).value == image
    consumer.close()


def test_a_recycled_pid_is_never_taken_for_the_server(private_stack):
    """A pid file whose pid now belongs to another process counts as not running, and `down` leaves that process
    alone.
    """
    status = stack.up(private_stack, services=["redis"])
    pid_file = private_stack / "redis" / "pid.json"
    written = json.loads(pid_file.read_text())
    os.kill(pid_of(status, "redis"), signal.SIGKILL)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        pid_file.write_text(json.dumps(written | {"pid": bystander.pid}))
        assert processes.running(pid_file) is None
        assert stack.discover(private_stack) is None
        stack.down(private_stack)
        assert bystander.poll() is None
        bystander.kill()


def test_an_up_that_was_killed_is_taken_over(private_stack):
    """The servers that a killed `up` has started are waited for by the next one, not started twice."""
    code = (
        "from pathlib import Path; from worker.local import stack; "
        f"stack.up(Path({str(private_stack)!r}), services=['redis', 'kafka'])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as command:
        while stack.discover(private_stack) is None:
            assert command.poll() is None
        command.kill()
    status = stack.up(private_stack, services=["redis", "kafka"])
    assert len(processes_below(private_stack / "kafka")) == 1
    assert pid_of(status, "kafka")
