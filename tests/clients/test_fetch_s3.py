"""s3:// references against moto's S3 server, and against a server that answers what a sick S3 answers."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from mypy_boto3_s3 import S3Client

from worker.clients.fetch import Fetcher
from worker.contract import ImageReference
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.settings import LimitSettings, ReferenceSettings

LIMIT = 200_000
BODY = bytes(range(256)) * 700  # more than one read


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def s3(endpoint: str) -> S3Client:
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    for bucket in ("photos", "private"):
        client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket="photos", VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket="photos", Key="a/b c+ä.jpg", Body=BODY)
    client.put_object(Bucket="private", Key="a", Body=b"x")
    return client


Make = Callable[..., Fetcher]


@pytest.fixture
def make(endpoint: str) -> Iterator[Make]:
    made: list[Fetcher] = []

    def make(**changes: Any) -> Fetcher:
        settings = {
            "schemes": ["s3"],
            "s3_buckets": ["photos", "absent"],
            "s3_endpoint_url": endpoint,
            "s3_region": "us-east-1",
            "s3_access_key_id": "k",
            "s3_secret_access_key": "s",
            "max_attempts": 3,
            "timeout_ms": 5000,
        }
        made.append(
            Fetcher(
                ReferenceSettings(**(settings | changes)), LimitSettings(max_image_bytes=LIMIT), sleep=lambda _: None
            )
        )
        return made[-1]

    yield make
    for fetcher in made:
        fetcher.close()


def refusal(fetcher: Fetcher, uri: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        fetcher.fetch(ImageReference(uri=uri))
    return caught.value


def test_fetches_and_verifies(s3: S3Client, make: Make) -> None:
    """An object comes back byte for byte, its key percent-encoded or not."""
    digest = hashlib.sha256(BODY).hexdigest()
    for uri in ("s3://photos/a/b%20c+%C3%A4.jpg", "s3://photos/a/b c+ä.jpg"):
        assert make().fetch(ImageReference(uri=uri, sha256=digest)) == BODY


def test_versions(s3: S3Client, make: Make) -> None:
    """versionId names one version, also when the latest is another or a delete marker."""
    versions = [s3.put_object(Bucket="photos", Key="v", Body=body)["VersionId"] for body in (b"one", b"two")]
    assert make().fetch(ImageReference(uri="s3://photos/v")) == b"two"
    s3.delete_object(Bucket="photos", Key="v")
    assert refusal(make(), "s3://photos/v").reason is RejectReason.FETCH_FAILED
    assert [make().fetch(ImageReference(uri=f"s3://photos/v?versionId={version}")) for version in versions] == [
        b"one",
        b"two",
    ]
    assert (
        refusal(make(), "s3://photos/v?versionId=00000000-0000-0000-0000-000000000000").reason
        is RejectReason.FETCH_FAILED
    )


def test_what_is_not_there_fails(s3: S3Client, make: Make) -> None:
    """A missing key or bucket rejects the reference at once."""
    for uri in ("s3://photos/missing", "s3://absent/a"):
        found = refusal(make(), uri)
        assert (found.reason, found.attempts) == (RejectReason.FETCH_FAILED, 1)


def test_other_buckets_are_denied(s3: S3Client, make: Make) -> None:
    """A bucket that is there and not listed is denied."""
    assert refusal(make(), "s3://private/a").reason is RejectReason.FETCH_DENIED


def test_size_limit_and_empty_object(s3: S3Client, make: Make) -> None:
    """The limit itself is allowed, one byte more is not; nothing at all is `empty`."""
    for size in (0, LIMIT, LIMIT + 1):
        s3.put_object(Bucket="photos", Key=str(size), Body=b"x" * size)
    assert len(make().fetch(ImageReference(uri=f"s3://photos/{LIMIT}"))) == LIMIT
    assert refusal(make(), f"s3://photos/{LIMIT + 1}").reason is RejectReason.TOO_LARGE
    assert refusal(make(), "s3://photos/0").reason is RejectReason.EMPTY


class Sick(ThreadingHTTPServer):
    """Answers every request with `status` and an S3 error of `code`; status 200 with a body that breaks off."""

    daemon_threads = True

    def __init__(self, status: int, code: str) -> None:
        self.requests = 0
        sick = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sick.requests += 1
                body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if status != 200 else 100_000))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "InternalError"),
        (503, "SlowDown"),
        (429, "TooManyRequests"),
        (400, "ThrottlingException"),
        (400, "ExpiredToken"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
    ],
)
def test_a_sick_storage_is_waited_for(make: Make, status: int, code: str) -> None:
    """Errors, throttling and refused credentials speak of the system; they are asked about once, the caller waits."""
    with Sick(status, code) as server, pytest.raises(Unavailable, match=code) as caught:
        make(s3_endpoint_url=server.url).fetch(ImageReference(uri="s3://photos/a"))
    assert caught.value.dependency == "storage"
    assert server.requests == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (403, "InvalidObjectState"), (405, "MethodNotAllowed"), (404, "NoSuchKey"), (401, "")],
)
def test_a_refused_object_fails(make: Make, status: int, code: str) -> None:
    """Answers that speak of this object reject it."""
    with Sick(status, code) as server:
        assert refusal(make(s3_endpoint_url=server.url), "s3://photos/a").reason is RejectReason.FETCH_FAILED


def test_a_body_that_breaks_off_is_tried_again(make: Make) -> None:
    """A body shorter than declared gets max_attempts tries."""
    with Sick(200, "-") as server:
        found = refusal(make(s3_endpoint_url=server.url), "s3://photos/a")
    assert (found.reason, found.attempts, server.requests) == (RejectReason.FETCH_FAILED, 3, 3)


class Dripping:
    """Sends `lead` at once and then a byte every 20 ms, for ever; counts them."""

    def __init__(self, lead: bytes) -> None:
        self.sent = 0
        self._lead = lead
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(self._lead)
            while True:
                connection.sendall(b"x")
                self.sent += 1
                time.sleep(0.02)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "lead", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: ", b""]
)
def test_a_dripping_storage_meets_the_deadline(make: Make, lead: bytes) -> None:
    """In the body, the headers or the first line: the deadline is for all of it, and the storage counts as away."""
    with contextlib.closing(Dripping(lead)) as server, pytest.raises(Unavailable, match="http"):
        make(s3_endpoint_url=server.url, timeout_ms=300).fetch(ImageReference(uri="s3://photos/a"))
    assert server.sent < 100


def test_nobody_there_is_waited_for(make: Make) -> None:
    """A refused connection names the endpoint."""
    with Sick(200, "-") as server:
        url = server.url
    with pytest.raises(Unavailable, match=url):
        make(s3_endpoint_url=url).fetch(ImageReference(uri="s3://photos/a"))


def test_missing_boto3_stops_the_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allowing s3 without the extra names the variable and the command that installs it."""
    real = builtins.__import__

    def without_boto3(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "boto3":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_boto3)
    with pytest.raises(SettingsError, match=r"ASSAY_REFERENCES__SCHEMES=s3.*assay-worker\[s3\]"):
        make()
    make(schemes=["file"])


def test_a_malformed_endpoint_stops_the_start(make: Make) -> None:
    """The variable is named."""
    with pytest.raises(SettingsError, match="ASSAY_REFERENCES__S3_ENDPOINT_URL='no url'"):
        make(s3_endpoint_url="no url")


def test_half_of_the_credentials_stops_the_start(make: Make) -> None:
    """A key id without its secret names both variables."""
    with pytest.raises(
        SettingsError, match=r"ASSAY_REFERENCES__S3_ACCESS_KEY_ID.*ASSAY_REFERENCES__S3_SECRET_ACCESS_KEY"
    ):
        make(s3_secret_access_key=None)
