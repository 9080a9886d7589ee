"""C2PA: each state of a manifest, with certificates made here; nothing is fetched, and no name is trusted."""

from __future__ import annotations

import http.server
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.examine.provenance import made, stamps
from worker.evidence import C2pa
from worker.examine.provenance.manifest import ManifestReader
from worker.examine.provenance.reader import ProvenanceReader

FORMATS = ("jpeg", "png", "webp", "tiff", "gif", "avif")
EXPIRES_AFTER_S = 3.0


@pytest.fixture(scope="module")
def authority():
    return made.Authority()


@pytest.fixture(scope="module")
def expiring(authority):
    """A JPEG whose signer's certificate ends soon, and when: signed first, so that the other tests pass the time."""
    signer = authority.signer(valid_s=EXPIRES_AFTER_S)
    return made.signed(made.encoded(), "jpeg", signer), datetime.now(UTC) + timedelta(seconds=EXPIRES_AFTER_S + 1)


@pytest.fixture(scope="module")
def stamp_root():
    return made.Authority("Stamp Root")


@pytest.fixture(scope="module")
def stamped(authority, stamp_root):
    """The same with a time stamp: of now, and of after its end. (In time, too late, when it has ended.)"""
    files = []
    for ahead in (timedelta(), timedelta(hours=1)):
        stamping = stamps.StampingAuthority(*stamp_root.signer("Stamps", stamps=True), ahead)
        with stamps.served(stamping) as url:
            signer = authority.signer(valid_s=EXPIRES_AFTER_S)
            files.append(made.signed(made.encoded(), "jpeg", signer, stamped_by=url))
        assert stamping.asked == 1
    return *files, datetime.now(UTC) + timedelta(seconds=EXPIRES_AFTER_S + 1)


@pytest.fixture(scope="module")
def trusting(authority, expiring, stamped):
    return ManifestReader(authority.pem)


@pytest.fixture(scope="module")
def trusting_nobody(expiring):
    return ManifestReader(None)


@pytest.mark.slow
@pytest.mark.parametrize("image_format", FORMATS)
def test_a_sound_manifest_is_valid_by_the_trust_list_and_untrusted_without(
    authority, trusting, trusting_nobody, image_format
):
    """In every format that can hold one, with what it says about itself."""
    data = made.signed(made.encoded(image_format.upper()), image_format, authority.signer())
    said = {"issuer": "Test Signer", "claim_generator": "Test Camera 1.0", "source_type": "trainedAlgorithmicMedia"}
    assert trusting.read(data, image_format) == C2pa(state="valid", **said)
    assert trusting_nobody.read(data, image_format) == C2pa(state="untrusted", **said)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_manifest_is_found_by_the_walk_over_the_container(authority, image_format):
    """What decides whether the library is asked at all."""
    data = made.signed(made.encoded(image_format.upper()), image_format, authority.signer())
    evidence = ProvenanceReader(authority.pem).read(data, image_format)
    assert (evidence.c2pa.state, evidence.declared) == ("valid", "generated")


def test_changed_pixels_are_invalid(authority, trusting):
    """The hash of the file no longer holds, whoever signed it."""
    data = bytearray(made.signed(made.encoded(), "jpeg", authority.signer()))
    data[-30] ^= 1
    assert trusting.read(bytes(data), "jpeg").state == "invalid"


def test_a_famous_name_in_the_certificate_is_no_trust(trusting):
    """Anybody can make an authority and call a signer Adobe; the name is shown, and proves nothing."""
    data = made.signed(made.encoded(), "jpeg", made.Authority("Adobe Root CA").signer("Adobe Inc."))
    found = trusting.read(data, "jpeg")
    assert (found.state, found.issuer) == ("untrusted", "Adobe Inc.")


def test_a_stripped_file_has_no_manifest(trusting):
    """The library is not even needed for it, and agrees."""
    assert trusting.read(made.encoded(), "jpeg") == C2pa()


@pytest.mark.slow
@pytest.mark.parametrize("embed", [False, True])
def test_a_remote_manifest_is_never_fetched(authority, embed):
    """A link leads nowhere, alone or beside an embedded manifest: a server of the test waits for a request in vain."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/manifest.c2pa"
        data = made.signed(made.encoded(), "jpeg", authority.signer(), remote_url=url, embed=embed)
        assert url.encode() in data
        evidence = ProvenanceReader(authority.pem).read(data, "jpeg")
        found = ManifestReader(authority.pem).read(data, "jpeg")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.state == evidence.c2pa.state == ("valid" if embed else None)
    assert requests == []


@pytest.mark.parametrize(
    "store",
    [
        b"",
        b"\0" * 64,
        b"\xff" * 100_000,
        b"\xff\xff\xff\xf0jumb",
        # Boxes inside boxes, and a size beyond the file.
        b"".join(size.to_bytes(4, "big") + b"jumb" for size in range(160_008, 8, -8)),
        b"\0\0\0\1jumb" + b"\x40" + b"\0" * 7,
    ],
)
def test_what_is_no_manifest_is_at_most_invalid(trusting, store):
    """A bomb or rubbish in the place of a manifest costs milliseconds and raises nothing."""
    data = made.png(made.chunk(b"caBX", store))
    assert trusting.read(data, "png").state in (None, "invalid")


def test_a_manifest_with_many_ingredients_is_read(authority, trusting):
    """Each ingredient carries the manifests of its own; they are judged once, not once for each path to them."""
    data, signer = made.encoded(), authority.signer()
    for _ in range(4):
        data = made.signed(data, "jpeg", signer, ingredients=3)
    assert trusting.read(data, "jpeg").state is not None


@pytest.mark.slow
def test_an_expired_certificate_is_invalid(expiring, trusting):
    """Without a trusted time stamp nobody knows that the file was signed in time."""
    data, expired_at = expiring
    time.sleep(max(0.0, (expired_at - datetime.now(UTC)).total_seconds()))
    assert trusting.read(data, "jpeg").state == "invalid"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signers", "stampers", "state"),
    [(True, True, "valid"), (True, False, "invalid"), (False, True, "untrusted"), (False, False, "invalid")],
)
def test_an_expired_certificate_counts_by_a_trusted_time_stamp(
    authority, stamp_root, stamped, signers, stampers, state
):
    """Whoever the list trusts with the time says that the file was signed in time; others may have been told to."""
    in_time, _, expired_at = stamped
    time.sleep(max(0.0, (expired_at - datetime.now(UTC)).total_seconds()))
    anchors = (authority.pem if signers else "") + (stamp_root.pem if stampers else "")
    assert ManifestReader(anchors or None).read(in_time, "jpeg").state == state


def test_a_time_stamp_of_after_the_end_is_no_help(authority, stamp_root, stamped):
    """However trusted: it says that the file was signed too late."""
    _, too_late, expired_at = stamped
    time.sleep(max(0.0, (expired_at - datetime.now(UTC)).total_seconds()))
    assert ManifestReader(authority.pem + stamp_root.pem).read(too_late, "jpeg").state == "invalid"


def test_a_changed_time_stamp_is_no_help(authority, stamp_root, stamped):
    """A digit of its time, and the signature no longer fits."""
    in_time, _, expired_at = stamped
    damaged = bytearray(in_time)
    damaged[in_time.index(b"\x18\x0f20") + len("\x18\x0f20261201120000")] ^= 1  # seconds, of a GeneralizedTime
    time.sleep(max(0.0, (expired_at - datetime.now(UTC)).total_seconds()))
    assert ManifestReader(authority.pem + stamp_root.pem).read(bytes(damaged), "jpeg").state == "invalid"
