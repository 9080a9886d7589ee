"""Decoding against its reference: Pillow's convert("RGB") and torchvision's CenterCrop(224), every pixel."""

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.odd_images import encode, odd_images, scene
from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason, SettingsError
from worker.examine import pixels as decoder_module
from worker.examine.headers import check_limits, peek, read
from worker.examine.picture import Picture
from worker.examine.pixels import WHOLE_AT_ONCE_PX, Decoder, central_region
from worker.settings import DecodeSettings, LimitSettings

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "crops" / "cases.json").read_text())["center"]
# Pillow about damaged metadata; pytest undoes the filter of headers.py.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(DecodeSettings(device="cpu"))
    yield decoder
    decoder.close()


def reference(data: bytes) -> np.ndarray:
    """What the released detector looks at."""
    functional = pytest.importorskip(
        "torchvision.transforms.functional", reason="torchvision is in the train extra: make setup-all"
    )
    with Image.open(io.BytesIO(data)) as image:
        grey16 = image.mode.startswith("I;16")  # which Pillow would clip
        scaled = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if grey16 else image
        return np.asarray(functional.center_crop(scaled.convert("RGB"), [224, 224]))


def reference_or_none(data: bytes) -> np.ndarray | None:
    try:
        return reference(data)
    except Exception:  # noqa: BLE001 - the reference may raise anything
        return None


def decode_one(decoder: Decoder, data: bytes) -> np.ndarray | Rejected:
    try:
        info = peek(data)
        check_limits(info, LimitSettings(max_image_pixels=10_000_000))
    except Rejected as rejected:
        return rejected
    decoded = decoder.decode([data], [info])
    return decoded.failures.get(0, decoded.pixels[0])


def decodable(name: str) -> bool:
    """Whether the odd image gets as far as the decoder."""
    try:
        check_limits(peek(odd_images()[name].data), LimitSettings())
    except Rejected:
        return False
    return True


def sample_paths() -> list[str]:
    with (TESTS / "data" / "MANIFEST.csv").open(newline="") as file:
        return [row["relpath"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["input"])
def test_golden_crops_are_reproduced(decoder, case):
    """The released detector's crops come out pixel for pixel, odd sizes and black borders included."""
    folder = TESTS / "golden" / "crops"
    expected = np.asarray(Image.open(folder / case["output"]).convert("RGB"))
    np.testing.assert_array_equal(decode_one(decoder, (folder / case["input"]).read_bytes()), expected)


def test_sample_images_equal_the_reference(decoder):
    """All sample images, in batches of mixed formats, equal the reference in every pixel."""
    data = [(TESTS / "data" / "images" / path).read_bytes() for path in sample_paths()]
    for start in range(0, len(data), 16):
        batch = data[start : start + 16]
        decoded = decoder.decode(batch, [peek(image) for image in batch])
        assert decoded.failures == {}
        np.testing.assert_array_equal(decoded.pixels, np.stack([reference(image) for image in batch]))


@pytest.mark.parametrize("name", [name for name in odd_images() if decodable(name)])
def test_odd_images_equal_the_reference_or_are_corrupt(decoder, name):
    """Every kind of odd image either equals the reference in every pixel or is rejected as corrupt by this stage."""
    odd = odd_images()[name]
    outcome = decode_one(decoder, odd.data)
    if odd.ok:
        np.testing.assert_array_equal(outcome, reference(odd.data))
    else:
        assert isinstance(outcome, Rejected)
        assert (outcome.reason, outcome.stage) == (RejectReason.CORRUPT, "decode")
        assert outcome.reason in odd.expect


def test_bad_images_cost_the_others_of_their_batch_nothing(decoder):
    """With every odd image in one batch, the bad ones fail alone and stay black, and the good ones equal the reference."""
    names = [name for name in odd_images() if decodable(name)]
    data = [odd_images()[name].data for name in names]
    decoded = decoder.decode(data, [peek(image) for image in data])
    assert {names[i] for i in decoded.failures} == {name for name in names if not odd_images()[name].ok}
    for i, image in enumerate(data):
        np.testing.assert_array_equal(decoded.pixels[i], 0 if i in decoded.failures else reference(image))


def test_the_output_is_what_the_server_takes(decoder):
    """Pixels are uint8, C-contiguous, [N, 224, 224, 3], in the order given; an empty batch gives an empty array."""
    photo, grey = odd_images()["plain.jpg"].data, odd_images()["grey.png"].data
    decoded = decoder.decode([photo, grey, photo], [peek(photo), peek(grey), peek(photo)])
    assert (
        decoded.pixels.shape == (3, 224, 224, 3)
        and decoded.pixels.dtype == np.uint8
        and decoded.pixels.flags.c_contiguous
    )
    np.testing.assert_array_equal(decoded.pixels[0], decoded.pixels[2])
    assert decoder.decode([], []).pixels.shape == (0, 224, 224, 3)


@pytest.mark.parametrize(
    "name",
    [
        "truncated.jpg",
        "truncated-tail.jpg",
        "progressive-truncated.jpg",
        "truncated.png",
        "corrupted.png",
        "truncated.gif",
    ],
)
def test_damage_outside_the_crop_is_found(decoder, name):
    """Decoding only a region must not overlook that the rest of the file is missing or broken."""
    outcome = decode_one(decoder, odd_images()[name].data)
    assert isinstance(outcome, Rejected) and outcome.reason == RejectReason.CORRUPT


@pytest.mark.parametrize(
    "name",
    [
        "plain.jpg",
        "grey.jpg",
        "restarts.jpg",
        "trailing-garbage.jpg",
        "exif-rotated.jpg",
        "plain.png",
        "alpha.png",
        "palette.png",
    ],
)
def test_ordinary_images_take_the_fast_way(name):
    """The check that keeps DALI exact does not send ordinary images the slow way."""
    data = odd_images()[name].data
    assert read(data).picture.exact


@pytest.mark.parametrize(
    "name",
    ["cmyk-plain.jpg", "truncated-tail.jpg", "grey-16-bit.png", "rgb-16-bit.png", "grey-16-bit.tiff", "palette.tiff"],
)
def test_what_dali_decodes_differently_goes_to_pillow(name):
    """Kinds that DALI is known to decode differently, or to accept where Pillow does not, are left to Pillow."""
    data = odd_images()[name].data
    assert not read(data).picture.exact


def test_an_image_that_dali_refuses_gets_a_second_opinion(decoder):
    """A PNG with a wrong checksum, which DALI alone refuses, is decoded."""
    data = odd_images()["broken-crc.png"].data
    assert read(data).picture.exact
    with pytest.raises(Exception, match=r".+"):
        decoder._dali([dataclasses.replace(read(data).picture, data=data)])
    np.testing.assert_array_equal(decode_one(decoder, data), reference(data))


MUTABLE = [image.data for name, image in odd_images().items() if image.ok and 0 < len(image.data) < 60_000]


@settings(max_examples=250, deadline=None)
@given(
    seed=st.sampled_from(MUTABLE),
    where=st.floats(0, 1),
    cut=st.sampled_from([0, 1, 2, 100, 3000]),
    insert=st.one_of(st.binary(max_size=8), st.binary(min_size=100, max_size=100)),
    end=st.sampled_from([None, None, None, -1, -40, -900]),
)
def test_damaged_images_are_judged_as_pillow_judges_them(decoder, seed, where, cut, insert, end):
    """A damaged image is accepted where Pillow accepts it, and then has Pillow's pixels.

    More is accepted than by Pillow where the damage is in what is not looked at.
    """
    at = int(where * len(seed))
    data = (seed[:at] + insert + seed[at + cut :])[:end]
    outcome = decode_one(decoder, data)
    if isinstance(outcome, Rejected):
        on_purpose = outcome.reason == RejectReason.TOO_MANY_PIXELS or "a tile of" in outcome.detail
        if not on_purpose:
            assert reference_or_none(data) is None
    elif (expected := reference_or_none(data)) is not None:
        np.testing.assert_array_equal(outcome, expected)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_the_region_is_inside_the_image_and_central(width, height):
    """The region fills the crop or the image, and lies in the middle, half pixels rounded to even."""
    left, top, region_width, region_height = central_region(width, height)
    assert (region_width, region_height) == (min(width, 224), min(height, 224))
    assert 0 <= left <= width - region_width and 0 <= top <= height - region_height
    assert left == (round((width - 224) / 2) if width > 224 else 0)
    assert abs(left - (width - region_width) / 2) <= 0.5 and abs(top - (height - region_height) / 2) <= 0.5


@given(st.lists(st.integers(1, WHOLE_AT_ONCE_PX * 3), max_size=30))
def test_pixels_decoded_at_once_are_bounded(costs):
    """Images are decoded in order, in runs within the bound; only an image larger than the bound exceeds it, alone."""
    chunks = list(decoder_module._chunks(range(len(costs)), costs.__getitem__))
    assert [i for chunk in chunks for i in chunk] == list(range(len(costs)))
    assert all(len(chunk) == 1 or sum(costs[i] for i in chunk) <= WHOLE_AT_ONCE_PX for chunk in chunks)


MEMORY_SCRIPT = """
from tests.odd_images import encode
from PIL import Image
from worker.examine.headers import peek
from worker.settings import DecodeSettings
from worker.examine.pixels import Decoder
data = [encode(Image.new("RGB", (8000, 5000), "teal"), "PNG", compress_level=1), encode(Image.new("RGB", (300, 300), "teal"), "JPEG")] * 5
infos = [peek(image) for image in data]
decoder = Decoder(DecodeSettings(device="cpu"))
decoder.decode(data[1:2], infos[1:2])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
decoded = decoder.decode(data, infos)
assert not decoded.failures and decoded.pixels[:, 0, 0].tolist()[0] == [0, 128, 128]
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((peak - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_large_images_are_not_decoded_side_by_side():
    """Five images of 40 megapixels (120 MB each) in one batch need the memory of two at most, not of five."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2.2 * 120


def test_without_dali_pillow_decodes_everything(monkeypatch):
    """Where DALI cannot be imported the worker says so once and decodes the same pixels through Pillow."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    data = [odd_images()[name].data for name in ("plain.jpg", "truncated.jpg", "alpha.png", "plain.webp")]
    with structlog.testing.capture_logs() as logs:
        slow = Decoder(DecodeSettings())
        decoded = slow.decode(data, [peek(image) for image in data])
        slow.close()
    assert [(log["event"], log["log_level"]) for log in logs] == [("dali_missing", "warning")]
    assert slow.device == "pillow" and set(decoded.failures) == {1}
    np.testing.assert_array_equal(decoded.pixels[[0, 2, 3]], np.stack([reference(data[i]) for i in (0, 2, 3)]))


def test_a_decoder_brings_no_torch_along():
    """Torch stays out of the worker's process also where it is installed, and can be imported there afterwards."""
    script = (
        "import sys; from worker.settings import DecodeSettings; from worker.examine.pixels import Decoder; "
        "print(Decoder(DecodeSettings(device='cpu')).device, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=TESTS.parent, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["cpu", "False"]


def test_a_gpu_that_is_asked_for_and_missing_is_a_wrong_setting(monkeypatch):
    """device=gpu without DALI stops with the name of the variable, instead of decoding slowly without a word."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(SettingsError, match="ASSAY_DECODE__DEVICE=gpu"):
        Decoder(DecodeSettings(device="gpu"))


def test_memory_that_one_image_takes_costs_the_others_nothing(monkeypatch, decoder):
    """Where images together take too much memory each is tried alone, and the one that takes it alone fails alone."""
    plain, animated = odd_images()["plain.gif"].data, odd_images()["animated.gif"].data
    real = decoder_module.decode_with_pillow

    def exhausted(picture: Picture) -> np.ndarray:
        if picture.frames > 1:
            raise MemoryError
        return real(picture)

    monkeypatch.setattr(decoder_module, "decode_with_pillow", exhausted)
    decoded = decoder.decode([plain, animated, plain], [peek(plain), peek(animated), peek(plain)])
    assert set(decoded.failures) == {1} and "memory" in decoded.failures[1].detail
    np.testing.assert_array_equal(decoded.pixels[2], reference(plain))


def test_a_header_that_lies_about_its_size_is_met_with_care(decoder):
    """Bytes whose header says now what it did not say when it was checked are not opened; the batch has its result."""
    data = encode(scene(300, 260), "JPEG")
    wrong = ImageInfo(format="jpeg", width=3000, height=2600, bytes=len(data))
    decoded = decoder.decode([data, data], [wrong, peek(data)])
    assert set(decoded.failures) == {0} and "3000 x 2600" in decoded.failures[0].detail
    np.testing.assert_array_equal(decoded.pixels[1], reference(data))
