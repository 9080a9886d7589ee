"""Is a broker there, and does it answer? A question small enough for a health check every second."""

from __future__ import annotations

import socket
import ssl
import struct

from worker.errors import Unavailable
from worker.settings import KafkaSettings


class Probe:
    """Does a broker answer? Asks for its API versions, which it tells before any authentication; keeps one connection.

    A connection alone proves little: the kernel accepts it for a broker that hangs.
    """

    # ApiVersions version 0 without a client id: size, key 18, version, correlation id, length -1 (protocol guide)
    _REQUEST = struct.pack(">ihhih", 10, 18, 0, 0, -1)

    def __init__(self, settings: KafkaSettings, timeout_s: float = 2.0) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def check(self) -> str:
        """The broker that answered. Raises Unavailable."""
        errors = []
        for server in self._settings.bootstrap_servers:
            for _ in range(2):  # a kept connection may have ended since: once more with a new one
                kept = self._socket is not None
                try:
                    self._ask(server)
                except (OSError, ValueError) as error:
                    self.close()
                    errors.append(f"{server}: {error}")
                    if not kept or isinstance(error, TimeoutError):
                        break
                else:
                    return server
        raise Unavailable("kafka", "; ".join(dict.fromkeys(errors)))

    def _ask(self, server: str) -> None:
        if self._socket is None:
            host, _, port = server.rpartition(":")
            name = host.strip("[]")
            connection = socket.create_connection((name, int(port)), self._timeout_s)
            if "SSL" in self._settings.security_protocol:
                connection = self._tls().wrap_socket(connection, server_hostname=name)
            self._socket = connection
        self._socket.sendall(self._REQUEST)
        size = struct.unpack(">i", self._receive(4))[0]
        self._receive(size)

    def _receive(self, size: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the connection was closed")
            data += more
        return data

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._settings.ssl_ca_path)
        context.check_hostname = self._settings.ssl_check_hostname
        if self._settings.ssl_cert_path is not None:
            secret = self._settings.ssl_key_password
            password = secret.get_secret_value() if secret else None
            context.load_cert_chain(self._settings.ssl_cert_path, self._settings.ssl_key_path, password)
        return context

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
