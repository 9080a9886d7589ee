"""Where the local stack keeps its files: everything below one ignored folder, `.assay/`, at the root of the checkout.

A checkout that cannot be written to (or an installed package) falls back to `~/.cache/assay`.
"""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def environment_for_downloads() -> dict[str, str]:
    """The environment for uv, pip and jgo: they trust the system's authorities too (a company's own, say), where
    nothing else is set.
    """
    trusted = (
        {name: str(_AUTHORITIES) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")}
        if _AUTHORITIES.exists()
        else {}
    )
    return trusted | dict(os.environ)


def home() -> Path:
    """The one folder for everything that the local stack installs and writes."""
    if (CHECKOUT / "pyproject.toml").is_file() and os.access(CHECKOUT, os.W_OK):
        return CHECKOUT / ".assay"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "assay"


def run_directory() -> Path:
    """The default run directory: ports, data and logs of one stack."""
    return home() / "stack"


def servers_directory() -> Path:
    """Installed parts (jars, the server's environment, model repositories), shared by all run directories."""
    return home() / "servers"
