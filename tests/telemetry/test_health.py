"""The port for operators, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from worker.errors import SettingsError
from worker.telemetry.health import HealthServer
from worker.telemetry.metrics import Metrics


class State:
    """What the checks answer; a test changes it."""

    live: tuple[bool, dict[str, Any]] = (True, {"loop": "moved 0.1 s ago"})
    ready: tuple[bool, dict[str, Any]] = (False, {"redis": "ok", "triton": "down: connection refused"})
    broken = False

    def livez(self) -> tuple[bool, dict[str, Any]]:
        if self.broken:
            raise RuntimeError("no loop")
        return self.live

    def readyz(self) -> tuple[bool, dict[str, Any]]:
        return self.ready


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def server(state: State) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1", 0, Metrics(), state.livez, state.readyz)
    server.start()
    yield server
    server.stop()


def ask(server: HealthServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers["Content-Type"], body


def test_metrics_in_both_formats(server: HealthServer) -> None:
    """Prometheus' text by default, OpenMetrics where it is asked for."""
    status, content_type, body = ask(server, "/metrics?x=1")
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert b"\nassay_records_consumed_total 0.0\n" in body
    status, content_type, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_probes_name_each_check(server: HealthServer, state: State) -> None:
    """200 when well, 503 when not; the body says which check fails."""
    status, content_type, body = ask(server, "/livez")
    assert (status, content_type) == (200, "application/json; charset=utf-8")
    assert json.loads(body) == {"status": "ok", "checks": {"loop": "moved 0.1 s ago"}}
    status, _, body = ask(server, "/readyz")
    assert status == 503
    assert json.loads(body) == {"status": "failing", "checks": state.ready[1]}
    state.ready = (True, {})
    assert ask(server, "/readyz")[0] == 200


def test_a_check_that_breaks_is_a_failing_check(server: HealthServer, state: State) -> None:
    """A probe is answered even when its check raises."""
    state.broken = True
    status, _, body = ask(server, "/livez")
    assert status == 503
    assert json.loads(body)["checks"] == {"error": "RuntimeError: no loop"}


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/elsewhere"])
def test_head_has_the_headers_of_get(server: HealthServer, path: str) -> None:
    """HEAD answers the same status and no body."""
    status, _, body = ask(server, path, "HEAD")
    assert status == ask(server, path)[0]
    assert body == b""


def test_other_paths_and_methods(server: HealthServer) -> None:
    """404 says what is served; nothing can be posted."""
    status, _, body = ask(server, "/")
    assert status == 404
    assert b"/readyz" in body
    assert ask(server, "/metrics", "POST")[0] == 501


def test_a_silent_client_does_not_stop_the_others(server: HealthServer) -> None:
    """Each request has its own thread."""
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server, "/livez")[0] == 200


def test_a_port_in_use_names_the_variable(server: HealthServer, state: State) -> None:
    """The error says which variable to change."""
    with pytest.raises(SettingsError, match=f"ASSAY_HTTP__PORT={server.port}.*already in use"):
        HealthServer("127.0.0.1", server.port, Metrics(), state.livez, state.readyz)


def test_stop_frees_the_port(state: State) -> None:
    """The port can be taken again at once; stopping twice, or before the start, is fine."""
    first = HealthServer("127.0.0.1", 0, Metrics(), state.livez, state.readyz)
    first.start()
    ask(first, "/livez")
    first.stop()
    first.stop()
    second = HealthServer("127.0.0.1", first.port, Metrics(), state.livez, state.readyz)
    assert second.port == first.port
    second.stop()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", second.port)):
        pass
