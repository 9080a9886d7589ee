"""The environment of a worker that shares its servers with others: names of its own for all that it writes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping

from worker.local.server import free_port

_KINDS = ("INCOMING", "VERDICTS", "REJECTED", "RETRY", "REVIEWS")


def own_environment(servers: Mapping[str, str]) -> dict[str, str]:
    """A process environment with `servers` (variables), and topics (not made yet), group, key prefix and HTTP port of
    its own.
    """
    unique = uuid.uuid4().hex[:8]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")},
        **servers,
        **{f"ASSAY_KAFKA__{kind}_TOPIC": f"t{unique}.images.{kind.lower()}" for kind in _KINDS},
        "ASSAY_KAFKA__GROUP_ID": f"g{unique}",
        "ASSAY_REDIS__KEY_PREFIX": f"t{unique}:",
        "ASSAY_HTTP__PORT": str(free_port()),
    }


def topics_of(env: Mapping[str, str]) -> list[str]:
    """The topics that it names."""
    return [env[f"ASSAY_KAFKA__{kind}_TOPIC"] for kind in _KINDS]
