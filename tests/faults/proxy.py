"""A TCP proxy that fails on demand: it stands between the worker and one server, and does to their connections what
networks do.

Modes: `ok`; `latency` (seconds before each piece); `trickle` (bytes a second); `half_open` (connections are taken and
nothing moves); `refuse`; `reset` (cut off after so many bytes of an answer); `hole` (nothing more after so many bytes).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_PIECE_BYTES = 65_536
_LOOK_S = 0.05


@dataclass(frozen=True)
class Mode:
    """What happens to bytes on their way. `amount`: seconds, bytes a second, or bytes, by `kind`."""

    kind: str = "ok"
    amount: float = 0


OK = Mode()


class Proxy:
    """Listens on `address` of 127.0.0.1. `advertises`: the server names its own address in answers (Kafka); it is
    replaced.
    """

    def __init__(self, target: str, *, advertises: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        own_port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{own_port}"
        self._replace: tuple[bytes, bytes] | None = None
        if advertises:
            self._replace = (host.encode() + struct.pack(">i", int(port)), host.encode() + struct.pack(">i", own_port))
        self._mode = OK
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def failing(self, mode: Mode, *, cut: bool = False) -> Iterator[None]:
        """Everything fails in this way; `cut`: connections that are open end at once. Healed at the end."""
        self.set(mode, cut=cut)
        try:
            yield
        finally:
            self.set(OK)

    def set(self, mode: Mode, *, cut: bool = False) -> None:
        self._mode = mode
        if cut:
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _reset(connection)

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._mode.kind == "refuse":
            _reset(client)
            return
        try:
            server = socket.create_connection(self._target, 5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        upward = threading.Thread(target=self._pump, args=(client, server, False), daemon=True)
        upward.start()
        self._pump(server, client, True)
        upward.join()
        with self._lock:
            self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed, rest = 0, b""
        try:
            while piece := source.recv(_PIECE_BYTES):
                if answers and self._replace:
                    piece, rest = self._advertised(rest + piece)
                if self._pass_on(sink, piece, passed, answers):
                    passed += len(piece)
                else:
                    break
        except OSError:
            return  # one of the two is gone; the reset below tells the other
        finally:
            _reset(source)
            _reset(sink)

    def _pass_on(self, sink: socket.socket, piece: bytes, passed: int, answers: bool) -> bool:
        """False where the connection ends here."""
        mode = self._wait_while_half_open()
        if mode.kind == "latency":
            time.sleep(mode.amount)
        elif mode.kind == "trickle":
            step = max(1, int(mode.amount / 10))
            for at in range(0, len(piece), step):
                sink.sendall(piece[at : at + step])
                if self._mode is not mode:
                    sink.sendall(piece[at + step :])
                    return True
                time.sleep(0.1)
            return True
        elif answers and mode.kind in ("reset", "hole") and passed + len(piece) > mode.amount:
            sink.sendall(piece[: max(0, int(mode.amount) - passed)])
            while mode.kind == "hole" and self._mode is mode and not self._closed:
                time.sleep(_LOOK_S)
            return False
        sink.sendall(piece)
        return True

    def _wait_while_half_open(self) -> Mode:
        while self._mode.kind == "half_open" and not self._closed:
            time.sleep(_LOOK_S)
        return self._mode

    def _advertised(self, data: bytes) -> tuple[bytes, bytes]:
        """`data` with our address for the server's, and what may be the beginning of one and waits for its rest."""
        assert self._replace is not None
        old, new = self._replace
        data = data.replace(old, new)
        for length in range(min(len(old) - 1, len(data)), 0, -1):
            if (
                old.startswith(data[-length:]) and length > 4
            ):  # short matches are chance, and must not hold answers back
                return data[:-length], data[-length:]
        return data, b""


def _reset(connection: socket.socket) -> None:
    """End it without a farewell, and wake whoever reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
