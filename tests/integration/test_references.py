"""References through the whole system: file, https and s3 from real servers, and every way in which one can be bad."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import trustme
from moto.server import ThreadedMotoServer

from tests.integration.harness import samples, wait_until

pytestmark = pytest.mark.integration
TYPE = ("content-type", b"application/vnd.assay.image-ref+json")
IMAGE = next(data for name, data in samples().items() if name.endswith(".jpg"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with an image, a link out of it, garbage, an empty file and one of 60 MB."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "image.jpg").write_bytes(IMAGE)
    (folder / "garbage.jpg").write_bytes(b"no image at all")
    (folder / "empty.jpg").touch()
    with (folder / "large.jpg").open("wb") as large:
        large.write(IMAGE)
        large.truncate(60_000_000)
    (tmp_path / "secret.jpg").write_bytes(IMAGE)
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return folder


@pytest.fixture
def https(root: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, CA file) of a real TLS server on 127.0.0.1 that serves `root`."""
    authority = trustme.CA()
    ca_path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_address[1]}", ca_path
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3() -> Iterator[tuple[str, str]]:
    """(endpoint, version id of the image) of moto's real S3 server; bucket/image.jpg has been overwritten with garbage
    since.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="bucket")
    client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    version = client.put_object(Bucket="bucket", Key="image.jpg", Body=IMAGE)["VersionId"]
    client.put_object(Bucket="bucket", Key="image.jpg", Body=b"overwritten")
    yield endpoint, version
    server.stop()


def test_references_lead_to_verdicts_or_to_the_right_reason(outside, start_worker, root, https, s3, tmp_path):
    """Allowed ones are judged like inline images (and hit the same cache); each bad one has its reason, and nothing
    waits.
    """
    (address, ca_path), (endpoint, version) = https, s3
    start_worker(
        ASSAY_REFERENCES__SCHEMES="file,https,s3",
        ASSAY_REFERENCES__FILE_ROOTS=str(root),
        ASSAY_REFERENCES__HTTPS_HOSTS=address,
        ASSAY_REFERENCES__HTTPS_CA_PATH=str(ca_path),
        ASSAY_REFERENCES__ALLOW_PRIVATE_ADDRESSES="true",
        ASSAY_REFERENCES__S3_BUCKETS="bucket",
        ASSAY_REFERENCES__S3_ENDPOINT_URL=endpoint,
        ASSAY_REFERENCES__S3_REGION="us-east-1",
        ASSAY_REFERENCES__S3_ACCESS_KEY_ID="k",
        ASSAY_REFERENCES__S3_SECRET_ACCESS_KEY="s",
    )
    good = {
        "file": {"uri": f"file://{root}/image.jpg"},
        "https": {"uri": f"https://{address}/image.jpg", "sha256": hashlib.sha256(IMAGE).hexdigest()},
        "s3": {"uri": f"s3://bucket/image.jpg?versionId={version}"},
    }
    bad = {
        "bad-json": (b"{", "bad_reference"),
        "no-uri": ({"url": "x"}, "bad_reference"),
        "http": ({"uri": f"http://{address}/image.jpg"}, "fetch_denied"),
        "other-host": ({"uri": "https://169.254.169.254/latest/meta-data"}, "fetch_denied"),
        "other-root": ({"uri": f"file://{tmp_path}/secret.jpg"}, "fetch_denied"),
        "link-out": ({"uri": f"file://{root}/link.jpg"}, "fetch_denied"),
        "dots-out": ({"uri": f"file://{root}/../secret.jpg"}, "fetch_denied"),
        "other-bucket": ({"uri": "s3://elsewhere/image.jpg"}, "fetch_denied"),
        "no-file": ({"uri": f"file://{root}/none.jpg"}, "fetch_failed"),
        "not-found": ({"uri": f"https://{address}/none.jpg"}, "fetch_failed"),
        "no-key": ({"uri": "s3://bucket/none.jpg"}, "fetch_failed"),
        "other-hash": ({"uri": f"file://{root}/image.jpg", "sha256": "0" * 64}, "hash_mismatch"),
        "too-large": ({"uri": f"file://{root}/large.jpg"}, "too_large"),
        "too-large-https": ({"uri": f"https://{address}/large.jpg"}, "too_large"),
        "empty": ({"uri": f"https://{address}/empty.jpg"}, "empty"),
        "garbage": ({"uri": f"file://{root}/garbage.jpg"}, "unsupported_format corrupt"),
        "overwritten": ({"uri": "s3://bucket/image.jpg"}, "unsupported_format corrupt"),
    }
    for image_id, reference in good.items():
        outside.send(image_id, json.dumps(reference).encode(), [TYPE])
    for image_id, (reference, _) in bad.items():
        outside.send(image_id, reference if isinstance(reference, bytes) else json.dumps(reference).encode(), [TYPE])
    own_id = json.dumps({**good["file"], "id": "own-id"}).encode()
    outside.send(None, own_id, [("content-type", b"Application/VND.assay.image-ref+JSON; charset=utf-8")])
    outside.send("inline", IMAGE, [("content-type", b"image/png")])
    outside.flush()
    verdicts = outside.wait_verdicts([*good, "inline", "own-id"])
    wait_until(lambda: len(outside.rejections()) >= len(bad), "a reason for every bad reference")
    assert len({json.dumps(verdict["scores"]) for verdict in verdicts.values()}) == 1
    assert {verdict["sha256"] for verdict in verdicts.values()} == {hashlib.sha256(IMAGE).hexdigest()}
    assert {verdict["image"]["bytes"] for verdict in verdicts.values()} == {len(IMAGE)}
    reasons = {
        image_id: dict(record.headers)["reject_reason"].decode() for image_id, record in outside.rejections().items()
    }
    assert reasons.keys() == bad.keys()
    for image_id, (reference, expected) in bad.items():
        assert reasons[image_id] in expected.split(), image_id
        sent = reference if isinstance(reference, bytes) else json.dumps(reference).encode()
        assert outside.rejections()[image_id].value == sent
    wait_until(outside.all_committed, "every offset committed")


def test_references_are_off_by_default(outside, start_worker, root):
    """Without a setting every reference is denied."""
    start_worker()
    outside.send("off", json.dumps({"uri": f"file://{root}/image.jpg"}).encode(), [TYPE])
    outside.flush()
    wait_until(outside.rejections, "a rejection")
    headers = dict(outside.rejections()["off"].headers)
    assert headers["reject_reason"] == b"fetch_denied" and b"ASSAY_REFERENCES__SCHEMES" in headers["reject_detail"]


def test_a_storage_that_is_away_is_waited_for(outside, start_worker, root, tmp_path):
    """The host of a reference is down: nothing is rejected and nothing pauses; it comes back and the verdict with
    it.
    """
    authority, ca_path = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as placeholder:
        port = placeholder.server_address[1]
    worker = start_worker(
        ASSAY_REFERENCES__SCHEMES="https",
        ASSAY_REFERENCES__HTTPS_HOSTS=f"localhost:{port}",
        ASSAY_REFERENCES__HTTPS_CA_PATH=str(ca_path),
        ASSAY_REFERENCES__ALLOW_PRIVATE_ADDRESSES="true",
        ASSAY_REFERENCES__WAIT_MS="500",
        ASSAY_REFERENCES__RETRY_DELAY_S="1",
    )
    outside.send("later", json.dumps({"uri": f"https://localhost:{port}/image.jpg"}).encode(), [TYPE])
    outside.flush()
    wait_until(lambda: worker.metric("assay_records_parked_total") >= 1, "the reference is parked")
    assert worker.metric("assay_paused") == 0
    assert outside.rejections() == {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(root)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        outside.wait_verdicts(["later"])
        assert outside.rejections() == {}
    finally:
        server.shutdown()
        server.server_close()
