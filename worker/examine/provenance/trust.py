"""The operator's trust list: PEM certificates of the authorities whose signers' manifests count.

Read in the worker, which hands its text to the children: those open no files.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from worker.errors import SettingsError


def load_anchors(path: Path | None) -> str | None:
    """The certificates in the file as PEM, or None without one. Raises SettingsError that names the setting."""
    if path is None:
        return None
    where = f"ASSAY_EVIDENCE__C2PA_TRUST_PATH={path}"
    try:
        text = path.read_text(encoding="utf-8")
        x509.load_pem_x509_certificates(text.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{where}: {error}"]) from None
    except ValueError:
        raise SettingsError([f"{where}: no certificates in PEM; docs/evidence.md says where lists come from"]) from None
    return text
