"""What a cached image is written as, and how it reads back; the calls on a real server are in tests/integration."""

from __future__ import annotations

import pytest

from tests.twins import scores
from worker.clients.redis import _IMAGE_FIELDS, ScoredImage, Store, _image_hash
from worker.clients.redis_connect import connect
from worker.contract import ImageInfo
from worker.evidence import C2pa, Evidence, FileMetadata, Nearest, Neighbour
from worker.settings import RedisSettings, load

VERSION = "0123456789ab"
INFO = ImageInfo(format="jpeg", width=640, height=480, bytes=1000, jpeg_quality=85, frames=1)
EVIDENCE = Evidence(
    declared="generated",
    c2pa=C2pa(state="untrusted", issuer="Somebody"),
    metadata=FileMetadata(tool="comfyui"),
    nearest=Nearest(fake=Neighbour(distance=0.08, label="sdxl")),
)


def read_back(written: dict[str, str], version: str = VERSION):
    row = [written.get(name) for name in (version, f"nearest:{version}", *_IMAGE_FIELDS)]
    return Store(RedisSettings())._entry(row)


def test_a_cached_image_reads_back_whole():
    """Scores, header and evidence, and who read it; its size is that of the bytes at hand."""
    entry = read_back(_image_hash(ScoredImage("a" * 64, "id", VERSION, scores(0.3), INFO, EVIDENCE, "reader")))
    assert (entry.scores, entry.evidence, entry.reader) == (scores(0.3), EVIDENCE, "reader")
    assert entry.info(1000) == INFO


def test_an_entry_of_the_first_release_has_scores_and_no_evidence():
    """It was written without; whoever needs the evidence reads the file again."""
    entry = read_back({VERSION: scores(0.3).model_dump_json(), "format": "png", "width": "8", "height": "9"})
    assert (entry.scores, entry.evidence, entry.reader) == (scores(0.3), Evidence(), "")
    assert (entry.jpeg_quality, entry.frames) == (None, None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"declared": "stolen"}'])
def test_evidence_that_cannot_be_read_is_read_anew(text):
    """It counts as nobody's, and the scores stay."""
    written = _image_hash(ScoredImage("a" * 64, "id", VERSION, scores(0.3), INFO, EVIDENCE, "reader"))
    entry = read_back(written | {"evidence": text})
    assert (entry.scores, entry.evidence, entry.reader) == (scores(0.3), Evidence(), "")


def test_neighbours_are_those_of_the_model_that_found_them():
    """Another version of the model has another bank."""
    written = _image_hash(ScoredImage("a" * 64, "id", VERSION, scores(0.3), INFO, EVIDENCE, "reader"))
    written["ba9876543210"] = scores(0.4).model_dump_json()
    entry = read_back(written, "ba9876543210")
    assert entry.scores == scores(0.4)
    assert entry.evidence == EVIDENCE.model_copy(update={"nearest": Nearest()})


@pytest.mark.integration
def test_a_key_that_somebody_else_has_taken_holds_nothing(worker_env):
    """A string or a list where a verdict or a cached image should stand is no outage of Redis."""
    settings = load(environ={name: value for name, value in worker_env.items() if name.startswith("ASSAY_")}).redis
    store = Store(settings)
    client = connect(settings, settings.timeout_ms)
    client.set(store.verdict_key("text"), "x")
    client.rpush(store.verdict_key("list"), "x")
    client.hset(store.verdict_key("ours"), "json", "{}")
    client.set(store.image_key("a" * 64), "x")
    assert store.verdict("text") == store.verdict("list") == store.verdict("nothing") == {}
    assert store.verdicts(["text", "ours", "list"]) == [{}, {"json": "{}"}, {}]
    assert store.latest_id("a" * 64) is None
    store.close()
