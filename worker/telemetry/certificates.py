"""When a certificate file expires: `Metrics(certificates=certificate_files(settings))`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.settings import Settings, fields
from worker.telemetry.metric_doc import PREFIX, MetricDoc


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


class CertificateExpiry(Collector):
    """Reads the files when it is scraped. One that cannot be read counts as expired (0): that is what it is worth."""

    DOC = MetricDoc(
        f"{PREFIX}tls_certificate_expiry_timestamp_seconds",
        "gauge",
        ("path",),
        "seconds",
        "When the first certificate of a PEM file in the settings expires, Unix time; 0 when the file cannot be read.",
    )

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self.DOC.name, self.DOC.meaning, labels=self.DOC.labels)
        for path in self._paths:
            try:
                timestamp = expiry_timestamp(path)
            except (OSError, ValueError):
                timestamp = 0.0
            family.add_metric([str(path)], timestamp)
        yield family
