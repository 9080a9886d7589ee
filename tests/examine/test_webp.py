"""WebP: the canvas and its first frame; what a file says of itself, and what follows, decides nothing."""

import struct

import numpy as np
import pytest

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, exif, scene
from worker.examine import headers

LOSSY = encode(scene(320, 280), "WEBP", quality=90)
LOSSLESS = encode(scene(320, 280), "WEBP", lossless=True)
EXTENDED = encode(scene(320, 280), "WEBP", quality=90, exif=exif(6), icc_profile=b"profile" * 9)
ANIMATED = encode(scene(320, 280), "WEBP", save_all=True, append_images=[scene(320, 280, seed=s) for s in (1, 2)])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(k + struct.pack("<I", len(b)) + b + b"\0" * (len(b) & 1) for k, b in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at < len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size + (size & 1)
    return found


@pytest.mark.parametrize(
    "data", [LOSSY, LOSSLESS, EXTENDED, ANIMATED], ids=["lossy", "lossless", "extended", "animated"]
)
@pytest.mark.parametrize("extra", [b"", b"trailing" * 100, b"EXIF\xff\xff\xff\x7fcut", b"JUNK\x03\0\0\0abc\0"])
def test_what_is_no_picture_decides_nothing(data, extra):
    """Bytes behind the image and metadata that is cut off leave its pixels as they are."""
    np.testing.assert_array_equal(crop_of(data + extra), shown(opened(data)))


def test_metadata_anywhere_decides_nothing():
    """Damaged or unknown chunks between header and picture are left out."""
    header, *rest = chunks(EXTENDED)
    junk = (b"JUNK", b"PCD_" * 5000), (b"EXIF", b"garbage"), (b"ICCP", b""), (b"XMP ", b"\xff" * 99)
    np.testing.assert_array_equal(crop_of(riff(header, *junk, *rest)), shown(opened(EXTENDED)))


def test_later_frames_do_not_matter():
    """The first frame is judged though the second is cut off; frames are counted where they stand."""
    assert headers.peek(ANIMATED).frames == 3
    np.testing.assert_array_equal(crop_of(ANIMATED[:-500]), shown(opened(ANIMATED)))


@pytest.mark.parametrize("data", [LOSSY, LOSSLESS, EXTENDED])
@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_picture_that_is_cut_off_is_corrupt(data, cut):
    """A still picture whose own chunk reaches beyond the file is corrupt."""
    end = next(at for kind in (b"VP8 ", b"VP8L") if (at := data.rfind(kind)) > 0)
    end += 8 + struct.unpack_from("<I", data, end + 4)[0]
    assert rejected(data[: end - cut]).startswith("corrupt")


FRAME = chunks(ANIMATED)[2][1]
SHORT = FRAME[:34] + b"\xff" * (len(FRAME) - 34)  # its size is whole, and nothing behind it


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            riff((b"VP8X", bytes(4) + b"\x7f\2\0\x2f\2\0"), chunks(LOSSY)[0]),
            "canvas is 640 x 560 pixels, and its picture",
        ),
        (riff((b"VP8X", b"\2" + bytes(3) + b"\x3f\1\0\x17\1\0"), chunks(LOSSY)[0]), "without a whole picture"),
        (riff(*[one for one in chunks(ANIMATED) if one[0] != b"ANIM"]), "chunks do not fit together"),
        (riff(*chunks(ANIMATED)[:2], (b"ANMF", SHORT)), "first frame cannot be decoded"),
    ],
    ids=["canvas", "frames", "order", "frame"],
)
def test_what_is_wrong_with_a_file_is_said(data, why):
    """Where its decoder only says that it does not begin, the chunks say why."""
    assert rejected(data).startswith("corrupt") and why in rejected(data)
