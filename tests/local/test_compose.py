"""deploy/compose.yaml, as far as it can be checked without a container engine."""

from __future__ import annotations

import pytest
import yaml

from worker import settings
from worker.local.kafka_server import MAX_RECORD_BYTES, MAX_REJECTED_BYTES, PARTITIONS, TOPICS
from worker.local.paths import CHECKOUT

ONCE = {"topics", "models-cpu", "models-gpu"}


@pytest.fixture(scope="module")
def compose():
    """The parsed file."""
    return yaml.safe_load((CHECKOUT / "deploy" / "compose.yaml").read_text())


def test_every_server_has_a_health_check_and_a_profile(compose):
    """What goes on running says when it serves; everything belongs to `cpu`, `gpu` or both, or is the console."""
    for name, service in compose["services"].items():
        assert name in ONCE or service["healthcheck"]["test"], name
        assert service["profiles"] == ["console"] if name == "console" else set(service["profiles"]) <= {"cpu", "gpu"}


def test_what_a_service_waits_for_exists_in_its_profiles(compose):
    """A required dependency is there in every profile of the service; an optional one in some."""
    services = compose["services"]
    for name, service in services.items():
        for dependency, condition in service.get("depends_on", {}).items():
            there = set(services[dependency]["profiles"])
            assert there >= set(service["profiles"]) or not condition.get("required", True), (name, dependency)


def test_the_workers_variables_are_settings(compose):
    """A misspelt variable or a bad value would be refused at the start of the container."""
    loaded = settings.load(environ=compose["services"]["worker"]["environment"])
    assert loaded.http.host == "0.0.0.0"
    grace_s = int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > loaded.run.drain_timeout_s


def test_the_consoles_variables_are_settings(compose):
    """It listens inside of its container, lets nobody in without users, and is given the time to end."""
    console = compose["services"]["console"]
    loaded = settings.load(environ=console["environment"])
    assert (loaded.console.host, loaded.console.auth) == ("0.0.0.0", "users")
    assert str(loaded.console.users_path) == console["volumes"][0]["target"]
    assert console["ports"] == [
        f"127.0.0.1:{port}:{port}" for port in (loaded.console.port, loaded.console.metrics_port)
    ]


def test_kafka_is_the_one_of_the_local_stack(compose):
    """Topics, partitions and the largest record are the same with containers as without."""
    environment = compose["services"]["kafka"]["environment"]
    assert environment["KAFKA_MESSAGE_MAX_BYTES"] == MAX_RECORD_BYTES
    assert environment["KAFKA_NUM_PARTITIONS"] == PARTITIONS
    script = compose["services"]["topics"]["command"][0]
    assert all(f"create {topic}" in script for topic in TOPICS)
    assert f"create {TOPICS[2]} --config max.message.bytes={MAX_REJECTED_BYTES}" in script
    assert f"--partitions {PARTITIONS} " in script


def test_ports_are_published_on_this_machine_alone(compose):
    """Nothing listens on other addresses of the host: the servers have no passwords."""
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
