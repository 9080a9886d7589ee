"""The diagnosis where what answers is no broker (on real brokers: tests/integration/test_secured_kafka.py)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from worker.clients.kafka_probe import Probe, diagnose
from worker.errors import Unavailable
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


@contextlib.contextmanager
def answering(answer: Iterator[bytes]) -> Iterator[KafkaSettings]:
    """A server that sends the parts of `answer` to whoever asks, and keeps the connection open."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(1000)
                for part in answer:
                    connection.sendall(part)
                done.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield KafkaSettings(bootstrap_servers=[f"127.0.0.1:{server.getsockname()[1]}"])
        finally:
            done.set()
            thread.join(30)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\3abc", b"\x7f\xff\xff\xff"])
def test_a_length_is_not_believed(answer: bytes) -> None:
    """What an HTTP server says, read as a length, is 1.2 GB: nobody waits for that, and the setting is named."""
    with answering(iter([answer])) as settings:
        said = diagnose(settings)
    assert "does ASSAY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT fit the port?" in said


def test_a_drip_of_bytes_is_not_waited_for() -> None:
    """The time-out is the whole answer's: a byte now and then does not keep the probe for ever."""

    def drip() -> Iterator[bytes]:
        yield b"\0\1\0\0"
        for _ in range(2_000):
            time.sleep(0.01)
            yield b"x"

    with answering(drip()) as settings:
        probe = Probe(settings, timeout_s=0.2)
        with pytest.raises(Unavailable, match="timed out"):
            probe.check()
        probe.close()
