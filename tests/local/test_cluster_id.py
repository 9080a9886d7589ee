"""The id that a new data directory gets."""

from __future__ import annotations

import re

from worker.local.kafka_server import new_cluster_id


def test_no_cluster_id_reads_as_an_option():
    """Whatever the first byte, the id is 22 characters of base64url and begins with a letter or digit."""
    for first in range(256):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{21}", new_cluster_id(bytes([first]) + b"\xff" * 15))
