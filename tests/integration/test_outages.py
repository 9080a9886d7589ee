"""Servers that are not there, go away, hang or come back: the worker waits, says for whom, and rejects nothing for
it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.environment import own_environment, topics_of
from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import REPO, Outside, Worker, running_worker, samples, unlike, wait_until
from tests.triton_processes import model_processes
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.local.server import free_port
from worker.settings import KafkaSettings

pytestmark = [pytest.mark.integration, pytest.mark.slow]
SERVICES = ("redis", "triton", "kafka")


@pytest.fixture(scope="module")
def private_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack for these tests alone, which each may break: `env` mends it for the next one."""
    directory = tmp_path_factory.mktemp("outages") / "stack"
    yield directory
    local_stack.down(directory, purge=True)


@pytest.fixture
def env(private_stack: Path) -> dict[str, str]:
    """The environment of a worker on that stack, with topics of its own."""
    env = own_environment(local_stack.up(private_stack).env) | SHORT_SESSION
    _make_topics(env)
    return env


def _make_topics(env: Mapping[str, str]) -> None:
    brokers = KafkaSettings(bootstrap_servers=[env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]])
    kafka_topics.create_topics(brokers, topics_of(env), 3)


def _pid(directory: Path, name: str) -> int:
    service = local_stack.status(directory).services[name]
    assert service is not None
    return service.pid


class Feed:
    """Images that no cache knows, and the accounts at the end."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.ids: list[str] = []
        self._jpegs = [data for name, data in samples().items() if name.endswith(".jpg")]

    def send(self, count: int) -> None:
        for _ in range(count):
            number = len(self.ids)
            self.ids.append(f"image/{number}")
            self.outside.send(self.ids[-1], unlike(self._jpegs[number % len(self._jpegs)], number))
        self.outside.flush()

    def check(self) -> None:
        self.outside.wait_verdicts(self.ids, timeout_s=120)
        wait_until(self.outside.all_committed, "every offset committed")
        assert self.outside.rejections() == {}
        assert {verdict["image_id"] for verdict in self.outside.verdicts()} == set(self.ids)


def _unready_but_alive(worker: Worker) -> bool:
    ready, live = worker.get("/readyz"), worker.get("/livez")
    assert live is not None and live.is_success
    return ready is not None and not ready.is_success


def test_each_server_is_killed_hung_and_healed(env, private_stack, tmp_path):
    """kill -9, SIGSTOP and a dead model process, one after the other: not ready but alive, then everything is
    judged.
    """
    outside = Outside(env)
    feed = Feed(outside)
    with running_worker(env, tmp_path / "worker.log") as worker:
        for name in SERVICES:
            feed.send(20)
            os.kill(_pid(private_stack, name), signal.SIGKILL)
            if name != "kafka":
                feed.send(20)
            wait_until(lambda: _unready_but_alive(worker), f"not ready without {name}", 10)
            if name == "redis":
                count = len(outside.records(outside.verdicts_topic))
                time.sleep(1.0)  # not a wait for something: nothing may come
                assert len(outside.records(outside.verdicts_topic)) == count, "a verdict record while Redis is away"
            local_stack.up(private_stack)
            wait_until(worker.is_ready, f"ready again with {name}")
            feed.check()
        for name in SERVICES:
            os.kill(_pid(private_stack, name), signal.SIGSTOP)
            try:
                wait_until(lambda: _unready_but_alive(worker), f"not ready while {name} hangs", 10)
            finally:
                os.kill(_pid(private_stack, name), signal.SIGCONT)
            wait_until(worker.is_ready, f"ready again with {name}")
            feed.send(20)
            feed.check()
        for event in ("dependency_away", "dependency_recovered"):  # killed, then hung
            assert sum(told["dependency"] == "kafka" for told in worker.events(event)) >= 2
        os.kill(model_processes(_pid(private_stack, "triton"))[0], signal.SIGKILL)

        def reloaded():
            feed.send(2)  # the other copy of the model may have answered so far
            return worker.events("model_reloaded")

        wait_until(reloaded, "the model is loaded anew after its process died")
        feed.check()
        assert worker.terminate() == 0
    outside.close()


@pytest.mark.parametrize("hanging", [("triton",), SERVICES])
def test_a_drain_ends_within_the_grace_period_whatever_hangs(env, private_stack, tmp_path, hanging):
    """SIGTERM while calls hang: the worker ends by itself, exit 0, before the kubelet would kill it; the next one does
    the rest, once.
    """
    drain_s, margin_s = 2, 15  # margin_s: worker.drainMarginSeconds of the chart
    outside = Outside(env)
    feed = Feed(outside)
    pids = [_pid(private_stack, name) for name in hanging]
    with running_worker(env, tmp_path / "first.log", ASSAY_RUN__DRAIN_TIMEOUT_S=str(drain_s)) as worker:
        feed.send(5)
        feed.check()
        os.kill(pids[hanging.index("triton")], signal.SIGSTOP)
        feed.send(60)
        wait_until(lambda: worker.metric("assay_triton_calls_in_flight") >= 2, "calls hang")
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            assert worker.terminate(drain_s + margin_s) == 0
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert "Traceback" not in worker.log_path.read_text()
    with running_worker(env, tmp_path / "second.log") as worker:
        feed.check()
        assert worker.terminate() == 0
    outside.close()


def test_servers_may_come_after_the_worker(env, private_stack, tmp_path):
    """Started before its servers the worker waits, alive and not ready, names them, and works once they are there."""
    local_stack.down(private_stack)
    worker = Worker(env, tmp_path / "worker.log")
    wait_until(lambda: worker.events("waiting_for"), "the worker says for whom it waits")
    assert worker.events("waiting_for")[0]["dependency"] == "redis"
    assert _unready_but_alive(worker)
    local_stack.up(private_stack)
    worker.wait_ready()
    outside = Outside(env)
    feed = Feed(outside)
    feed.send(10)
    feed.check()
    assert worker.terminate() == 0
    outside.close()


def test_a_server_that_never_comes_ends_the_wait(tmp_path):
    """Past the start-up limit: exit 3, and the reason names the server; SIGTERM while waiting: exit 0."""
    env = {
        **os.environ,
        "ASSAY_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "ASSAY_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "ASSAY_TRITON__URL": f"127.0.0.1:{free_port()}",
        "ASSAY_HTTP__PORT": str(free_port()),
    }
    impatient = Worker({**env, "ASSAY_RUN__STARTUP_TIMEOUT_S": "1"}, tmp_path / "impatient.log")
    assert impatient.wait(60) == 3
    assert "redis is not there" in impatient.log_tail()
    patient = Worker(env, tmp_path / "patient.log")
    wait_until(lambda: patient.events("waiting_for"), "waiting")
    assert patient.terminate() == 0


def test_the_topics_may_come_late(private_stack, tmp_path):
    """A broker without the incoming topic is no error: the worker judges once the topic is made."""
    env = own_environment(local_stack.up(private_stack).env) | SHORT_SESSION
    worker = Worker(env, tmp_path / "worker.log")
    try:
        wait_until(lambda: worker.events("model_version"), "the worker has started")
        _make_topics(env)
        worker.wait_ready()
        outside = Outside(env)
        feed = Feed(outside)
        feed.send(5)
        feed.check()
        outside.close()
    finally:
        assert worker.terminate() == 0


def test_a_new_model_version_misses_the_cache(env, private_stack, tmp_path):
    """Other models behind the same server: the running worker follows, and the same bytes are inferred again under the
    new version.
    """
    repository = tmp_path / "models"
    build = [sys.executable, "-m", "triton_models.build", "--flavour", "null", "--out", str(repository)]
    subprocess.run(build, check=True, capture_output=True, cwd=REPO)
    outside = Outside(env)
    image = next(iter(samples(1).values()))
    with running_worker(env, tmp_path / "worker.log") as worker:
        outside.send("before", image)
        outside.flush()
        before = outside.wait_verdicts(["before"])["before"]
        local_stack.up(private_stack, models=repository)
        wait_until(lambda: len(worker.events("model_version")) == 2, "the worker follows")
        wait_until(worker.is_ready, "ready again")
        outside.send("after", image)
        outside.flush()
        after = outside.wait_verdicts(["after"])["after"]
        assert after["source"] == "model"
        assert after["sha256"] == before["sha256"]
        assert after["model"]["version"] != before["model"]["version"]
        entry = outside.redis.hgetall(f"{outside.prefix}image:{after['sha256']}")
        assert {before["model"]["version"], after["model"]["version"]} <= entry.keys()
    outside.close()


def test_a_shadow_model_compares_and_never_decides(env, private_stack, tmp_path, run_cli):
    """With a share of 1 every image is scored by both models; verdicts are the first model's, the stream holds every
    comparison.
    """
    live, new = tmp_path / "live", tmp_path / "new"
    build = [sys.executable, "-m", "triton_models.build", "--weights", "triton_models/weights/demo"]
    for folder, flavour in ((live, "cpu"), (new, "null")):
        subprocess.run([*build, "--flavour", flavour, "--out", str(folder)], check=True, capture_output=True, cwd=REPO)
    address = local_stack.up(private_stack, models=live).env["ASSAY_TRITON__URL"]
    rollout = [
        sys.executable,
        "-m",
        "triton_models.rollout",
        "shadow",
        "--repository",
        str(live),
        "--server",
        address,
        "--new",
        str(new),
    ]
    subprocess.run(rollout, check=True, capture_output=True, cwd=REPO, env=env)
    outside = Outside(env)
    images = samples(20)
    for model, code in (("code_shadow", 0), ("nonesuch", 3)):
        checked = run_cli("check", "--json", env=env | {"ASSAY_SHADOW__SHARE": "1", "ASSAY_SHADOW__MODEL_NAME": model})
        (row,) = [row for row in json.loads(checked.stdout)["findings"] if row["name"] == "shadow"]
        assert (checked.returncode, row["ok"]) == (code, code == 0) and model in row["detail"]
    with running_worker(env, tmp_path / "worker.log", ASSAY_SHADOW__SHARE="1") as worker:
        outside.send_all(images)
        verdicts = outside.wait_verdicts(images)
        wait_until(
            lambda: worker.metric("assay_shadow_images_total", outcome="compared") == len(images),
            "every image compared",
        )
        assert len({verdict["model"]["version"] for verdict in verdicts.values()}) == 1
        entries = [fields for _, fields in outside.redis.xrange(f"{outside.prefix}shadow:code_shadow")]
        assert {entry["image_id"] for entry in entries} == set(images)
        for entry in entries:
            verdict = verdicts[entry["image_id"]]
            assert (
                float(entry["score_linear"]) == verdict["scores"]["linear"] and entry["decision"] == verdict["decision"]
            )
            assert entry["model"] == verdict["model"]["version"] != entry["shadow_model"]
        assert worker.terminate() == 0
    outside.close()
