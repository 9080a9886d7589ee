"""https:// references against a real TLS server on 127.0.0.1, its faults included."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.clients.tls_server import BODY, HOST, Make, Server, get, rejected
from worker.clients.fetch_body import collect_up_to
from worker.contract import ImageReference
from worker.errors import Rejected, RejectReason, SettingsError, Stopping, Unavailable


def test_fetches_and_verifies(server: Server, make: Make) -> None:
    """The body comes back byte for byte, its hash verified; the request names the host and asks for no compression, no
    cookie.
    """
    fetcher = make()
    for _ in range(2):
        assert get(fetcher, server, "/ok/a%20b?c=%2F", sha256=hashlib.sha256(BODY).hexdigest()) == BODY
    assert server.handler.requests == {"/ok/a%20b?c=%2F": 2}
    seen = server.handler.headers_seen[1]
    assert seen["host"] == f"{HOST}:{server.port}"
    assert seen["accept-encoding"] == "identity"
    assert "cookie" not in seen
    assert server.handler.connections["tls"] == 1


def test_another_hash_and_nothing(server: Server, make: Make) -> None:
    """Other bytes than promised are `hash_mismatch`, no bytes are `empty`."""
    with pytest.raises(Rejected) as caught:
        get(make(), server, "/ok", sha256="0" * 64)
    assert caught.value.reason is RejectReason.HASH_MISMATCH
    assert rejected(make(), server, "/status/200").reason is RejectReason.EMPTY


def test_threads_share_a_fetcher(server: Server, make: Make) -> None:
    """Many fetches at once get their own bytes, on no more connections than threads."""
    fetcher = make()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda n: get(fetcher, server, f"/ok/{n}"), range(64)))
    assert bodies == [BODY] * 64
    assert server.handler.connections["tls"] <= 8


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 416])
def test_what_the_server_refuses_fails_at_once(server: Server, make: Make, status: int) -> None:
    """An answer that speaks of this object rejects it, without another try."""
    refusal = rejected(make(), server, f"/status/{status}" if status != 206 else "/partial")
    assert refusal.reason is (RejectReason.EMPTY if status == 204 else RejectReason.FETCH_FAILED)
    assert refusal.attempts == 1
    assert sum(server.handler.requests.values()) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 501, 502, 503, 504])
def test_a_busy_server_is_waited_for(server: Server, make: Make, status: int) -> None:
    """An overloaded or broken host is no fault of the image."""
    with pytest.raises(Unavailable, match=f"{HOST}.*{status}") as caught:
        get(make(), server, f"/status/{status}")
    assert caught.value.dependency == "storage"


@pytest.mark.parametrize("path", ["/status/425", "/cut", "/garbage"])
def test_what_breaks_is_tried_again_and_then_rejected(server: Server, make: Make, path: str) -> None:
    """An object that fails while its host answers gets max_attempts tries, with growing waits between them."""
    waits: list[float] = []
    refusal = rejected(make(sleep=waits.append), server, path)
    assert (refusal.reason, refusal.attempts) == (RejectReason.FETCH_FAILED, 3)
    assert server.handler.requests[path] == 3
    assert len(waits) == 2
    assert all(0 <= wait <= 2 for wait in waits)


def test_a_try_may_succeed(server: Server, make: Make) -> None:
    """A body that broke off twice and then arrives is an image."""
    assert get(make(), server, "/flaky") == BODY
    assert server.handler.requests["/flaky"] == 3


def test_stopping_cuts_the_wait_short(server: Server, make: Make) -> None:
    """What the injected sleep raises ends the fetch: the item stays uncommitted."""

    def stop(_: float) -> None:
        raise Stopping

    with pytest.raises(Stopping):
        get(make(sleep=stop), server, "/cut")


def test_too_large_is_refused_before_and_while_reading(server: Server, make: Make) -> None:
    """A declared size is believed at once; an endless body is cut off."""
    assert rejected(make(), server, "/declared").reason is RejectReason.TOO_LARGE
    assert rejected(make(), server, "/endless").reason is RejectReason.TOO_LARGE


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 300))
def test_no_more_than_the_limit_and_a_chunk_is_read(chunks: list[bytes], limit: int) -> None:
    """A body within the limit comes back whole; of a larger one nothing is read beyond the chunk that passes the
    limit.
    """
    taken: list[bytes] = []

    def feed() -> Iterator[bytes]:
        for chunk in chunks:
            taken.append(chunk)
            yield chunk

    whole = b"".join(chunks)
    if len(whole) <= limit:
        assert collect_up_to(limit)(feed(), None) == whole
    else:
        with pytest.raises(Rejected, match="too_large"):
            collect_up_to(limit)(feed(), None)
        assert len(b"".join(taken[:-1])) <= limit


def test_compressed_bodies_are_refused(server: Server, make: Make) -> None:
    """Identity was asked for; a bomb is not unpacked."""
    refusal = rejected(make(), server, "/gzip")
    assert refusal.reason is RejectReason.FETCH_FAILED
    assert "gzip" in refusal.detail


@pytest.mark.parametrize("path", ["/trickle", "/slowheaders"])
def test_a_trickling_server_meets_the_deadline(server: Server, make: Make, path: str) -> None:
    """A byte now and then keeps no thread: the deadline is for the whole try, and the host counts as away."""
    with pytest.raises(Unavailable, match="does not answer in time"):
        get(make(timeout_ms=200), server, path)
    assert sum(server.handler.requests.values()) == 1


def test_a_silent_server_is_waited_for(server: Server, make: Make) -> None:
    """A host that takes the request and says nothing counts as away."""
    with pytest.raises(Unavailable, match="does not answer"):
        get(make(timeout_ms=200), server, "/silent")


def test_a_connection_that_ends_without_an_answer_is_waited_for(server: Server, make: Make) -> None:
    """A host that hangs up counts as away; a kept-alive connection that has gone stale is replaced first."""
    fetcher = make()
    get(fetcher, server, "/ok")
    with pytest.raises(Unavailable, match="does not answer"):
        get(fetcher, server, "/hangup")
    assert server.handler.requests["/hangup"] == 2


def test_nobody_there_is_waited_for(server: Server, make: Make) -> None:
    """A refused connection is the host's fault."""
    fetcher = make()
    server.stop.set()
    server.shutdown()
    server.server_close()
    with pytest.raises(Unavailable, match=f"{HOST}:{server.port} cannot be reached"):
        get(fetcher, server, "/ok")


def test_a_server_without_a_trusted_certificate_is_waited_for(server: Server, make: Make, tmp_path: Path) -> None:
    """Another authority, or another name in the certificate, is a fault of the installation."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(Unavailable, match="certificate"):
        get(make(https_ca_path=other), server, "/ok")
    with pytest.raises(Unavailable, match="certificate"):
        get(make(https_hosts=[f"else.example:{server.port}"]), server, "/ok", host="else.example")
    assert not server.handler.requests


def test_plain_http_on_the_port_is_waited_for(make: Make) -> None:
    """A handshake that finds no TLS is a fault of the installation."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Unavailable, match="cannot be reached"):
            make(https_hosts=[f"{HOST}:{port}"]).fetch(ImageReference(uri=f"https://{HOST}:{port}/"))
        thread.join()


def test_a_ca_file_that_cannot_be_read_stops_the_start(make: Make, tmp_path: Path) -> None:
    """The variable is named."""
    for path in (tmp_path / "missing.pem", tmp_path):
        with pytest.raises(SettingsError, match="ASSAY_REFERENCES__HTTPS_CA_PATH"):
            make(https_ca_path=path)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=80))
def test_any_path_gives_bytes_or_a_clean_error(server: Server, make: Make, path: str) -> None:
    """Whatever stands behind an allowed host, the fetch gives the body or one of the two errors that the caller
    knows.
    """
    with closing(make(timeout_ms=1000)) as fetcher:
        try:
            body = get(fetcher, server, "/ok" + path)
        except (Rejected, Unavailable) as error:
            body = error
    assert body == BODY or isinstance(body, Rejected | Unavailable)
