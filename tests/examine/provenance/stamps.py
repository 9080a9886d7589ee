"""A time-stamping authority on 127.0.0.1 (RFC 3161), for manifests signed while their certificate was valid."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SHA256, ECDSA_SHA256 = "2.16.840.1.101.3.4.2.1", "1.2.840.10045.4.3.2"
SIGNED_DATA, TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
CONTENT_TYPE, MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
SIGNING_CERTIFICATE_V2, POLICY = "1.2.840.113549.1.9.16.2.47", "1.2.3.4.1"


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    length = size.to_bytes((size.bit_length() + 7) // 8 or 1, "big")
    return bytes([tag]) + (length if size < 0x80 else bytes([0x80 | len(length)]) + length) + body


def sequence(*parts: bytes) -> bytes:
    return der(0x30, *parts)


def a_set(*parts: bytes) -> bytes:
    return der(0x31, *sorted(parts))


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes) -> bytes:
    return der(0x04, value)


def identifier(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    body = bytes([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        body += bytes(reversed(digits))
    return der(0x06, body)


def algorithm(dotted: str) -> bytes:
    return sequence(identifier(dotted))


def elements(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """(tag, all of it, its body) of the elements side by side."""
    found, at = [], 0
    while at < len(data):
        size, body = data[at + 1], at + 2
        if size & 0x80:
            body += size & 0x7F
            size = int.from_bytes(data[at + 2 : body], "big")
        found.append((data[at], data[at : body + size], data[body : body + size]))
        at = body + size
    return found


class StampingAuthority:
    """Answers requests with the signer's certificate `chain` and key (PEM); its clock is ahead by `ahead`."""

    def __init__(self, chain: str, key: str, ahead: timedelta = timedelta()) -> None:
        self._ahead = ahead
        self._certificate, *_ = self._chain = x509.load_pem_x509_certificates(chain.encode())
        loaded = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        self.asked = 0

    def answer(self, request: bytes) -> bytes:
        """TimeStampReq -> TimeStampResp, both DER."""
        self.asked += 1
        (_, _, body), *_ = elements(request)
        _version, (_, imprint, _), *rest = elements(body)
        nonce = b"".join(whole for tag, whole, _ in rest if tag == 0x02)
        time = (datetime.now(UTC) + self._ahead).strftime("%Y%m%d%H%M%SZ").encode()
        info = sequence(integer(1), identifier(POLICY), imprint, integer(self.asked), der(0x18, time), nonce)
        return sequence(sequence(integer(0)), sequence(identifier(SIGNED_DATA), der(0xA0, self._signed_data(info))))

    def _signed_data(self, info: bytes) -> bytes:
        own = self._certificate.public_bytes(serialization.Encoding.DER)
        certificate_id = sequence(sequence(sequence(octets(hashlib.sha256(own).digest()))))
        attributes = [
            sequence(identifier(CONTENT_TYPE), a_set(identifier(TST_INFO))),
            sequence(identifier(MESSAGE_DIGEST), a_set(octets(hashlib.sha256(info).digest()))),
            sequence(identifier(SIGNING_CERTIFICATE_V2), a_set(certificate_id)),
        ]
        signature = self._key.sign(a_set(*attributes), ec.ECDSA(hashes.SHA256()))
        issuer = self._certificate.issuer.public_bytes()
        signer = sequence(
            integer(1),
            sequence(issuer, integer(self._certificate.serial_number)),
            algorithm(SHA256),
            b"\xa0" + a_set(*attributes)[1:],
            algorithm(ECDSA_SHA256),
            octets(signature),
        )
        certificates = b"".join(one.public_bytes(serialization.Encoding.DER) for one in self._chain)
        content = sequence(identifier(TST_INFO), der(0xA0, octets(info)))
        return sequence(integer(3), a_set(algorithm(SHA256)), content, der(0xA0, certificates), a_set(signer))


@contextlib.contextmanager
def served(authority: StampingAuthority) -> Iterator[str]:
    """The authority's URL while the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = authority.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
