"""https:// references against a real TLS server on 127.0.0.1, its faults included."""

from __future__ import annotations

import gzip
import hashlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.addresses import forbidden
from worker.clients.fetch import Fetcher
from worker.clients.fetch_body import collect_up_to
from worker.contract import ImageReference
from worker.errors import Rejected, RejectReason, SettingsError, Stopping, Unavailable
from worker.settings import LimitSettings, ReferenceSettings

HOST = "img.example.org"
LIMIT = 100_000
BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """/status/N answers N, /ok the body; the other paths misbehave as they are called. `requests` counts the paths."""

    protocol_version = "HTTP/1.1"
    requests: Counter[str]
    headers_seen: list[dict[str, str]]
    connections: Counter[str]

    def setup(self) -> None:
        self.connections["tls"] += 1
        super().setup()

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        self.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.split("/")[1]
        {"ok": self.ok, "status": self.status}.get(name, getattr(self, f"serve_{name}", self.ok))()

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def ok(self) -> None:
        self.answer(200, BODY, Set_Cookie="a=b")

    def status(self) -> None:
        self.answer(int(self.path.split("/")[2]), b"")

    def serve_redirect(self) -> None:
        self.answer(302, Location=self.path.removeprefix("/redirect/"))

    def serve_hop(self) -> None:
        self.answer(301, Location=f"/hop/{int(self.path.split('/')[2]) + 1}")

    def serve_nowhere(self) -> None:
        self.answer(302)

    def serve_declared(self) -> None:
        self.answer(200, b"", length=LIMIT + 1)
        self.close_connection = True

    def serve_endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = b"x" * 8192
        while True:  # until the client hangs up
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def serve_cut(self) -> None:
        self.answer(200, BODY[:100], length=len(BODY))
        self.close_connection = True

    def serve_flaky(self) -> None:
        if self.requests[self.path] < 3:
            self.serve_cut()
        else:
            self.ok()

    def serve_trickle(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")
        self.drip(b"x" * 60)

    def serve_slowheaders(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Slow: very\r\n\r\nbody")

    def serve_silent(self) -> None:
        self.connections["silent"] += 1
        self.server.stop.wait(30)
        self.close_connection = True

    def serve_hangup(self) -> None:
        self.close_connection = True

    def serve_garbage(self) -> None:
        self.wfile.write(b"220 smtp.example.org ESMTP\r\n")
        self.close_connection = True

    def serve_gzip(self) -> None:
        self.answer(200, gzip.compress(b"\0" * 10_000_000), Content_Encoding="gzip")

    def serve_partial(self) -> None:
        self.answer(206, b"part")

    def drip(self, data: bytes) -> None:
        """All of `data` in about 3 seconds, no pause longer than the deadline of the tests."""
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.server.stop.wait(0.05)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext) -> None:
        self.stop = threading.Event()
        self.handler = type(
            "Counting", (Handler,), {"requests": Counter(), "headers_seen": [], "connections": Counter()}
        )
        super().__init__(("127.0.0.1", 0), self.handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_path(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "*.wild.example", "127.0.0.1").configure_cert(context)
    server = Server(context)
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


def local(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


Make = Callable[..., Fetcher]


@pytest.fixture
def make(server: Server, ca_path: Path) -> Iterator[Make]:
    """A fetcher whose names all lead to the server; keywords change its settings."""
    made: list[Fetcher] = []

    def make(
        *,
        resolve: Callable[[str, int], list[str]] = local,
        sleep: Callable[[float], None] = lambda _: None,
        **changes: Any,
    ) -> Fetcher:
        values = {
            "schemes": ["https"],
            "https_hosts": [f"{HOST}:{server.port}", f"*.wild.example:{server.port}"],
            "https_ca_path": ca_path,
            "allow_private_addresses": True,
            "max_attempts": 3,
            "timeout_ms": 5000,
        }
        made.append(
            Fetcher(
                ReferenceSettings(**(values | changes)),
                LimitSettings(max_image_bytes=LIMIT),
                sleep=sleep,
                resolve=resolve,
            )
        )
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


def get(fetcher: Fetcher, server: Server, path: str, host: str = HOST, sha256: str | None = None) -> bytes:
    return fetcher.fetch(ImageReference(uri=f"https://{host}:{server.port}{path}", sha256=sha256))


def rejected(fetcher: Fetcher, server: Server, path: str, host: str = HOST) -> Rejected:
    with pytest.raises(Rejected) as caught:
        get(fetcher, server, path, host)
    return caught.value


def test_fetches_and_verifies(server: Server, make: Make) -> None:
    """The body comes back byte for byte, its hash verified; the request names the host and asks for no compression, no cookie."""
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
    """A body within the limit comes back whole; of a larger one nothing is read beyond the chunk that passes the limit."""
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


def test_redirects_are_off(server: Server, make: Make) -> None:
    """A redirect is denied, even to the same host, and names the setting that allows it."""
    refusal = rejected(make(), server, "/redirect//ok")
    assert refusal.reason is RejectReason.FETCH_DENIED
    assert "ASSAY_REFERENCES__MAX_REDIRECTS" in refusal.detail
    assert server.handler.requests == {"/redirect//ok": 1}


def test_allowed_redirects_are_followed(server: Server, make: Make) -> None:
    """Relative and absolute targets on the list are followed, up to the number allowed."""
    fetcher = make(max_redirects=2)
    assert get(fetcher, server, "/redirect//ok") == BODY
    assert get(fetcher, server, f"/redirect/https://a.wild.example:{server.port}/ok") == BODY
    refusal = rejected(fetcher, server, "/hop/0")
    assert refusal.reason is RejectReason.FETCH_FAILED
    assert server.handler.requests["/hop/2"] == 1
    assert "/hop/3" not in server.handler.requests


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://evil.example/", RejectReason.FETCH_DENIED),
        (f"https://{HOST}/", RejectReason.FETCH_DENIED),
        ("http://img.example.org/", RejectReason.FETCH_DENIED),
        ("file:///etc/passwd", RejectReason.FETCH_DENIED),
        ("s3://bucket/key", RejectReason.FETCH_DENIED),
        ("//127.0.0.1/", RejectReason.FETCH_DENIED),
        ("https://u:p@img.example.org/", RejectReason.FETCH_DENIED),
        ("https://[::1/", RejectReason.FETCH_FAILED),
    ],
)
def test_each_hop_is_checked(server: Server, make: Make, location: str, reason: RejectReason) -> None:
    """A redirect leads nowhere that the reference itself may not name."""
    assert rejected(make(max_redirects=5), server, f"/redirect/{location}").reason is reason
    assert sum(server.handler.requests.values()) == 1


def test_a_redirect_without_a_location_fails(server: Server, make: Make) -> None:
    """A redirect to nothing is the object's fault."""
    assert rejected(make(max_redirects=5), server, "/nowhere").reason is RejectReason.FETCH_FAILED


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%lo"]
)
def test_names_that_lead_inside_are_denied(server: Server, make: Make, address: str) -> None:
    """An allowed name with a private address is denied, and no connection is made."""
    refusal = rejected(make(allow_private_addresses=False, resolve=lambda *_: [address]), server, "/ok")
    assert refusal.reason is RejectReason.FETCH_DENIED
    assert "ASSAY_REFERENCES__ALLOW_PRIVATE_ADDRESSES" in refusal.detail
    assert server.handler.connections["tls"] == 0


def test_a_literal_address_needs_both_permissions(server: Server, make: Make) -> None:
    """A listed address is still checked; an unlisted one is denied although its range is allowed."""
    listed = [f"127.0.0.1:{server.port}"]
    resolve = lambda host, _: [host]  # noqa: E731 - shorter than a function
    assert get(make(https_hosts=listed, resolve=resolve), server, "/ok", host="127.0.0.1") == BODY
    assert (
        rejected(
            make(https_hosts=listed, resolve=resolve, allow_private_addresses=False), server, "/ok", host="127.0.0.1"
        ).reason
        is RejectReason.FETCH_DENIED
    )
    assert rejected(make(resolve=resolve), server, "/ok", host="127.0.0.1").reason is RejectReason.FETCH_DENIED


def test_rebinding_the_name_does_not_help(server: Server, make: Make) -> None:
    """The name is looked up once a connection: the address that was checked is the one that is connected to."""
    answers = [["127.0.0.1"], ["0.0.0.0"]]
    asked: list[str] = []

    def rebind(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    fetcher = make(resolve=rebind)
    assert get(fetcher, server, "/ok") == BODY
    assert asked == [HOST]
    fetcher = make(resolve=rebind)  # no connection is kept: the second answer is checked in its turn
    assert rejected(fetcher, server, "/ok").reason is RejectReason.FETCH_DENIED
    assert server.handler.connections["tls"] == 1


def test_a_forbidden_address_among_others_is_left_out(server: Server, make: Make) -> None:
    """Only the allowed addresses of a name are connected to: the allowed one is dead, and 0.0.0.0 would have reached the server."""
    with pytest.raises(Unavailable, match="cannot be reached"):
        get(make(resolve=lambda *_: ["0.0.0.0", "127.0.0.2"]), server, "/ok")
    assert server.handler.connections["tls"] == 0


def test_the_next_address_is_tried(server: Server, make: Make) -> None:
    """A name with a dead address and a living one works."""
    assert get(make(resolve=lambda *_: ["127.0.0.2", "127.0.0.1"]), server, "/ok") == BODY


def test_names_that_cannot_be_looked_up(server: Server, make: Make) -> None:
    """A name on the list is waited for; one that a producer invents below a wildcard is rejected after its tries."""

    def unknown(*_: Any) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def failing(*_: Any) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(Unavailable, match=f"{HOST}.*Name or service not known"):
        get(make(resolve=unknown), server, "/ok")
    refusal = rejected(make(resolve=unknown), server, "/ok", host="invented.wild.example")
    assert (refusal.reason, refusal.attempts) == (RejectReason.FETCH_FAILED, 3)
    with pytest.raises(Unavailable, match="Temporary failure"):
        get(make(resolve=failing), server, "/ok", host="invented.wild.example")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=80))
def test_any_path_gives_bytes_or_a_clean_error(server: Server, make: Make, path: str) -> None:
    """Whatever stands behind an allowed host, the fetch gives the body or one of the two errors that the caller knows."""
    with closing(make(timeout_ms=1000)) as fetcher:
        try:
            body = get(fetcher, server, "/ok" + path)
        except (Rejected, Unavailable) as error:
            body = error
    assert body == BODY or isinstance(body, Rejected | Unavailable)


def test_proxies_of_the_environment_are_ignored(server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets between by setting a variable."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(make(), server, "/ok") == BODY


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.1.2.3", "169.254.169.254", "172.16.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "no address",
    ],
)  # fmt: skip
def test_special_addresses_are_forbidden(address: str) -> None:
    """Every special-purpose range is refused, embedded IPv4 addresses included."""
    assert forbidden(address) is not None


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
        "2002:101:101::1",
        "2a00:1450::1",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    """What the internet routes may be connected to."""
    assert forbidden(address) is None


@given(st.ip_addresses())
def test_private_permission_only_widens(address: Any) -> None:
    """What is allowed without the permission is allowed with it; multicast and unspecified addresses never are."""
    strict, wide = forbidden(str(address)), forbidden(str(address), allow_private=True)
    assert strict is not None or wide is None
    if address.is_multicast or address.is_unspecified:
        assert wide is not None


@given(st.binary(min_size=4, max_size=4))
def test_embedding_changes_nothing(packed: bytes) -> None:
    """An IPv4 address wrapped in IPv6 is judged as itself."""
    plain = socket.inet_ntop(socket.AF_INET, packed)
    wrapped = [
        b"\0" * 10 + b"\xff\xff" + packed,
        bytes.fromhex("0064ff9b") + b"\0" * 8 + packed,
        b"\x20\x02" + packed + b"\0" * 10,
    ]
    for address in wrapped:
        assert forbidden(socket.inet_ntop(socket.AF_INET6, address)) == forbidden(plain)
