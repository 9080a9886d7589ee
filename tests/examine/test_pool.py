"""The pool of decoding processes: what one image does to its process costs no other image anything but a moment."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import encode, planted
from tests.twins import wait_for
from worker.clients.shared_memory import Regions
from worker.errors import Rejected, SettingsError
from worker.examine import crew
from worker.examine.findings import Examined
from worker.examine.pool import Pool
from worker.settings import DecodeSettings, LimitSettings
from worker.telemetry.metrics import Metrics

pytestmark = pytest.mark.slow

PLANTED = Path(__file__).parent / "planted"
MEMORY_BYTES = 192 << 20
PATIENCE_S = 60.0
LIMITS = LimitSettings(max_image_bytes=2_000_000, max_image_pixels=30_000_000)


class Bench:
    """A pool with planted faults (planted/sitecustomize.py), and what has come out of it."""

    def __init__(self, processes: int) -> None:
        self.metrics = Metrics()
        self.regions = Regions(4, 32, None)
        settings = DecodeSettings(device="cpu", processes=processes, timeout_ms=1200, memory_bytes=MEMORY_BYTES)
        self.pool: Pool[str] = Pool(settings, LIMITS, self.regions, self.metrics)

    def examine(self, images: dict[str, bytes]) -> list[Examined[str]]:
        """All outcomes; regions are released as they come."""
        self.pool.submit(list(images.items()))
        return self.gather(len(images))

    def gather(self, count: int) -> list[Examined[str]]:
        found: list[Examined[str]] = []
        deadline = time.monotonic() + PATIENCE_S
        while sum(len(one.good) + len(one.bad) for one in found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} came; {self.pool.trouble}"
            for one in self.pool.wait(1.0):
                found.append(Examined(one.good, one.bad, one.pixels.copy(), None))
                if one.lease is not None:
                    one.lease.release()
        return found

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(PLANTED)
    os.environ["ASSAY_TEST_SECRET"] = "hunter2"
    try:
        made = Bench(processes=1)
    finally:
        del os.environ["ASSAY_TEST_SECRET"]
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    yield made
    made.pool.close()


def plain(red: int, form: str = "PNG") -> bytes:
    return encode(Image.new("RGB", (240, 230), (red, 0, 0)), form)


def good(found: list[Examined[str]]) -> dict[str, int]:
    """The red of each good image's centre, by name."""
    return {name: int(one.pixels[row, 112, 112, 0]) for one in found for row, (name, _) in enumerate(one.good)}


def bad(found: list[Examined[str]]) -> dict[str, Rejected]:
    return {name: rejected for one in found for name, rejected in one.bad}


def test_images_come_back_with_their_pixels(bench: Bench) -> None:
    """Whatever decodes them: by DALI together, by Pillow one by one, each pixel in its own row and region."""
    images = {f"{form}-{red}": plain(red, form) for red in (40, 80, 120) for form in ("PNG", "BMP", "GIF")}
    (found,) = bench.examine(images)
    assert good([found]) == {name: int(name.partition("-")[2]) for name in images}
    assert [(name, info.info.format) for name, info in found.good] == [
        (name, name.partition("-")[0].lower()) for name in images
    ]
    assert found.pixels[0].shape == (224, 224, 3)
    assert bench.regions.free == 4


def test_a_bad_image_leaves_no_gap(bench: Bench) -> None:
    """Rows of the good move together, in order; the bad one has its reason."""
    images = {"a": plain(1), "cut": plain(2)[:-40], "b": plain(3), "text": b"no image", "c": plain(4)}
    (found,) = bench.examine(images)
    assert good([found]) == {"a": 1, "b": 3, "c": 4}
    assert {name: rejected.reason.value for name, rejected in found.bad} == {
        "cut": "corrupt",
        "text": "unsupported_format",
    }
    assert all(rejected.attempts == 1 for _, rejected in found.bad)


FAULTS = {
    "SIGNAL SIGSEGV": ("signal", r"signal SIGSEGV"),
    "SIGNAL SIGABRT": ("signal", r"signal SIGABRT"),
    "SIGNAL SIGKILL": ("signal", r"signal SIGKILL"),
    "EXIT 3": ("exit", r"exit code 3"),
    "SLEEP 60": ("timeout", r"ASSAY_DECODE__TIMEOUT_MS=1200"),
    "SPIN 60": ("timeout", r"ASSAY_DECODE__TIMEOUT_MS=1200"),
    "LOOP": ("timeout", r"ASSAY_DECODE__TIMEOUT_MS=1200"),
    f"TAKE {4 * MEMORY_BYTES}": ("memory", rf"ASSAY_DECODE__MEMORY_BYTES={MEMORY_BYTES}"),
}


@pytest.mark.parametrize("order", FAULTS)
def test_an_image_that_ends_its_process_costs_itself_alone(bench: Bench, order: str) -> None:
    """The others of its batch come out whole and without waiting for it; it is tried three times and rejected."""
    cause, detail = FAULTS[order]
    before = bench.metric("assay_decode_attempts_total", outcome=cause)
    images = {"a": plain(10), "killer": planted(order), "b": plain(20), "c": plain(30, "BMP")}
    found = bench.examine(images)
    assert good(found[:1]) == {"a": 10, "b": 20, "c": 30}, "they come first, together"
    (rejected,) = bad(found).values()
    assert (rejected.reason.value, rejected.stage, rejected.attempts) == ("corrupt", "decode", 3)
    assert re.search(detail, rejected.detail)
    assert bench.metric("assay_decode_attempts_total", outcome=cause) == before + 3


def test_killers_of_every_kind_in_one_batch(bench: Bench) -> None:
    """Several at once, beside good images: each outcome is the right one."""
    orders = ["SIGNAL SIGSEGV", "EXIT 1", "SIGNAL SIGBUS", "SLEEP 60", "SIGNAL SIGFPE"]
    images = {f"good-{number}": plain(number) for number in range(1, 21)}
    images |= {order: planted(order) for order in orders}
    names = sorted(images, key=lambda name: hash(name) % 97)
    found = bench.examine({name: images[name] for name in names})
    assert good(found) == {f"good-{number}": number for number in range(1, 21)}
    assert {name: rejected.attempts for name, rejected in bad(found).items()} == dict.fromkeys(orders, 3)


def test_a_slow_image_goes_on_alone(bench: Bench) -> None:
    """One that takes longer than its header says leaves its batch, is finished in the slow lane, and is no failure."""
    found = bench.examine({"a": plain(10), "slow": planted("SPIN 0.3"), "b": plain(20)})
    assert good(found[:1]) == {"a": 10, "b": 20}
    assert set(good(found)) == {"a", "b", "slow"}
    assert not bad(found)


def test_a_large_image_goes_to_the_slow_lane_by_its_header(bench: Bench) -> None:
    """Its batch does not wait for it, and no process is ended for it."""
    ended = bench.metric("assay_decoder_restarts_total", cause="slow")
    large = encode(Image.new("RGB", (5000, 3000), (77, 0, 0)), "GIF")
    told: list[str] = []
    bench.pool.tell_slow(told.append)
    found = bench.examine({"large": large, "a": plain(10)})
    assert good(found) == {"a": 10, "large": 77}
    assert told == ["large"]
    assert [name for name, _ in found[0].good] == ["a"]
    assert bench.metric("assay_decoder_restarts_total", cause="slow") == ended


def test_an_image_too_large_for_the_memory_is_no_reason_to_wait_for_ever(bench: Bench) -> None:
    """An image whose header announces more than there is goes alone, and ends either way."""
    huge = encode(Image.new("RGB", (6000, 4900), (9, 0, 0)), "WEBP")
    found = bench.examine({"huge": huge, "a": plain(10)})
    assert good(found[:1]) == {"a": 10}
    assert set(good(found)) | set(bad(found)) == {"a", "huge"}


def test_a_killed_idle_process_is_replaced(bench: Bench) -> None:
    """Nobody asked for it: the next image finds another."""
    bench.examine({"a": plain(1)})
    child = bench.pool.pids[1]
    os.kill(child, signal.SIGKILL)
    assert good(bench.examine({"b": plain(2)})) == {"b": 2}
    assert child not in bench.pool.pids


def test_a_child_that_has_done_its_share_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What decoders leak does not add up; nothing is lost, and no image pays with an attempt."""
    monkeypatch.setattr(crew, "_RETIRE_JOBS", 2)
    bench.examine({"a": plain(1)})
    zygote, quick = bench.pool.pids[0], bench.pool._crew.idle("quick")
    assert quick is not None
    attempts = bench.metric("assay_decode_attempts_total", outcome="ok")
    for number in range(7):
        assert good(bench.examine({"a": plain(number), "b": plain(100 + number)})) == {"a": number, "b": 100 + number}
    assert bench.metric("assay_decode_attempts_total", outcome="ok") == attempts + 14
    assert bench.pool.pids[0] == zygote, "the process that starts them stays"
    assert quick.pid not in bench.pool.pids


def test_a_killed_zygote_costs_no_image_an_attempt(bench: Bench) -> None:
    """All processes are started anew; what was under way is decoded again."""
    zygote = bench.pool.pids[0]
    bench.pool.submit([("a", plain(1)), ("busy", planted("SPIN 0.2"))])
    os.kill(zygote, signal.SIGKILL)
    found = bench.gather(2)
    assert set(good(found)) == {"a", "busy"}
    assert zygote not in bench.pool.pids


def test_children_get_no_secret_and_no_descriptor(bench: Bench) -> None:
    """Their environment has nothing of ours but what an interpreter needs, their files are the channel and
    /dev/null.
    """
    bench.examine({"a": plain(1)})
    for pid in bench.pool.pids:
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert b"ASSAY_" not in Path(f"/proc/{pid}/environ").read_bytes()
    files = [str(path.readlink()) for path in Path(f"/proc/{bench.pool.pids[1]}/fd").iterdir()]
    own = [
        name for name in files if not name.startswith("/proc/")
    ]  # its own folder there, which Landlock's rule is for
    assert sorted(name.partition("[")[0] for name in own) == [*["/dev/null"] * 3, "socket:"]


def test_what_decoders_print_reaches_nobody(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """C libraries write to stdout and stderr; a sender must not write into our log."""
    assert set(good(bench.examine({"noisy": planted("NOISE now")}))) == {"noisy"}
    assert "noise" not in "".join(capfd.readouterr())


def test_an_idle_pool_uses_no_processor(bench: Bench) -> None:
    """Nothing is looked at where nothing happens: a wait ends when woken, and children sleep."""
    bench.examine({"a": plain(1)})
    wait_for(lambda: len(bench.pool.pids) == 2 or bench.pool.wait(0.5), "slow children retire", 30)

    def ticks() -> list[int]:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in bench.pool.pids]
        return [int(stat[11]) + int(stat[12]) for stat in stats]

    before = ticks()
    assert bench.pool.wait(1.0) == []
    assert ticks() == before


def test_wake_ends_a_wait_and_is_not_lost(bench: Bench) -> None:
    """Called before the wait or during it."""
    bench.pool.wake()
    assert bench.pool.wait(PATIENCE_S) == []


def test_a_gpu_that_is_not_there_is_told() -> None:
    """The settings ask for one: waiting ends with the setting's name."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    regions = Regions(1, 1, None)
    settings = DecodeSettings(device="gpu", processes=1)
    pool: Pool[str] = Pool(settings, LIMITS, regions, Metrics())
    try:
        with pytest.raises(SettingsError, match="ASSAY_DECODE__DEVICE=gpu"):
            wait_for(lambda: pool.wait(1.0), "the pool tells", PATIENCE_S)
    finally:
        pool.close()


def test_closing_ends_every_process() -> None:
    """Zygote and children are gone when close returns."""
    pool: Pool[str] = Pool(DecodeSettings(device="cpu", processes=2), LIMITS, Regions(1, 1, None), Metrics())
    wait_for(lambda: not pool.wait(0.1) and not pool.trouble, "a child is ready", PATIENCE_S)
    pids = pool.pids
    pool.close()
    assert len(pids) >= 2
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_pixels_are_black_outside_of_a_small_image(bench: Bench) -> None:
    """Rows are cleared before they are used again."""
    bench.examine({str(number): plain(255) for number in range(32)})
    found = bench.examine({"small": encode(Image.new("RGB", (10, 10), (200, 0, 0)), "PNG")})
    pixels = found[0].pixels[0]
    assert np.argwhere(pixels[:, :, 0]).min() == 107 and pixels.max() == 200
    assert (pixels[:, :, 0] > 0).sum() == 100
