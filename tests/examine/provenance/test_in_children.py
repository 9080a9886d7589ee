"""Evidence read where it is read in a worker: in a child that has given up files, connections and programs."""

from __future__ import annotations

import time

import pytest

from tests.examine.provenance import made
from worker.clients.shared_memory import Regions
from worker.examine.findings import Findings
from worker.examine.pool import Pool
from worker.examine.provenance.trust import reader_version
from worker.settings import DecodeSettings, LimitSettings
from worker.telemetry.metrics import Metrics

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def authority():
    return made.Authority()


@pytest.fixture(scope="module")
def examine(authority, tmp_path_factory):
    """A function from named images to what the children found of each."""
    path = tmp_path_factory.mktemp("trust") / "anchors.pem"
    path.write_text(authority.pem)
    pool: Pool[str] = Pool(
        DecodeSettings(device="cpu", processes=1), LimitSettings(), Regions(4, 32, None), Metrics(), path
    )

    def run(images: dict[str, bytes]) -> dict[str, Findings]:
        pool.submit(list(images.items()))
        found: dict[str, Findings] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < len(images):
            assert time.monotonic() < deadline, pool.trouble
            for examined in pool.wait(1.0):
                assert not examined.bad
                found |= dict(examined.good)
                if examined.lease is not None:
                    examined.lease.release()
        return found

    yield run
    pool.close()


def test_a_confined_child_reads_every_kind(authority, examine):
    """Manifests against the worker's trust list, metadata, and nothing of a plain image; each with the reader's
    version.
    """
    found = examine(
        {
            "signed": made.signed(made.encoded(), "jpeg", authority.signer()),
            "stranger": made.signed(made.encoded("PNG"), "png", made.Authority().signer()),
            "text": made.png(made.text("parameters", made.A1111)),
            "xmp": made.encoded("WEBP", xmp=made.source_type_xmp("compositeWithTrainedAlgorithmicMedia")),
            "plain": made.encoded(),
        }
    )
    assert {name: (one.evidence.declared, one.evidence.c2pa.state) for name, one in found.items()} == {
        "signed": ("generated", "valid"),
        "stranger": (None, "untrusted"),
        "text": ("generated", None),
        "xmp": ("edited", None),
        "plain": (None, None),
    }
    assert {one.reader for one in found.values()} == {reader_version(authority.pem)}
