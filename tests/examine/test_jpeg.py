"""JPEG: junk and metadata cost and decide nothing, scans are counted as scans, quality is told from the tables."""

import struct

import numpy as np
import pytest

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, many_scans_jpeg, scene, with_jpeg_size
from worker.examine import headers

PLAIN = encode(scene(320, 280), "JPEG", quality=90)
PROGRESSIVE = encode(scene(320, 280), "JPEG", quality=90, progressive=True)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def inserted(data: bytes, *parts: bytes) -> bytes:
    return data[:2] + b"".join(parts) + data[2:]


@pytest.mark.parametrize(
    "extra",
    [
        b"\xff" * 5_000_000,
        segment(0xFE, b"") + b"\0" * 100_000,
        b"\xff\0" * 100_000,
        segment(0xFE, b"\xff\xda" * 300),
        segment(0xE0, b"JFIF\0"),
        segment(0xE0, b"JFIF\0\x01"),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0"),
        segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 60),
        segment(0xE1, b"Exif\0\0garbage"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x09" + bytes(50)) * 3,
        segment(0xE2, b"MPF\0garbage"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
        segment(0xEB, b"\xff\xd8\xff\xda" * 50),
        segment(0xE5, b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03"),
    ],
    ids=[
        "fill",
        "zeros",
        "stuffing",
        "comment",
        "jfif",
        "jfif2",
        "adobe",
        "adobe2",
        "exif",
        "exif2",
        "icc",
        "icc-parts",
        "mpf",
        "iptc",
        "scans",
        "frame",
    ],
)
@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE], ids=["baseline", "progressive"])
def test_what_is_no_picture_decides_nothing(data, extra):
    """Fill bytes, junk and application segments of any kind leave the pixels as they are."""
    np.testing.assert_array_equal(crop_of(inserted(data, extra)), shown(opened(data)))


def arithmetic(width: int, height: int) -> bytes:
    """Grey and of one colour, with arithmetic coding (T.81, annex D); each block an empty interval of its own."""
    table = segment(0xDB, b"\0" + b"\x08" * 64)
    frame = segment(0xC9, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0")
    scan = segment(0xDD, b"\0\x01") + segment(0xDA, b"\x01\x01\0\0\x3f\0")
    blocks = -(-width // 8) * -(-height // 8)
    restarts = b"".join(b"\xff" + bytes([0xD0 + number % 8]) for number in range(blocks - 1))
    return b"\xff\xd8" + table + frame + scan + restarts + b"\xff\xd9"


@pytest.mark.parametrize(("width", "height"), [(256, 256), (2048, 1100)])
def test_arithmetic_coding_is_read_at_any_length(width, height):
    """A JPEG of 1 kB and one of 70 kB, which libjpeg must have at once: in this coding it cannot wait for more."""
    assert np.ptp(crop_of(arithmetic(width, height))) == 0


@pytest.mark.parametrize("behind", [b"\xff\xda" * 500, b"\xff\xd8" + PROGRESSIVE * 9, bytes(range(256)) * 3000])
def test_what_stands_behind_the_image_is_not_counted(behind):
    """A film or an archive behind the image's end adds no scans."""
    np.testing.assert_array_equal(crop_of(PROGRESSIVE + behind), shown(opened(PROGRESSIVE)))


def test_scans_are_bounded_by_number_and_by_what_they_walk_over():
    """A true scan bomb is corrupt, also one of few scans over many pixels; nothing of it is decoded."""
    assert "more than 100 scans" in rejected(many_scans_jpeg(300))
    assert "scans over 10000 x 10000 pixels" in rejected(
        with_jpeg_size(many_scans_jpeg(60).replace(b"\xff\xc2", b"\xff\xc0", 1), 10_000, 10_000).replace(
            b"\xff\xc0", b"\xff\xc2", 1
        )
    )
    crop_of(many_scans_jpeg(40))


@pytest.mark.parametrize(
    ("data", "variant"),
    [
        (PLAIN.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "12 bits a sample"),
        (PLAIN.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc3\x00\x11\x10"), "16 bits a sample"),
        (PLAIN.replace(b"\xff\xc0\x00\x11", b"\xff\xc5\x00\x11"), "hierarchical"),
        (b"\xff\xd8\xff\xf7\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00" + PLAIN[600:], "JPEG-LS"),
        (b"\xff\xd8" + segment(0xC0, b"\x08\0\x10\0\x10\x02\x01\x11\0\x02\x11\0") + PLAIN[600:], "2 components"),
        (with_jpeg_size(PLAIN, 320, 0), "DNL"),
    ],
)
def test_a_variant_that_is_not_read_is_named(data, variant):
    """A whole file of a kind that is not read is unsupported, with the kind in the same words each time."""
    assert rejected(data).startswith("unsupported_format") and variant in rejected(data)
    assert rejected(data) == rejected(data) and "0x" not in rejected(data)


@pytest.mark.parametrize("quality", range(1, 101))
def test_the_quality_of_libjpeg_is_told_exactly(quality):
    """The quality that an encoder was given is read from its tables, in grey and in colour."""
    for mode in ("L", "RGB"):
        assert headers.jpeg_quality(encode(scene(16, 16, mode), "JPEG", quality=quality)) == quality
    assert headers.peek(encode(scene(16, 16), "JPEG", quality=quality, progressive=True)).jpeg_quality == quality


def test_the_quality_of_other_tables_is_near():
    """Tables of another make get the quality whose scaling is theirs on average; what is no JPEG has none."""
    for quality in (30, 60, 90):
        tables = opened(encode(scene(16, 16), "JPEG", quality=quality)).quantization
        bent = {key: [min(value + 1, 255) for value in table] for key, table in tables.items()}
        assert abs(headers.jpeg_quality(encode(scene(16, 16), "JPEG", qtables=bent)) - quality) <= 6
    assert headers.jpeg_quality(encode(scene(16, 16), "PNG")) is None
    assert headers.jpeg_quality(b"\xff\xd8\xff") is None
