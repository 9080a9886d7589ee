"""The TLS server of references, and fetchers that reach it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.clients.tls_server import HOST, LIMIT, Make, Server, local
from worker.clients.fetch import Fetcher
from worker.settings import LimitSettings, ReferenceSettings


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_path(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, "*.wild.example", "127.0.0.1").configure_cert(context)
    server = Server(context)
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def make(server: Server, ca_path: Path) -> Iterator[Make]:
    """A fetcher whose names all lead to the server; keywords change its settings."""
    made: list[Fetcher] = []

    def make(
        *,
        resolve: Callable[[str, int], list[str]] = local,
        sleep: Callable[[float], None] = lambda _: None,
        **changes: Any,
    ) -> Fetcher:
        values = {
            "schemes": ["https"],
            "https_hosts": [f"{HOST}:{server.port}", f"*.wild.example:{server.port}"],
            "https_ca_path": ca_path,
            "allow_private_addresses": True,
            "max_attempts": 3,
            "timeout_ms": 5000,
        }
        made.append(
            Fetcher(
                ReferenceSettings(**(values | changes)),
                LimitSettings(max_image_bytes=LIMIT),
                sleep=sleep,
                resolve=resolve,
            )
        )
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()
