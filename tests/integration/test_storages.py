"""Storages that are away, slow or back: their references wait apart, and everything else is judged in the usual
time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.faults.proxy import Mode, Proxy
from tests.integration.harness import SAMPLES, Outside, Worker, samples, unlike, wait_until
from worker.clients import kafka_topics
from worker.local.server import free_port
from worker.settings import KafkaSettings

pytestmark = pytest.mark.integration
TYPE = ("content-type", b"application/vnd.assay.image-ref+json")
IMAGE = next(data for name, data in samples().items() if name.endswith(".jpg"))


def reference(outside: Outside, image_id: str, uri: str) -> None:
    outside.send(image_id, json.dumps({"uri": uri}).encode(), headers=[TYPE])


def images(outside: Outside, name: str, count: int = 20) -> list[str]:
    found = {f"{name}/{number}": unlike(IMAGE, 10_000 + number) for number in range(count)}
    outside.send_all(found)
    return list(found)


def parked(outside: Outside) -> list[Any]:
    return outside.records(outside.env["ASSAY_KAFKA__RETRY_TOPIC"])


@contextlib.contextmanager
def dripping() -> Iterator[str]:
    """A server that takes every connection and sends a byte of its answer now and then."""
    server = socket.create_server(("127.0.0.1", 0))

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            while True:
                connection.sendall(b"H")
                time.sleep(0.2)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def s3(port: int, **changes: str) -> dict[str, str]:
    return {
        "ASSAY_REFERENCES__SCHEMES": "s3",
        "ASSAY_REFERENCES__S3_BUCKETS": "bucket,other",
        "ASSAY_REFERENCES__S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "ASSAY_REFERENCES__S3_REGION": "us-east-1",
        "ASSAY_REFERENCES__S3_ACCESS_KEY_ID": "k",
        "ASSAY_REFERENCES__S3_SECRET_ACCESS_KEY": "s",
        "ASSAY_REFERENCES__WAIT_MS": "1000",
        "ASSAY_REFERENCES__RETRY_DELAY_S": "2",
        "ASSAY_REFERENCES__TIMEOUT_MS": "1500",
        **changes,
    }


@pytest.fixture
def storage() -> Iterator[Proxy]:
    """The way to an S3 server with 300 images in `bucket`; it refuses connections until it is healed."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    )
    client.create_bucket(Bucket="bucket")
    for number in range(300):
        client.put_object(Bucket="bucket", Key=f"{number}.jpg", Body=unlike(IMAGE, number))
    proxy = Proxy(f"{host}:{port}")
    proxy.set(Mode("refuse"))
    yield proxy
    proxy.close()
    server.stop()


def test_a_storage_that_is_away_stops_nobody(
    outside: Outside, start_worker: Callable[..., Worker], storage: Proxy
) -> None:
    """300 references to it: images are judged, references parked, tried again, and judged once it is back."""
    worker = start_worker(**s3(int(storage.address.rpartition(":")[2])))
    for number in range(300):
        reference(outside, f"ref/{number}", f"s3://bucket/{number}.jpg")
    outside.flush()
    outside.wait_verdicts(images(outside, "beside"))
    wait_until(worker.is_ready, "ready, whatever the storage does")
    wait_until(lambda: len({record.headers[0][1] for record in parked(outside)}) == 300, "all are parked")
    first = dict(parked(outside)[0].headers)
    assert (first["original_topic"], first["retry_attempt"]) == (outside.incoming.encode(), b"1")
    assert first["content-type"] == TYPE[1]
    assert int(first["retry_at"]) > int(first["original_timestamp"])
    wait_until(lambda: any(dict(r.headers)["retry_attempt"] == b"2" for r in parked(outside)), "tried again")
    assert worker.metric("assay_storage_state", storage="s3://bucket") > 0
    assert worker.metric("assay_storage_state", storage="s3://other") == 0

    storage.set(Mode())
    verdicts = outside.wait_verdicts([f"ref/{number}" for number in range(300)], timeout_s=300)
    origin: Any = verdicts["ref/7"]["origin"]
    assert (origin["topic"], origin["uri"]) == (outside.incoming, "s3://bucket/7.jpg")
    origins: list[Any] = [verdict["origin"] for verdict in verdicts.values()]
    sources = {(one["partition"], one["offset"]) for one in origins}
    assert len(sources) == 300, "each has the place of its own first record"
    assert outside.rejections() == {}
    wait_until(outside.all_committed, "every offset committed")
    assert worker.terminate() == 0


def test_a_storage_that_never_comes_back_is_given_up(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """Rejected as fetch_failed, with its attempts, as it came and with where it came from; through a worker's end
    too.
    """
    settings = s3(free_port(), ASSAY_REFERENCES__GIVE_UP_S="6")
    worker = start_worker(**settings)
    reference(outside, "lost", "s3://bucket/lost.jpg")
    outside.flush()
    wait_until(lambda: parked(outside), "it is parked")
    assert worker.terminate() == 0
    start_worker(**settings)
    wait_until(lambda: "lost" in outside.rejections(), "it is given up")
    record = outside.rejections()["lost"]
    headers = dict(record.headers)
    assert (headers["reject_reason"], headers["original_topic"]) == (b"fetch_failed", outside.incoming.encode())
    assert int(headers["reject_attempts"]) >= 2
    assert json.loads(record.value) == {"uri": "s3://bucket/lost.jpg"}
    assert not [name for name, _ in record.headers if name.startswith("retry_")]


def test_a_dripping_storage_takes_nobody_with_it(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """Two hundred references to it: images are judged meanwhile, and so are references to a storage that works."""
    with dripping() as url:
        port = int(url.rpartition(":")[2])
        worker = start_worker(
            **s3(port, ASSAY_REFERENCES__SCHEMES="s3,file", ASSAY_REFERENCES__FILE_ROOTS=str(SAMPLES))
        )
        for number in range(200):
            reference(outside, f"drip/{number}", f"s3://bucket/{number}.jpg")
        names = [name for name in samples() if name.endswith(".jpg")][:10]
        for name in names:
            reference(outside, f"file/{name}", f"file://{SAMPLES}/{name}")
        outside.flush()
        outside.wait_verdicts([f"file/{name}" for name in names])
        outside.wait_verdicts(images(outside, "beside"))
        assert worker.is_ready()
        wait_until(lambda: len({record.headers[0][1] for record in parked(outside)}) == 200, "all are parked")
        assert worker.terminate() == 0


def test_a_retry_topic_that_is_deleted_stops_nobody(outside: Outside, start_worker: Callable[..., Worker]) -> None:
    """What cannot be parked any more is rejected, saying so, and images are judged meanwhile."""
    worker = start_worker(**s3(free_port()))
    reference(outside, "before", "s3://bucket/before.jpg")
    outside.flush()
    wait_until(lambda: parked(outside), "it is parked")
    kafka = KafkaSettings(bootstrap_servers=outside.servers.split(","))
    kafka_topics.delete_topics(kafka, [outside.env["ASSAY_KAFKA__RETRY_TOPIC"]])
    for number in range(20):
        reference(outside, f"ref/{number}", f"s3://bucket/{number}.jpg")
    outside.flush()
    outside.wait_verdicts(images(outside, "beside"))
    wait_until(lambda: outside.rejections().keys() >= {f"ref/{number}" for number in range(20)}, "all have an end")
    headers = dict(outside.rejections()["ref/7"].headers)
    assert headers["reject_reason"] == b"fetch_failed"
    assert b"cannot be parked" in headers["reject_detail"]
    outside.wait_verdicts(images(outside, "after"))
    assert worker.terminate() == 0
