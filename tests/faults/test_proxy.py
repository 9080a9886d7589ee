"""The proxy does to connections what its mode says."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Mode, Proxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that gives back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65_536):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    made = Proxy(echo)
    yield made
    made.close()


def connect(proxy: Proxy, timeout_s: float = 10.0) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


def exchange(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        more = connection.recv(65_536)
        if not more:
            break
        got += more
    return got


def test_it_passes_everything_on(proxy: Proxy) -> None:
    """Also much, and after a fault has healed."""
    with connect(proxy) as connection:
        assert exchange(connection) == b"hello"
        with proxy.failing(Mode("latency", 0.01)):
            assert exchange(connection, bytes(300_000)) == bytes(300_000)
        assert exchange(connection) == b"hello"


def rest(connection: socket.socket) -> tuple[bytes, str]:
    """What comes, and how it ends: in `silence` or with the connection's `end`."""
    got = b""
    try:
        while more := connection.recv(65_536):
            got += more
    except TimeoutError:
        return got, "silence"
    except OSError:
        return got, "end"
    return got, "end"


@pytest.mark.parametrize(("mode", "passed"), [(Mode("half_open"), b""), (Mode("hole", 2), b"he")])
def test_silence_lasts_as_long_as_the_fault(proxy: Proxy, mode: Mode, passed: bytes) -> None:
    """Nothing (more) comes, and the connection stays."""
    with connect(proxy, timeout_s=0.3) as connection, proxy.failing(mode):
        connection.sendall(b"hello")
        assert rest(connection) == (passed, "silence")


def test_a_reset_comes_in_the_middle_of_an_answer(proxy: Proxy) -> None:
    """So many bytes, and the connection is gone."""
    with connect(proxy) as connection, proxy.failing(Mode("reset", 3)):
        connection.sendall(b"hello")
        got, how = rest(connection)
    assert b"hel".startswith(got) and how == "end"  # a reset may overtake what was sent before it


def test_cut_ends_what_is_open(proxy: Proxy) -> None:
    """Whoever reads hears of it at once; the next connection works."""
    with connect(proxy) as connection:
        assert exchange(connection) == b"hello"
        proxy.cut()
        assert rest(connection) == (b"", "end")
    with connect(proxy) as connection:
        assert exchange(connection) == b"hello"


def test_the_server_s_own_address_is_replaced(echo: str) -> None:
    """Wherever the pieces are cut, so that a Kafka client stays behind the proxy."""
    proxy = Proxy(echo, advertises=True)
    try:
        port = int(echo.rpartition(":")[2])
        own = int(proxy.address.rpartition(":")[2])
        answer = b"x" * 10 + b"127.0.0.1" + struct.pack(">i", port) + b"y" * 10
        with connect(proxy) as connection:
            for cut in range(0, len(answer), 5):
                connection.sendall(answer[:cut])
                time.sleep(0.02)
                got = exchange(connection, answer[cut:] + b"end")
                while len(got) < len(answer) + 3:
                    got += connection.recv(100)
                assert got == answer.replace(struct.pack(">i", port), struct.pack(">i", own)) + b"end"
    finally:
        proxy.close()
