"""When a certificate file expires. The standard library reads the dates of authorities only, and only through a TLS
context;
a walk over the few DER elements before the validity (RFC 5280, section 4.1) needs no further dependency.

Use:  Metrics(certificates=certificate_files(settings)); expiry_timestamp(Path("tls.crt"))
"""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from worker.settings import Settings, fields

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _EXPLICIT_VERSION = 0x30, 0x17, 0x18, 0xA0


def certificate_files(settings: Settings) -> list[Path]:
    """The certificate and authority files named in the settings, each once."""
    paths = [
        getattr(getattr(settings, group), name)
        for group, name, _ in fields()
        if name.endswith(("_ca_path", "_cert_path"))
    ]
    return list(dict.fromkeys(path for path in paths if path is not None))


def expiry_timestamp(path: Path) -> float:
    """Seconds since the epoch at which the first certificate of the PEM file `path` to expire does so.

    Raises OSError when the file cannot be read, ValueError when it holds no certificate or a broken one.
    """
    blocks = _PEM.findall(path.read_text(encoding="latin-1"))
    if not blocks:
        raise ValueError(f"{path} holds no PEM certificate; expected a file with -----BEGIN CERTIFICATE-----")
    return min(_not_after(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)


def _not_after(der: bytes) -> float:
    certificate, _ = _element(der, _SEQUENCE)
    body, _ = _element(certificate, _SEQUENCE)
    if body[:1] == bytes([_EXPLICIT_VERSION]):
        _, body = _element(body)
    for _ in ("serialNumber", "signature", "issuer"):
        _, body = _element(body)
    validity, _ = _element(body, _SEQUENCE)
    _, rest = _element(validity)
    tag = rest[0] if rest else None
    value, _ = _element(rest)
    text = value.decode("ascii")
    if tag == _UTC_TIME:  # two-digit years: 50 to 99 are 19xx (RFC 5280, 4.1.2.5.1)
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the certificate's validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(data: bytes, expected: int | None = None) -> tuple[bytes, bytes]:
    """(content, what follows) of the first DER element."""
    if len(data) < 2 or (expected is not None and data[0] != expected):
        raise ValueError("the certificate is no DER structure")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("the certificate is cut off")
    return data[start : start + length], data[start + length :]
