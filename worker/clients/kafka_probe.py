"""Is a broker there, and does it answer? A question small enough for a health check every second; and, where clients
fail, why.

kafka-python gives one text for a broker that is down, a wrong password, a foreign authority and a missing certificate:
`diagnose` goes the same way step by step and says which setting the first obstacle belongs to.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time

from kafka.net.sasl import get_sasl_mechanism

from worker.errors import Unavailable
from worker.settings import KafkaSettings, variable

_API_VERSIONS, _SASL_HANDSHAKE, _SASL_AUTHENTICATE = 18, 17, 36  # the protocol guide's numbers
_ILLEGAL_SASL_STATE = 34
_DIAGNOSIS_S = 3.0
_MAX_ANSWER_BYTES = 1 << 20  # a list of API versions takes some hundred; "HTTP" read as a length would be 1.2 GB
_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def key_password(settings: KafkaSettings) -> str:
    """Of the client's key; never None, or OpenSSL asks the terminal for it."""
    return settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else ""


class _NoBroker(ConnectionError):
    """What answers is no broker, or does not speak this protocol there."""


class Probe:
    """Does a broker answer? Asks for its API versions, which it tells before any authentication; keeps one connection.

    A connection alone proves little: the kernel accepts it for a broker that hangs.
    """

    def __init__(self, settings: KafkaSettings, timeout_s: float = 5.0) -> None:
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
                    errors.append(f"{server}: {_name_the_setting(self._settings, error)}")
                    if not kept or isinstance(error, TimeoutError):
                        break
                else:
                    return server
        raise Unavailable("kafka", "; ".join(dict.fromkeys(errors)))

    def authenticate(self, server: str) -> str:
        """Log in to `server` as a client would. Returns what it objects to, or nothing.

        Raises OSError; ValueError, LookupError or struct.error for an answer that is not Kafka's to its end.
        """
        self._ask(server)
        has_sasl, mechanism = self._settings.security_protocol.startswith("SASL"), self._settings.sasl_mechanism
        answer = self._request(_SASL_HANDSHAKE, 1, _string(mechanism))
        code = struct.unpack_from(">h", answer)[0]
        if has_sasl is (code == _ILLEGAL_SASL_STATE):
            wants = "no SASL" if has_sasl else "SASL"
            protocol = f"{variable('kafka', 'security_protocol')}={self._settings.security_protocol}"
            return f"it wants {wants} there: change {protocol}, or the port"
        if not has_sasl:
            return ""
        if code:
            offered = ", ".join(_strings(answer, 2))
            return f"it has no {mechanism}: set {variable('kafka', 'sasl_mechanism')} to one of {offered}"
        assert self._settings.sasl_password is not None
        client = get_sasl_mechanism(mechanism)(
            host=server,
            sasl_plain_username=self._settings.sasl_username,
            sasl_plain_password=self._settings.sasl_password.get_secret_value(),
            sasl_mechanism=mechanism,
            security_protocol=self._settings.security_protocol,
        )
        names = f"{variable('kafka', 'sasl_username')} and {variable('kafka', 'sasl_password')}"
        while not client.is_done():
            token = client.auth_bytes()
            try:
                answer = self._request(_SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
            except ConnectionError as error:
                return f"user or password refused ({error}): check {names}"
            code, length = struct.unpack_from(">hh", answer)
            if code:
                reason = answer[4 : 4 + max(0, length)].decode("utf-8", "replace") or f"error {code}"
                return f"user or password refused ({reason}): check {names}"
            client.receive(answer[8 + max(0, length) :])
        return ""

    def _ask(self, server: str) -> None:
        if self._socket is None:
            host, _, port = server.rpartition(":")
            name = host.strip("[]")
            connection = socket.create_connection((name, int(port)), self._timeout_s)
            try:
                if "SSL" in self._settings.security_protocol:
                    connection = _tls(self._settings).wrap_socket(connection, server_hostname=name)
            except BaseException:
                connection.close()
                raise
            self._socket = connection
        self._request(_API_VERSIONS, 0, b"")

    def _request(self, api: int, version: int, body: bytes) -> bytes:
        """The answer without its correlation id. The request goes without a client id (length -1)."""
        assert self._socket is not None
        give_up_at = time.monotonic() + self._timeout_s
        self._socket.settimeout(self._timeout_s)
        self._socket.sendall(struct.pack(">ihhih", 10 + len(body), api, version, 0, -1) + body)
        size = struct.unpack(">i", self._receive(4, give_up_at))[0]
        if not 4 <= size <= _MAX_ANSWER_BYTES:
            raise _NoBroker(f"an answer of {size} bytes")
        return self._receive(size, give_up_at)[4:]

    def _receive(self, size: int, give_up_at: float) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < size:
            self._socket.settimeout(max(0.001, give_up_at - time.monotonic()))  # a drip of bytes is not waited for
            more = self._socket.recv(min(size - len(data), 65_536))
            if not more:
                raise _NoBroker("the connection was closed")
            data += more
        return bytes(data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def diagnose(settings: KafkaSettings) -> str:
    """What keeps clients out, in one line that names the setting; nothing where a broker lets us in.

    Takes a few seconds at most: the poll thread asks too.
    """
    found: list[str] = []
    give_up_at = time.monotonic() + _DIAGNOSIS_S
    for server in settings.bootstrap_servers:
        if found and time.monotonic() > give_up_at:
            break
        probe = Probe(settings)
        try:
            objection = probe.authenticate(server)
        except (OSError, ValueError, LookupError, struct.error) as error:  # the last two: what answers is no broker
            objection = _name_the_setting(settings, error)
        finally:
            probe.close()
        if not objection:
            return ""
        found.append(f"{server}: {objection}")
    return "; ".join(found)


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _strings(data: bytes, at: int) -> list[str]:
    (count,) = struct.unpack_from(">i", data, at)
    at += 4
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from(">h", data, at)
        found.append(data[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return found


class _BadFile(OSError):
    """A file named in the settings cannot be used; the message names the setting."""


def _tls(settings: KafkaSettings) -> ssl.SSLContext:
    ca, certificate = settings.ssl_ca_path, settings.ssl_cert_path
    for field in ("ssl_ca_path", "ssl_cert_path", "ssl_key_path"):
        path = getattr(settings, field)
        if path is not None and not os.access(path, os.R_OK):
            reason = "no permission" if path.exists() else "no such file"
            raise _BadFile(f"{variable('kafka', field)}={path} cannot be read: {reason}")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise _BadFile(
            f"{variable('kafka', 'ssl_ca_path')}={ca} holds no certificate in PEM form ({error.reason})"
        ) from error
    context.check_hostname = settings.ssl_check_hostname
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, settings.ssl_key_path, key_password(settings))
        except ssl.SSLError as error:
            names = ", ".join(
                variable("kafka", field) for field in ("ssl_cert_path", "ssl_key_path", "ssl_key_password")
            )
            raise _BadFile(f"{names} do not go together ({error.reason or 'wrong password, or no PEM'})") from error
    return context


def _name_the_setting(settings: KafkaSettings, error: BaseException) -> str:
    """The error in one line, and the setting that it points to."""
    protocol = f"{variable('kafka', 'security_protocol')}={settings.security_protocol}"
    if isinstance(error, _BadFile):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _WRONG_NAME:
            servers = variable("kafka", "bootstrap_servers")
            return f"its certificate is for another name ({error.verify_message}): change {servers}"
        return f"its certificate is not trusted ({error.verify_message}): check {variable('kafka', 'ssl_ca_path')}"
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return f"it refuses our certificate ({error.reason}): check {variable('kafka', 'ssl_cert_path')}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS there ({error.reason or error}): change {protocol}, or the port"
    if isinstance(error, (_NoBroker, ConnectionResetError, LookupError, struct.error)):
        return f"it broke the connection off: does {protocol} fit the port?"
    return str(error)
