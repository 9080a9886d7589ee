"""The stack's answers where nothing runs, and its errors: no server is started here."""

from __future__ import annotations

import json
import socket

import pytest

from triton_models import build
from worker.errors import Unavailable
from worker.local import stack
from worker.local.redis_server import RedisServer
from worker.local.server import HOST, free_port, is_free


def test_status_is_the_contracts_json_when_nothing_runs(tmp_path):
    """Each service is null and there is no env; nothing is written."""
    status = stack.status(tmp_path / "none")
    assert json.loads(status.to_json()) == {"services": {"kafka": None, "redis": None, "triton": None}, "env": {}}
    assert stack.discover(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_down_where_nothing_ever_ran_is_no_error(tmp_path):
    """`down` and `down --purge` of a directory that is not there do nothing."""
    assert stack.down(tmp_path / "none", purge=True).env == {}


def test_a_running_service_has_pid_and_address(tmp_path):
    """The JSON of a running service holds its own pid and `host:port`."""
    status = stack.StackStatus(services={"redis": stack.ServiceStatus(pid=7, address="127.0.0.1:6379")}, env={"A": "b"})
    assert json.loads(status.to_json()) == {
        "services": {"redis": {"pid": 7, "address": "127.0.0.1:6379"}},
        "env": {"A": "b"},
    }


def test_an_unreadable_plan_names_the_directory_to_remove(tmp_path):
    """A damaged stack.json ends with an error that says what to do."""
    (tmp_path / "stack.json").write_text('{"services": ["redis"]}')
    with pytest.raises(Unavailable, match=f"remove {tmp_path}"):
        stack.status(tmp_path)


def test_a_taken_port_is_named(tmp_path, monkeypatch):
    """A server whose port another program took does not start somewhere else: the error names the port and the way
    out.
    """
    monkeypatch.setattr("worker.local.server._KILL_S", 0.0)
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(Unavailable, match=rf"port {port}.*--purge"):
            RedisServer(tmp_path, {"redis": port}).start()


def test_free_ports_can_be_listened_on():
    """A port that is offered as free takes a listener."""
    port = free_port()
    with socket.create_server((HOST, port)):
        assert not is_free(port)


def test_another_configuration_changes_the_fingerprint(tmp_path):
    """What a server would be started with differently shows in its fingerprint; the same again does not."""
    first, again, other = (RedisServer(tmp_path, {"redis": port}).fingerprint() for port in (20001, 20001, 20002))
    assert first == again != other


def test_damaged_models_are_named_before_anything_starts(tmp_path):
    """A configuration cut off, of which Triton would say that not all models loaded: the file, and no run directory."""
    build.build(None, "null", tmp_path / "models")
    configuration = tmp_path / "models" / "code" / "config.pbtxt"
    configuration.write_text(configuration.read_text()[:-100])
    with pytest.raises(Unavailable, match=f"{configuration}: damaged"):
        stack.up(tmp_path / "none", services=["triton"], models=tmp_path / "models")
    assert not (tmp_path / "none").exists()
