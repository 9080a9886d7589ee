"""The delivery promise on real servers: every record ends once, whatever happens to workers and servers on the way."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from tritonclient import grpc

from tests.integration.harness import Outside, samples, unlike, wait_until

pytestmark = pytest.mark.integration


def photographs(count: int, contents: int, tag: str = "image") -> dict[str, bytes]:
    """`count` ids over `contents` different byte strings: the first of each, then repeats at random."""
    jpegs = [data for name, data in samples().items() if name.endswith(".jpg")]
    pick = random.Random(0)
    numbers = [n if n < contents else pick.randrange(contents) for n in range(count)]
    return {f"{tag}/{i}": unlike(jpegs[n % len(jpegs)], n) for i, n in enumerate(numbers)}


def check_accounts(outside: Outside, ids: Iterable[str]) -> None:
    """Every id has exactly one verdict in Redis, one verdict_id over all its records, and every offset is committed."""
    wait_until(outside.all_committed, "every offset committed")
    by_id = defaultdict(set)
    for verdict in outside.verdicts():
        by_id[verdict["image_id"]].add(verdict["verdict_id"])
    ids = set(ids)
    assert by_id.keys() == ids
    assert all(len(found) == 1 for found in by_id.values())
    assert all(outside.stored(image_id)["verdict_id"] == next(iter(by_id[image_id])) for image_id in ids)
    assert outside.rejections() == {}


@pytest.mark.slow
def test_two_thousand_images_survive_a_kill(outside, start_worker):
    """2,000 images with repeats; the worker is killed in the middle and started again: each ends exactly once."""
    images = photographs(2000, contents=250)
    first = start_worker()
    outside.send_all(images)
    wait_until(lambda: len(outside.verdicts()) > 200, "some verdicts")
    first.kill()
    assert len({verdict["image_id"] for verdict in outside.verdicts()}) < len(images), (
        "killed too late to prove anything"
    )
    start_worker()
    outside.wait_verdicts(images, timeout_s=240)
    check_accounts(outside, images)


def test_a_redelivered_record_yields_the_same_verdict(outside, start_worker):
    """Killed before the commit: everything comes again, from the cache, with the same verdict_id and scores."""
    images = photographs(40, contents=40)
    first = start_worker(ASSAY_KAFKA__COMMIT_INTERVAL_MS="600000")
    wait_until(lambda: first.metric("assay_assigned_partitions") == 3, "assignment")
    outside.send_all(images)
    before = outside.wait_verdicts(images)
    first.kill()
    count = len(outside.verdicts())
    start_worker()
    wait_until(lambda: len(outside.verdicts()) >= count + len(images), "redelivery")
    after = outside.wait_verdicts(images)
    for image_id in images:
        assert after[image_id]["verdict_id"] == before[image_id]["verdict_id"]
        assert after[image_id]["scores"] == before[image_id]["scores"]
        assert after[image_id]["source"] == "cache"
    check_accounts(outside, images)


def test_sigterm_in_the_middle_loses_nothing(outside, start_worker):
    """SIGTERM with work in flight: exit 0, what was finished is committed, the next worker does the rest."""
    images = photographs(300, contents=300)
    first = start_worker(ASSAY_FLOW__MAX_ITEMS="64")  # so that most of them still wait in Kafka
    outside.send_all(images)
    wait_until(lambda: len(outside.verdicts()) > 20, "some verdicts")
    assert first.terminate() == 0
    done = {verdict["image_id"] for verdict in outside.verdicts()}
    assert len(done) < len(images), "stopped too late to prove anything"
    assert sum(offset or 0 for offset in outside.committed().values()) == len(done), "everything finished is committed"
    start_worker()
    outside.wait_verdicts(images, timeout_s=180)
    check_accounts(outside, images)


def test_a_second_consumer_joins_and_leaves(outside, start_worker):
    """Partitions move to a second worker in mid-stream and back: nothing is lost, nothing is judged differently."""
    images = photographs(400, contents=400)
    first = start_worker()
    outside.send_all(dict(list(images.items())[:200]))
    second = start_worker(ASSAY_HTTP__PORT=str(first.port + 1))
    assert second.metric("assay_assigned_partitions") >= 1
    outside.send_all(dict(list(images.items())[200:300]))
    assert second.terminate() == 0
    outside.send_all(dict(list(images.items())[300:]))
    wait_until(lambda: first.metric("assay_assigned_partitions") == 3, "all partitions back")
    outside.wait_verdicts(images, timeout_s=180)
    check_accounts(outside, images)
    revoked = first.events("partitions_revoked")
    assert revoked and all(len(event["gone"]) < 3 for event in revoked), "cooperative: only what moves is taken away"


def test_a_frozen_worker_does_not_undo_the_new_owners_work(outside, start_worker):
    """A worker stopped past its session and woken later publishes nothing stale, and what it commits skips nothing."""
    images = photographs(200, contents=200)
    frozen = start_worker()
    outside.send_all(images)
    wait_until(lambda: len(outside.verdicts()) > 10, "some verdicts")
    os.kill(frozen.process.pid, signal.SIGSTOP)
    start_worker(ASSAY_HTTP__PORT=str(frozen.port + 1))
    outside.wait_verdicts(images, timeout_s=180)
    os.kill(frozen.process.pid, signal.SIGCONT)
    check_accounts(outside, images)
    assert frozen.terminate() == 0
    check_accounts(outside, images)


def test_memory_marks_pause_consumption(outside, start_worker):
    """With place for eight records in work the worker pauses, never holds more, and still judges everything."""
    images = photographs(120, contents=120)
    outside.send_all(images)
    worker = start_worker(ASSAY_FLOW__MAX_ITEMS="8", ASSAY_INTAKE__BATCH_MAX_ITEMS="4")
    seen = 0.0
    deadline = time.monotonic() + 120
    while len(outside.verdicts()) < len(images) and time.monotonic() < deadline:
        seen = max(seen, worker.metric("assay_flow_items"))
    assert seen <= 8
    assert worker.metric("assay_pauses_total", cause="flow") > 0
    check_accounts(outside, images)


def test_killed_workers_leave_no_memory_with_triton(outside, start_worker):
    """The regions of a worker that was killed are given up by the server, too, when the next one starts: their pages
    are free again.
    """
    with closing(grpc.InferenceServerClient(outside.env["ASSAY_TRITON__URL"])) as triton:

        def held(worker) -> set[str]:
            maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
            return {name for name in triton.get_system_shared_memory_status().regions if f"/dev/shm/{name}" in maps}

        first = start_worker(ASSAY_TRITON__SHARED_MEMORY="system")
        wait_until(lambda: held(first), "the first worker's regions")  # made for the first canary
        killed = held(first)
        first.kill()
        second = start_worker(ASSAY_TRITON__SHARED_MEMORY="system")
        wait_until(lambda: held(second), "the second worker's regions")
        mine = held(second)
        wait_until(
            lambda: not killed & set(triton.get_system_shared_memory_status().regions),
            "the killed worker's regions are given up",
        )
        assert second.terminate() == 0
        assert not mine & set(triton.get_system_shared_memory_status().regions)
