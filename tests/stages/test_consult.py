"""Detectors beside `code`: who is referred, what comes back, and that nobody else waits for it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.twins import VERSION, ExaminerTwin, Workbench, judged, record, settings, wait_for
from worker.clients.triton import InferenceFailed
from worker.crop import Pixels
from worker.detectors import Description
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.item import Encoded, Ended, Judgement
from worker.queues import Outlet
from worker.retry import CircuitBreaker, Guarded
from worker.stages.panel import Panel

CLIP = "c11bc11bc11b"


def configuration(
    version: str = CLIP, heads: str = "linear", shorter: int | None = 64, crop: int = 48
) -> dict[str, Any]:
    """As Triton has it, of a detector that looks at `crop` pixels."""
    view = {"resize": shorter and {"shorter": shorter}, "interpolation": "bicubic", "crop": crop}
    parameters = {"model_version": version, "heads": heads, "view": json.dumps(view)}
    return {
        "max_batch_size": 16,
        "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": [str(crop), str(crop), "3"]}],
        "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [str(len(heads.split(",")))]}],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }


class DetectorTwin:
    """worker.clients.triton.Triton of a detector: its score is the mean green over 255."""

    def __init__(self) -> None:
        self.config = configuration()
        self.away = False
        self.poison: set[int] = set()
        self.batches: list[tuple[int, ...]] = []
        self.next_config: dict[str, Any] | None = None

    def configuration(self, timeout_s: float = 2.0) -> dict[str, Any]:
        if self.away:
            raise Unavailable("triton", "twin: switched off")
        return self.config

    def score(self, pixels: Pixels, heads: int, *, timeout_s: float | None = None) -> np.ndarray:
        if self.away:
            raise Unavailable("triton", "twin: switched off")
        wanted = Description.of(self.config).view.size
        self.batches.append(pixels.shape)
        if self.next_config is not None:
            self.config, self.next_config = self.next_config, None
        green = pixels[..., 1].mean(axis=(1, 2))
        if pixels.shape[1:3] != wanted or self.poison & {*green.astype(int).tolist()}:
            raise InferenceFailed("twin: cannot compute this")
        return np.repeat((green / 255).astype(np.float32)[:, None], heads, axis=1)

    def close(self) -> None:
        pass


class EyesTwin:
    """The view in the caller's thread."""

    def __init__(self, wanted: Any, _tools: Any, _watch: Any, description: Description) -> None:
        self.description = description
        self.examiner: ExaminerTwin = ExaminerTwin(wanted, view=description.view)
        self.closed = False

    def close(self) -> None:
        self.closed = True


def picture(green: int, size: tuple[int, int] = (80, 60)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (7, green, 9)).save(out, "PNG")
    return out.getvalue()


class Consulting:
    """A workbench with one detector, `clip`, and what goes into its referral."""

    def __init__(self, when: str = "", names: str = "clip", **groups: dict[str, Any]) -> None:
        self.bench = Workbench(settings(detectors={"names": names, "when": when}, **groups))
        self.twin = DetectorTwin()
        twin: Any = self.twin
        breaker = lambda name: CircuitBreaker(name, self.bench.settings.retry)  # noqa: E731
        self.opened: list[EyesTwin] = []

        def open_eyes(*arguments: Any) -> EyesTwin:
            self.opened.append(EyesTwin(*arguments))
            return self.opened[-1]

        self.panel = Panel(self.bench.settings, self.bench.tools, breaker, open_eyes, lambda *_: twin)
        for detector in self.panel.detectors:
            detector.watch.client.refresh()
        store: Any = self.bench.store
        self.outlet: Outlet[list[Ended]]
        self.outlet, driven = self.panel.stages(Guarded(store, self.bench.redis), self.bench.queues.ended)
        self.stages = [one.stage for one in driven]
        self.results: list[Ended] = []

    def images(self, *pictures: bytes, ids: str | None = None) -> list[Encoded]:
        return self.bench.identified(*[record(offset, data) for offset, data in enumerate(pictures)], ids=ids)

    def put(self, images: Sequence[Encoded], *scores: float) -> None:
        self.outlet.put([judged(image, score) for image, score in zip(images, scores, strict=True)], self.bench.stop)

    def wait(self, count: int) -> list[Ended]:
        """The first `count` that come out, in the order of their offsets."""

        def there() -> bool:
            self.results += self.bench.published()
            return len(self.results) >= count

        wait_for(there, f"{count} items come out")
        return sorted(self.results, key=lambda one: one.item.record.offset)


def said(ended: Ended) -> dict[str, float]:
    """What `clip` said of it."""
    assert isinstance(ended.outcome, Judgement)
    found = ended.outcome.detectors.get("clip")
    return dict(found.scores) if found else {}


def test_all_are_asked_about_without_a_condition() -> None:
    """Each image gets its own scores and the detector's version; `source` says that something was inferred."""
    one = Consulting()
    with one.bench.driving(*one.stages):
        one.put(one.images(picture(51), picture(102), picture(255)), 0.1, 0.5, 0.9)
        found = one.wait(3)
    assert [said(ended)["linear"] for ended in found] == pytest.approx([0.2, 0.4, 1.0])
    for ended in found:
        assert isinstance(ended.outcome, Judgement)
        assert ended.outcome.detectors["clip"].version == CLIP
        assert ended.outcome.versions == f"{VERSION}+clip:{CLIP}"
    assert one.bench.metric("assay_detector_images_total", detector="clip", outcome="scored") == 3


def test_only_the_contested_are_asked_about() -> None:
    """The others go on at once, as they are but for the versions that their verdict's id covers."""
    one = Consulting(when="scores.linear > 0.3 && scores.linear < 0.7 && image.width > 600")
    with one.bench.driving(*one.stages):
        one.put(one.images(picture(51), picture(102), picture(255)), 0.1, 0.5, 0.9)
        found = one.wait(3)
    assert [bool(said(ended)) for ended in found] == [False, True, False]
    assert {ended.outcome.versions for ended in found if isinstance(ended.outcome, Judgement)} == {
        f"{VERSION}+clip:{CLIP}"
    }
    assert sum(shape[0] for shape in one.twin.batches) == 1
    for outcome, count in (("scored", 1), ("spared", 2)):
        assert one.bench.metric("assay_detector_images_total", detector="clip", outcome=outcome) == count


def test_nobody_waits_for_a_detector_that_is_away_but_those_referred_to_it() -> None:
    """They are waited for, not rejected, and have their scores once it is back."""
    one = Consulting(when="scores.linear > 0.3")
    one.twin.away = True
    images = one.images(picture(51), picture(102), picture(204))
    with one.bench.driving(*one.stages):
        one.put(images[:1], 0.9)
        wait_for(lambda: one.panel.breakers[0].last_error, "it has been asked in vain")
        one.put(images[1:], 0.1, 0.1)
        first = one.wait(2)
        assert [ended.item.record.offset for ended in first] == [1, 2]
        one.twin.away = False
        assert said(one.wait(3)[0])["linear"] == pytest.approx(0.2)


def test_rejections_pass() -> None:
    """A detector has nothing to do with them."""
    one = Consulting()
    (image,) = one.images(picture(1))
    ended = Ended.of(image.image, Rejected(RejectReason.CORRUPT, "test", stage="decode"))
    one.outlet.put([ended], one.bench.stop)
    assert one.bench.published() == [ended]


def test_an_image_that_cannot_be_shown_keeps_its_verdict() -> None:
    """`code` saw its middle; the rest is missing. Its neighbours in the batch are asked about."""
    one = Consulting()
    whole = picture(102, (2000, 1500))
    with one.bench.driving(*one.stages):
        one.put(one.images(b"no image at all", whole), 0.6, 0.6)
        found = one.wait(2)
    assert [said(ended) for ended in found] == [{}, {"linear": pytest.approx(0.4)}]
    assert isinstance(found[0].outcome, Judgement)
    assert one.bench.metric("assay_detector_images_total", detector="clip", outcome="failed") == 1


def test_an_image_that_the_model_fails_on_alone_keeps_its_verdict() -> None:
    """It is found by halving."""
    one = Consulting()
    one.twin.poison = {77}
    with one.bench.driving(*one.stages):
        one.put(one.images(*[picture(green) for green in (51, 77, 102, 153)]), 0.6, 0.6, 0.6, 0.6)
        found = one.wait(4)
    assert [bool(said(ended)) for ended in found] == [True, False, True, True]


def test_what_the_cache_knows_is_not_shown_again() -> None:
    """By the detector's own version: after another one everything is shown to it."""
    one = Consulting()
    store: Any = one.bench.store
    images = one.images(picture(51), picture(102))
    store.detectors[images[0].image.sha256, CLIP] = {"linear": 0.75}
    with one.bench.driving(*one.stages):
        outlet_items = [judged(image, 0.5) for image in images]
        one.outlet.put(outlet_items, one.bench.stop)
        found = one.wait(2)
    assert said(found[0]) == {"linear": 0.75}
    assert said(found[1])["linear"] == pytest.approx(0.4)
    assert sum(shape[0] for shape in one.twin.batches) == 1
    assert one.bench.metric("assay_detector_images_total", detector="clip", outcome="cached") == 1


def test_another_version_with_another_view_is_followed() -> None:
    """Pixels made for the view before are made anew, and every image has scores of one version."""
    one = Consulting()
    one.twin.next_config = configuration("d00dd00dd00d", shorter=None, crop=32)
    with one.bench.driving(*one.stages):
        one.put(one.images(picture(51), picture(102)), 0.5, 0.5)
        found = one.wait(2)
    for ended, expected in zip(found, (0.2, 0.4), strict=True):
        assert isinstance(ended.outcome, Judgement)
        scores = ended.outcome.detectors["clip"]
        assert (scores.version, scores.scores) == ("d00dd00dd00d", {"linear": pytest.approx(expected)})
    assert [eyes.closed for eyes in one.opened] == [True, False]
    assert {shape[1] for shape in one.twin.batches} == {48, 32}


def test_larger_batches_wait_for_memory_of_their_size() -> None:
    """A server that takes more at once than before: no batch is larger than what its eyes were opened for."""
    one = Consulting()
    one.twin.config = configuration() | {"max_batch_size": 2}
    watch = one.panel.detectors[0].watch.client
    watch.refresh()
    with one.bench.driving(*one.stages):
        one.put(one.images(picture(51)), 0.5)
        one.wait(1)
        one.twin.config = configuration() | {"max_batch_size": 16}
        watch.refresh()
        later = [record(offset, picture(60 + offset)) for offset in range(1, 11)]
        one.put(one.bench.identified(*later, ids="abcdefghij"), *[0.5] * 10)
        one.wait(11)
    opened = [eyes.description.batch_max_items for eyes in one.opened]
    assert opened == [2, 16]
    assert [eyes.examiner.largest <= most for eyes, most in zip(one.opened, opened, strict=True)] == [True, True]
    assert one.opened[1].examiner.largest > 2


def test_two_detectors_are_asked_in_order() -> None:
    """Each has its own scores."""
    one = Consulting(names="clip,other")
    with one.bench.driving(*one.stages):
        one.put(one.images(picture(51)), 0.5)
        (ended,) = one.wait(1)
    assert isinstance(ended.outcome, Judgement)
    assert {name: found.scores["linear"] for name, found in ended.outcome.detectors.items()} == {
        "clip": pytest.approx(0.2),
        "other": pytest.approx(0.2),
    }


def test_a_fetched_image_is_held_until_its_verdict() -> None:
    """A reference's bytes are not in the record: they stay until the publisher lets go of all that the item holds."""
    one = Consulting(references={"schemes": "file", "file_roots": "/"})
    assert one.bench.under_way.keeps_images is False  # the workbench's own; the pipeline sets it by the settings
    (item,) = one.bench.admit(record(0, b"reference"))
    item.hold_fetched(one.bench.admission, 10)
    item.kept = b"0123456789"
    item.release_fetched(one.bench.admission)
    assert (item.encoded, item.fetched_bytes) == (b"0123456789", 10)
    item.kept = None
    item.release_fetched(one.bench.admission)
    assert (item.encoded, item.fetched_bytes) == (b"reference", 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parameters": {}}, "lacks the parameter model_version"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"input": []}, "its input is"),
        ({"output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": ["3"]}]}, "but it has 1 heads"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(change: dict[str, Any], problem: str) -> None:
    """It names the detector, what is wrong and what to do."""
    one = Consulting()
    one.twin.config = configuration() | change
    with pytest.raises(Unavailable, match=problem) as told:
        one.panel.detectors[0].watch.client.refresh()
    assert "\n" not in str(told.value)
    assert "detector clip" in str(told.value)
    assert "--detector" in str(told.value)


@pytest.mark.parametrize("when", ["scores.linaer > 0.3", "detectors.clip.linear > 0.5", "headers.tenant == 'a'", "1 +"])
def test_a_wrong_condition_is_a_wrong_setting(when: str) -> None:
    """Told with the variable, before anything starts; scores of detectors and headers are not had there."""
    with pytest.raises(SettingsError, match="ASSAY_DETECTORS__WHEN"):
        Consulting(when=when)


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"names": "Clip"}, "no name"),
        ({"names": "clip,clip"}, "named once"),
        ({"when": "true"}, "asks nobody"),
    ],
)
def test_wrong_names_are_wrong_settings(group: dict[str, str], problem: str) -> None:
    """A name is what rules read it by."""
    with pytest.raises(ValueError, match=problem):
        settings(detectors=group)


def test_removing_it_changes_nothing_of_the_first() -> None:
    """With and without a detector that is not asked, an item's judgement differs in `configured` alone."""
    one = Consulting(when="false")
    (image,) = one.images(picture(51))
    before = judged(image, 0.4)
    one.outlet.put([before], one.bench.stop)
    (after,) = one.bench.published()
    assert isinstance(before.outcome, Judgement) and isinstance(after.outcome, Judgement)
    assert {name for name in Judgement.__slots__ if getattr(before.outcome, name) != getattr(after.outcome, name)} == {
        "configured"
    }


def test_an_idle_detector_is_followed_too() -> None:
    """Its version stands in verdicts that did not ask it."""
    one = Consulting(when="false")
    one.twin.config = configuration("abcdefabcdef")
    with one.bench.driving(*one.stages):
        wait_for(lambda: one.panel.versions() != {"clip": VERSION}, "another version is seen")
    assert one.panel.versions() == {"clip": "abcdefabcdef"}
