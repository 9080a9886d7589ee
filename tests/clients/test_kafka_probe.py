"""The diagnosis where what answers is no broker (on real brokers: tests/integration/test_secured_kafka.py)."""

from __future__ import annotations

import socket
import threading

import pytest

from worker.clients.kafka_probe import diagnose
from worker.settings import KafkaSettings


@pytest.mark.parametrize(
    "answer", [b"\0\0\0\4abcd", b"\0\0\0\5abcde", b"\xff\xff\xff\xff"], ids=["short", "cut off", "negative"]
)
def test_what_is_no_broker_is_told(answer: bytes) -> None:
    """Answers that are not Kafka's end in a line with the setting, never in an exception."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for _ in range(2):
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        said = diagnose(KafkaSettings(bootstrap_servers=[f"127.0.0.1:{server.getsockname()[1]}"]))
        thread.join(10)
    assert "does ASSAY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT fit the port?" in said
