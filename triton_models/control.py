"""The key that a server may want to hear before it loads or unloads a model: loading one runs its code.

The local stack always sets one, the chart's Triton where it is told to (`--grpc-restricted-protocol=model-repository,…:
assay-control-key=KEY`). It comes from the variables that the worker has it from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tritonclient import grpc
from tritonclient.grpc import InferenceServerClientPlugin

HEADER = "triton-grpc-protocol-assay-control-key"  # Triton's prefix, and the name that the server was told
VARIABLE = "ASSAY_TRITON__CONTROL_KEY"


class _WithKey(InferenceServerClientPlugin):  # type: ignore[misc]  # no types are published for it
    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers[HEADER] = self._key


def control_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key itself from ASSAY_TRITON__CONTROL_KEY, else from the file that ASSAY_TRITON__CONTROL_KEY_FILE names; None
    where neither is set. Raises OSError where the file cannot be read.
    """
    if key := environ.get(VARIABLE):
        return key
    path = environ.get(f"{VARIABLE}_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else None


def connect(server: str, key: str | None) -> Any:
    """A client of `server` (host:port) that brings `key` with each request."""
    client = grpc.InferenceServerClient(server)
    if key:
        client.register_plugin(_WithKey(key))
    return client
