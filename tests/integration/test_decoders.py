"""Images that end their decoders, through the whole system: each costs itself alone, and the worker is the same
process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.harness import samples, unlike, wait_until
from tests.odd_images import planted

pytestmark = pytest.mark.integration
PLANTED = Path(__file__).parents[1] / "examine" / "planted"
KILLERS = {
    "crash": ("SIGNAL SIGSEGV", "SIGSEGV"),
    "killed": ("SIGNAL SIGKILL", "SIGKILL"),
    "hang": ("SLEEP 600", "ASSAY_DECODE__TIMEOUT_MS=500"),
    "loop": ("LOOP", "ASSAY_DECODE__TIMEOUT_MS=500"),
    "bomb": ("TAKE 4000000000", "ASSAY_DECODE__MEMORY_BYTES"),
}


def test_killers_of_decoders_cost_themselves_alone(outside, start_worker):
    """A crash, a kill, a hang and a memory bomb among good images: verdicts for these, `corrupt` after three tries with
    the cause named for those, and the worker never ends.
    """
    worker = start_worker(PYTHONPATH=str(PLANTED), ASSAY_DECODE__TIMEOUT_MS="500")
    pid = worker.process.pid
    images = list(samples(10).values())
    good = {f"good/{number}": unlike(images[number % len(images)], number) for number in range(50)}
    for number, (name, data) in enumerate(good.items()):
        outside.send(name, data)
        if number % 10 == 5:
            killer, (order, _) = list(KILLERS.items())[number // 10]
            outside.send(killer, planted(order))
    outside.flush()
    assert set(outside.wait_verdicts(good)) == set(good)
    wait_until(lambda: set(outside.rejections()) == set(KILLERS), "the killers are rejected")
    for name, record in outside.rejections().items():
        headers = {key: (value or b"").decode() for key, value in record.headers}
        assert (headers["reject_reason"], headers["reject_stage"], headers["reject_attempts"]) == (
            "corrupt",
            "decode",
            "3",
        )
        assert KILLERS[name][1] in headers["reject_detail"]
    wait_until(outside.all_committed, "every offset committed")
    assert worker.process.poll() is None
    assert worker.process.pid == pid
    assert worker.terminate() == 0


def test_a_flood_of_slow_images_keeps_nobody_out(outside, start_worker):
    """More than may be in work at once, each good for half a minute of a decoder: the others are judged meanwhile."""
    worker = start_worker(PYTHONPATH=str(PLANTED), ASSAY_FLOW__MAX_ITEMS="8", ASSAY_RUN__DRAIN_TIMEOUT_S="1")
    for number in range(40):
        outside.send(f"slow/{number}", planted(f"SLEEP {600 + number // 2}"))  # half of them are copies
    outside.flush()
    wait_until(lambda: worker.metric("assay_slow_images") > 12, "more than the flow takes wait aside")
    images = list(samples(10).values())
    good = {f"good/{number}": unlike(images[number % len(images)], number) for number in range(40)}
    outside.send_all(good)
    outside.wait_verdicts(good)
    assert len(outside.rejections()) < 40, "the slow ones have not ended before them"
    assert worker.terminate() == 0
