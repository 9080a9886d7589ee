"""Every format and odd image through the whole system: the right verdict or the right reason, and nothing else
affected.
"""

from __future__ import annotations

import hashlib
import json
import uuid

import jsonschema
import pytest

from tests.integration.harness import samples, wait_until
from tests.odd_images import odd_images
from worker.contract import HEADS, Verdict, json_schema

pytestmark = pytest.mark.integration


def test_every_odd_image_gets_its_verdict_or_its_reason(outside, start_worker):
    """A verdict for whatever Pillow can open, the right reason for everything else, and the worker goes on."""
    worker = start_worker()
    odd = odd_images()
    for image_id, image in odd.items():
        outside.send(image_id, image.data)
    outside.flush()
    wait_until(
        lambda: len(outside.rejections()) + len({v["image_id"] for v in outside.verdicts()}) >= len(odd),
        "an end for every image",
    )
    judged = {verdict["image_id"] for verdict in outside.verdicts()}
    rejected = {
        image_id: dict(record.headers)["reject_reason"].decode() for image_id, record in outside.rejections().items()
    }
    assert not judged & rejected.keys()
    for image_id, image in odd.items():
        got = "ok" if image_id in judged else rejected.get(image_id)
        assert got in {str(expected) for expected in image.expect}, f"{image_id} ({image.note}): {got}"
    wait_until(outside.all_committed, "every offset committed")
    assert worker.terminate() == 0


def test_a_verdict_is_complete_and_stored_before_its_record(outside, start_worker):
    """Each verdict record matches the schema, and Redis had the same verdict when the record appeared."""
    start_worker()
    images = samples(20)
    outside.send_all(images)
    missing = set(images)
    schema = json_schema(Verdict)
    seen = 0

    def all_seen() -> bool:
        nonlocal seen
        records = outside.records(outside.verdicts_topic)
        for record in records[seen:]:
            verdict = json.loads(record.value)
            stored = outside.stored(verdict["image_id"])  # at once: no waiting
            assert stored["json"] == record.value.decode()
            assert stored["verdict_id"] == verdict["verdict_id"] == dict(record.headers)["ce_id"].decode()
            assert stored["decision"] == verdict["decision"]
            assert all(float(stored[f"score_{head}"]) == verdict["scores"][head] for head in HEADS)
            assert stored["model"] == verdict["model"]["version"] and stored["policy"] == verdict["policy"]["version"]
            assert record.key.decode() == verdict["image_id"]
            jsonschema.validate(verdict, schema)
            name = "\n".join(
                [verdict["image_id"], verdict["sha256"], verdict["model"]["version"], verdict["policy"]["version"]]
            )
            assert verdict["verdict_id"] == str(uuid.uuid5(uuid.NAMESPACE_URL, "assay:" + name))
            assert verdict["sha256"] == hashlib.sha256(images[verdict["image_id"]]).hexdigest()
            missing.discard(verdict["image_id"])
        seen = len(records)
        return not missing

    wait_until(all_seen, "a verdict on every image")
    ttl = outside.redis.ttl(f"{outside.prefix}verdict:{next(iter(images))}")
    assert 29 * 86400 < ttl <= 30 * 86400


def test_ids_follow_the_contract(outside, start_worker):
    """ce_id beats the key, the key beats the hash; an invalid ce_id is rejected, an empty one leaves the choice to the
    key.
    """
    start_worker()
    image = next(iter(samples(1).values()))
    sha256 = hashlib.sha256(image).hexdigest()
    outside.send(None, image, [("ce_id", b"from-header")], key=b"from-key-1")
    outside.send(None, image, key=b"from-key-2")
    outside.send(None, image, [("ce_id", b"")], key=b"from-key-3")
    outside.send(None, image, key=b"\xff\xfe")
    outside.send(None, image, [("ce_id", b"bad\nid")], key=b"from-key-4")
    outside.send(None, image, [("ce_id", b"x" * 257)], key=b"from-key-5")
    outside.flush()
    outside.wait_verdicts(["from-header", "from-key-2", "from-key-3", sha256])
    wait_until(lambda: len(outside.records(outside.rejected_topic)) == 2, "two rejections")
    for record in outside.records(outside.rejected_topic):
        assert dict(record.headers)["reject_reason"] == b"bad_image_id"
    assert not outside.stored("from-key-4") and not outside.stored("from-key-5")


def test_a_rejection_carries_the_record_and_replay_brings_it_back(outside, start_worker, run_cli):
    """Bytes, key and headers as received, plus ours; after the limit is mended `replay` leads to a verdict with the
    same bytes.
    """
    first = start_worker(ASSAY_LIMITS__MAX_IMAGE_BYTES="1000")
    image = next(iter(samples(1).values()))
    theirs = [
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-user", b"u1"),
        ("x-user", b"u2"),
        ("x-null", None),
        ("image_id", b"their own"),
    ]
    outside.send_raw(outside.incoming, b"the-key", image, theirs)
    wait_until(outside.rejections, "a rejection")
    record = outside.rejections()["the-key"]
    headers = dict(record.headers)
    assert record.value == image and record.key == b"the-key"
    received = [
        (name, value)
        for name, value in record.headers
        if name in ("traceparent", "x-user", "x-null") or value == b"their own"
    ]
    assert received == [(name, value or b"") for name, value in theirs]
    assert headers["reject_reason"] == b"too_large" and b"ASSAY_LIMITS__MAX_IMAGE_BYTES" in headers["reject_detail"]
    assert headers["original_topic"].decode() == outside.incoming and headers["image_id"] == b"the-key"
    assert headers["sha256"].decode() == hashlib.sha256(image).hexdigest()
    wait_until(outside.all_committed, "commit")
    assert first.terminate() == 0

    dry = run_cli("replay", "--reason", "too_large", "--dry-run", "--json", env=outside.env)
    assert dry.returncode == 0 and json.loads(dry.stdout)["image_id"] == "the-key"
    assert run_cli("replay", "--reason", "corrupt", env=outside.env).returncode == 0
    assert outside.all_committed(), "neither of them may have sent anything"
    assert run_cli("replay", "--reason", "too_large", env=outside.env).returncode == 0
    start_worker()
    verdict = outside.wait_verdicts(["the-key"])["the-key"]
    assert verdict["sha256"] == headers["sha256"].decode()
    trace = dict(outside.records(outside.verdicts_topic)[-1].headers)["traceparent"].decode().split("-")
    assert trace[1] == "0af7651916cd43dd8448eb211c80319c" and trace[2] != "b7ad6b7169203331"


def test_empty_records_are_rejected_and_do_not_stop_the_worker(outside, start_worker):
    """A tombstone, with and without a key, and an empty value, with and without one: as received, and life goes on."""
    start_worker()
    outside.send_raw(outside.incoming, b"tombstone", None, [])
    outside.send_raw(outside.incoming, None, None, [("mark", b"null-null")])
    outside.send_raw(outside.incoming, None, b"", [])
    outside.send_raw(outside.incoming, b"empty", b"", [("x-null", None)])
    outside.send("fine", next(iter(samples(1).values())))
    outside.flush()
    outside.wait_verdicts(["fine"])
    wait_until(lambda: len(outside.records(outside.rejected_topic)) == 4, "four rejections")
    assert {dict(record.headers)["reject_reason"] for record in outside.records(outside.rejected_topic)} == {b"empty"}
    (tombstone,) = [
        record for record in outside.records(outside.rejected_topic) if dict(record.headers).get("mark") == b"null-null"
    ]
    assert tombstone.key is None and tombstone.value is None
    wait_until(outside.all_committed, "commit")


def test_the_same_bytes_are_not_inferred_twice(outside, start_worker):
    """The second send comes from the cache, with the first run's scores digit for digit and no decode or infer time."""
    worker = start_worker()
    images = samples(12)
    outside.send_all(images)
    first = outside.wait_verdicts(images)
    calls = worker.metric("assay_triton_calls_total", outcome="ok")
    outside.send_all({f"again/{image_id}": data for image_id, data in images.items()})
    second = outside.wait_verdicts([f"again/{image_id}" for image_id in images])
    for image_id in images:
        again = second[f"again/{image_id}"]
        assert again["source"] == "cache" and first[image_id]["source"] == "model"
        assert again["scores"] == first[image_id]["scores"]
        assert again["timings_ms"]["decode"] is None and again["timings_ms"]["infer"] is None
        assert again["image"] == first[image_id]["image"]
    assert worker.metric("assay_verdicts_total", decision="real", source="cache") + worker.metric(
        "assay_verdicts_total", decision="fake", source="cache"
    ) + worker.metric("assay_verdicts_total", decision="review", source="cache") == len(images)
    assert worker.metric("assay_triton_calls_total", outcome="ok") <= calls + 2, "at most a canary"
    broken = next(iter(images))
    outside.redis.hset(
        f"{outside.prefix}image:{first[broken]['sha256']}", first[broken]["model"]["version"], b"\xff\xfe"
    )
    outside.send_all({"after-damage": images[broken]})
    assert outside.wait_verdicts(["after-damage"])["after-damage"]["source"] == "model", "an unreadable entry is a miss"
    outside.send_all({f"again/{broken}": images[broken]})
    wait_until(
        lambda: outside.redis.hget(f"{outside.prefix}image:{first[broken]['sha256']}", "image_id") == f"again/{broken}",
        "the latest id",
    )
    entry = outside.redis.hgetall(f"{outside.prefix}image:{first[next(iter(images))]['sha256']}")
    assert entry["image_id"].startswith("again/")


def test_the_later_record_of_an_id_wins(outside, start_worker):
    """One id with changing bytes: a verdict record per content, and Redis ends with the last, also when it was cached
    and the others not.
    """
    start_worker()
    images = list(samples(6).values())
    outside.send("warm", images[0])
    outside.flush()
    outside.wait_verdicts(["warm"])
    for image in [*images[1:], images[0]]:
        outside.send("same", image)
    outside.flush()
    wait_until(
        lambda: len({v["sha256"] for v in outside.verdicts() if v["image_id"] == "same"}) == 6, "a verdict per content"
    )
    assert outside.stored("same")["sha256"] == hashlib.sha256(images[0]).hexdigest()
