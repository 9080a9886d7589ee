"""AVIF, HEIC and JPEG XL: descriptions decide nothing, and nothing is turned."""

import struct
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, features

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, exif, scene
from worker.errors import Rejected
from worker.examine import headers
from worker.settings import LimitSettings

PHOTO = scene(300, 260)
has_heif = pytest.mark.skipif(
    find_spec("pillow_heif") is None or find_spec("pillow_jxl") is None, reason="the extra heif is not installed"
)
has_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF; install pillow>=11.3")


def encoded(form: str, **options: object) -> bytes:
    headers.load_plugins()
    return encode(PHOTO, form, **options)


@has_avif
def test_damaged_exif_in_avif_decides_nothing():
    """EXIF that is garbage leaves the pixels as they are."""
    tags = Image.Exif()
    tags[0x0131] = "a camera"
    plain, tagged = encoded("AVIF", quality=80), encoded("AVIF", quality=80, exif=tags)
    at = tagged.index(tags.tobytes()[6:14])
    damaged = tagged[:at] + b"\xff" * 8 + tagged[at + 8 :]
    with pytest.raises(ValueError, match="Exif"):
        opened(damaged)
    np.testing.assert_array_equal(crop_of(damaged), crop_of(plain))


def resized(data: bytes, width: int, height: int) -> bytes:
    """The same file with another size in its `ispe` box."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


@has_avif
def test_a_size_beyond_its_decoder_is_told():
    """What is beyond our limits is that, though the decoder refuses it for its own; what is not is named."""
    data = encoded("AVIF")
    for width, height in ((100_000, 100_000), (2**32 - 1, 1)):
        huge = headers.peek(resized(data, width, height))
        assert (huge.width, huge.height) == (width, height)
        with pytest.raises(Rejected, match=f"too_many_pixels.*{width} x {height}"):
            headers.check_limits(huge, LimitSettings())
    assert "40000 x 1000 pixels, where the decoder of avif takes 32768" in rejected(resized(data, 40_000, 1000))
    assert rejected(resized(data, 0, 0)).startswith("corrupt")


@has_avif
def test_bytes_that_are_missing_are_counted():
    """A file that ends early is told so, in its header as in its picture."""
    data = encoded("AVIF")
    assert "1 bytes are missing" in rejected(data[:-1])
    assert "bytes are missing" in rejected(data[: len(data) // 2])
    assert "Missing or empty image item" in rejected(data.replace(b"pitm", b"xxxx"))


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form",
    [pytest.param("AVIF", marks=has_avif), pytest.param("HEIF", marks=has_heif), pytest.param("JXL", marks=has_heif)],
)
def test_nothing_is_turned(form, orientation):
    """Whatever rotation or mirroring a file asks for, size and pixels are those that are stored."""
    plain, turned = encoded(form, quality=90), encoded(form, quality=90, exif=exif(orientation))
    assert (headers.peek(turned).width, headers.peek(turned).height) == (300, 260)
    np.testing.assert_array_equal(crop_of(turned), crop_of(plain))


@has_heif
@pytest.mark.parametrize(("form", "name", "near"), [("HEIF", "heic", 15), ("JXL", "jxl", 15)])
def test_the_formats_of_the_extra_are_read(form, name, near):
    """HEIC and JPEG XL are read, near what was encoded."""
    data = encoded(form, quality=95)
    assert headers.peek(data).format == name
    assert np.abs(crop_of(data).astype(int) - shown(PHOTO)).mean() < near


@pytest.mark.slow
@has_heif
@pytest.mark.parametrize("size", [(1, 1), (8, 512), (640, 480), (1920, 1080), (5000, 4), (300, 260), (1200, 1000)])
def test_the_size_of_a_jxl_is_read_without_decoding(size):
    """The header's bits say the size, by ratio and by number."""
    headers.load_plugins()
    info = headers.peek(encode(scene(*size), "JXL"))
    assert (info.width, info.height) == size


@has_heif
def test_grey_of_16_bits_in_jxl_is_scaled():
    """The upper eight bits of each sample."""
    headers.load_plugins()
    grey = np.asarray(PHOTO.convert("L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257), "JXL", lossless=True)
    np.testing.assert_array_equal(crop_of(data), shown(Image.fromarray(grey)))


@pytest.mark.parametrize(("start", "name"), [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\xff\x0a", "JPEG XL")])
def test_without_the_extra_the_format_is_named(monkeypatch, start, name):
    """What needs the extra says so."""
    monkeypatch.setattr(headers, "find_spec", lambda _package: None)
    assert rejected(start + bytes(40)).startswith("unsupported_format")
    assert name in rejected(start + bytes(40)) and "heif" in rejected(start + bytes(40))
