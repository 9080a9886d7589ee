"""The operator's trust list: PEM certificates of the authorities whose signers' manifests count.

Read in the worker, which hands its text to the children: those open no files. List and reader together have a version.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography import x509

from worker.errors import SettingsError

# Raised by whoever changes what is found in the same bytes: evidence cached by another number is read anew.
READER = "1"


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


def reader_version(anchors_pem: str | None) -> str:
    """12 hex digits: which reader, and which trust list. Evidence of another version is not used again."""
    anchors = "".join((anchors_pem or "").split())
    return hashlib.sha256(f"{READER}\n{anchors}".encode()).hexdigest()[:12]
