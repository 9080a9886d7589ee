"""When a certificate file expires: `Metrics(certificates=certificate_files(settings))`."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from worker.settings import Settings, fields


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
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
        return min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    except ValueError as error:
        raise ValueError(f"{path} holds no PEM certificate that can be read ({error})") from error
