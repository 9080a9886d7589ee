"""The expiry of certificate files: what was written into them, and damage of every kind."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import strategies as st

from tests.properties import given
from worker.settings import load
from worker.telemetry.certificates import certificate_files, expiry_timestamp

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "assay")])


def certificate(not_after: datetime) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        NAME, NAME, KEY.public_key(), x509.random_serial_number(), datetime(1950, 1, 2, tzinfo=UTC), not_after
    )
    return builder.sign(KEY, hashes.SHA256())


@pytest.mark.parametrize("year", [1951, 1999, 2026, 2049, 2050, 9999])
def test_both_forms_of_a_date(tmp_path: Path, year: int) -> None:
    """Dates to 2049 have two digits for the year, later ones four."""
    moment = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    path = tmp_path / "c.pem"
    path.write_bytes(certificate(moment).public_bytes(Encoding.PEM))
    assert expiry_timestamp(path) == moment.timestamp()


def test_a_real_chain(tmp_path: Path) -> None:
    """The first certificate of a file to expire counts; keys and text between them do not disturb."""
    issued = trustme.CA().issue_cert("a.example", not_after=datetime(2030, 1, 1, tzinfo=UTC))
    path = tmp_path / "chain.pem"
    late = certificate(datetime(2040, 1, 1, tzinfo=UTC)).public_bytes(Encoding.PEM)
    path.write_bytes(b"a comment \xff\n" + late + issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes())
    assert expiry_timestamp(path) == datetime(2030, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate(tmp_path: Path, content: bytes) -> None:
    """An empty, foreign or broken file is a ValueError."""
    path = tmp_path / "c.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="certificate"):
        expiry_timestamp(path)


DER = certificate(datetime(2030, 1, 1, tzinfo=UTC)).public_bytes(Encoding.DER)


@given(st.integers(0, len(DER) - 1), st.binary(max_size=3))
def test_damage_is_a_value_error(position: int, patch: bytes) -> None:
    """A damaged certificate gives a date or a ValueError, never another error."""
    damaged = DER[:position] + patch + DER[position + len(patch) + 1 :]
    found = 0.0
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_text(ssl.DER_cert_to_PEM_cert(damaged))
        with contextlib.suppress(ValueError):
            found = expiry_timestamp(Path(file.name))
    assert isinstance(found, float)


def test_files_of_the_settings() -> None:
    """Authorities and certificates are taken, keys are not, equal files once."""
    settings = load(
        environ={
            "ASSAY_KAFKA__SSL_CA_PATH": "/tls/ca.pem",
            "ASSAY_KAFKA__SSL_CERT_PATH": "/tls/kafka.pem",
            "ASSAY_KAFKA__SSL_KEY_PATH": "/tls/kafka.key",
            "ASSAY_REDIS__SSL_CA_PATH": "/tls/ca.pem",
            "ASSAY_REFERENCES__HTTPS_CA_PATH": "/tls/web.pem",
        }
    )
    assert certificate_files(settings) == [Path("/tls/ca.pem"), Path("/tls/kafka.pem"), Path("/tls/web.pem")]
