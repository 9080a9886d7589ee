"""GIF: junk between blocks and blocks before the picture cost and decide nothing."""

import numpy as np
import pytest

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, scene
from worker.examine import gif, headers

PLAIN = encode(scene(320, 280).quantize(64), "GIF", comment=b"a comment")
AT = PLAIN.index(b"\x21")


def inserted(*parts: bytes) -> bytes:
    return PLAIN[:AT] + b"".join(parts) + PLAIN[AT:]


@pytest.mark.parametrize(
    "extra",
    [
        bytes(5_000_000),
        b"\xff\x01" * 100_000,
        b"\x21\xfe" + (b"\xff" + bytes(255)) * 4000 + b"\0",
        b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0",
        b"\x21\xf9\x01\0\0",
        b"\x21\xf9\x00",
        b"\x21\xfe\x01a\0" * 10_000,
    ],
    ids=["junk", "junk2", "comment", "loop", "short-control", "no-control", "comments"],
)
def test_what_is_no_picture_decides_nothing(extra):
    """Junk, comments and control blocks of any size leave the first picture as it is."""
    np.testing.assert_array_equal(crop_of(inserted(extra)), shown(opened(PLAIN)))


def test_an_ordinary_file_goes_to_its_decoder_as_it_is():
    """Without junk nothing is written anew: comments stay, and a copy is saved."""
    assert headers.read(PLAIN).picture.data is PLAIN


def test_a_transparent_first_frame_keeps_its_control_block():
    """The block before the picture says what is transparent, also where junk had to go."""
    data = encode(scene(300, 260).quantize(32), "GIF", transparency=3)
    at = data.index(b"\x21")
    np.testing.assert_array_equal(crop_of(data[:at] + bytes(70_000) + data[at:]), shown(opened(data)))


def test_blocks_without_end_are_bounded():
    """More blocks than a file of full ones could hold before its picture are corrupt."""
    data = inserted(b"\x21\xfe" + b"\x01a" * (gif.MAX_BLOCKS + 1) + b"\0")
    assert rejected(data).startswith("corrupt")


def test_frames_are_counted():
    """`frames` counts the pictures that are there."""
    more = [scene(40, 30, "P", seed=seed) for seed in (1, 2, 3)]
    assert headers.peek(encode(scene(40, 30, "P"), "GIF", save_all=True, append_images=more)).frames == 4
    assert headers.peek(PLAIN).frames == 1
