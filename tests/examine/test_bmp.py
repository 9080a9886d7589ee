"""BMP: run-length packing against a plain reading of its rules, and what costs or claims too much."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, scene
from worker.errors import Rejected
from worker.examine import headers

PALETTE = np.random.default_rng(5).integers(0, 256, (256, 3), dtype=np.uint8)


def bmp(width: int, height: int, rows: bytes, *, bits: int = 8, packing: int = 1, header: int = 40) -> bytes:
    """A BMP made by hand, of 2 ** bits colours of PALETTE where they are at most 8."""
    colours = 1 << bits if bits <= 8 else 0
    palette = b"".join(bytes([*colour[::-1], 0]) for colour in PALETTE[:colours].tolist())
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, packing, len(rows), 0, 0, colours, 0)
    head = head.ljust(header, b"\0")
    offset = 14 + header + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + head + palette + rows


def unpacked(commands: bytes, width: int, height: int, nibbles: bool) -> np.ndarray:
    """The rules of run-length BMP, a pixel at a time; rows in the file's order."""
    out = np.zeros((height, width), np.uint8)
    at = x = y = 0

    def paint(index: int) -> None:
        nonlocal x
        if x < width and y < height:
            out[y, x] = index
        x += 1

    while at + 1 < len(commands):
        count, value = commands[at : at + 2]
        at += 2
        if count:
            space_px = max(width - x, 0)
            for k in range(min(count, space_px)):
                paint((value >> 4 if k % 2 == 0 else value & 15) if nibbles else value)
        elif value == 0:
            x, y = 0, y + 1
        elif value == 1:
            break
        elif value == 2:
            x, y = x + commands[at], y + commands[at + 1]
            at += 2
        else:
            size = (value + 1) // 2 if nibbles else value
            body = commands[at : at + size]
            for k in range(value):
                paint((body[k // 2] >> 4 if k % 2 == 0 else body[k // 2] & 15) if nibbles else body[k])
            at += size + size % 2
    return out


command = st.one_of(
    st.tuples(st.integers(1, 255), st.integers(0, 255)).map(bytes),
    st.just(b"\0\0"),
    st.tuples(st.integers(0, 9), st.integers(0, 3)).map(lambda move: b"\0\2" + bytes(move)),
    st.binary(min_size=3, max_size=40).map(lambda body: bytes([0, len(body)]) + body + b"\0" * (len(body) % 2)),
)
nibble_command = st.one_of(
    st.tuples(st.integers(1, 255), st.integers(0, 255)).map(bytes),
    st.just(b"\0\0"),
    st.binary(min_size=2, max_size=20).map(lambda body: bytes([0, 2 * len(body)]) + body + b"\0" * (len(body) % 2)),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.lists(command, max_size=60))
def test_runs_of_bytes_are_unpacked_by_the_rules(width, height, commands):
    """Any commands paint what the rules say, in the middle of the picture too."""
    rows = b"".join(commands) + b"\0\1"
    expected = PALETTE[unpacked(rows, width, height, nibbles=False)[::-1]]
    left, top = headers_region(width, height)
    np.testing.assert_array_equal(crop_of(bmp(width, height, rows)), expected[top : top + 224, left : left + 224])


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.lists(nibble_command, max_size=40))
def test_runs_of_half_bytes_are_unpacked_by_the_rules(width, height, commands):
    """The same for sixteen colours."""
    rows = b"".join(commands) + b"\0\1"
    expected = PALETTE[unpacked(rows, width, height, nibbles=True)[::-1]]
    left, top = headers_region(width, height)
    np.testing.assert_array_equal(
        crop_of(bmp(width, height, rows, bits=4, packing=2)), expected[top : top + 224, left : left + 224]
    )


def headers_region(width: int, height: int) -> tuple[int, int]:
    return tuple(round((side - 224) / 2) if side > 224 else 0 for side in (width, height))


def test_a_photograph_in_runs_has_its_pixels():
    """What an encoder writes, a row of runs and an end of line each, is unpacked as it was."""
    indices = np.asarray(scene(300, 260).quantize(200))
    rows = b"".join(b"".join(bytes([1, index]) for index in row) + b"\0\0" for row in indices[::-1].tolist())
    np.testing.assert_array_equal(crop_of(bmp(300, 260, rows + b"\0\1")), PALETTE[indices][18:242, 38:262])


@pytest.mark.parametrize("rows", [b"\0\0", b"\5\1" * 3, b"\0\x06abc", b""])
def test_runs_that_end_early_are_corrupt(rows):
    """Commands that stop before the last row without an end of picture are corrupt."""
    assert rejected(bmp(30, 20, rows)).startswith("corrupt")


@pytest.mark.parametrize(
    "rows", [b"\0\1", b"\0\0" * 2_000_000 + b"\0\1", b"\xff\1" * 3_000_000 + b"\0\1", b"\0\2\0\0" * 1_000_000 + b"\0\1"]
)
def test_a_picture_of_lines_without_end_is_done_in_steps(rows):
    """A hundred megapixels of empty lines, runs beyond the row or moves by nothing are steps, not bytes."""
    assert crop_of(bmp(10_000, 10_000, rows)).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("data", "variant"),
    [
        (bmp(9, 9, bytes(400), bits=24, packing=4), "a JPEG"),
        (bmp(9, 9, bytes(400), bits=24, packing=5), "a PNG"),
        (bmp(9, 9, bytes(400), bits=2, packing=0), "2 bits"),
        (bmp(9, 9, bytes(999), bits=64, packing=0), "64 bits"),
        (bmp(9, 9, bytes(400), bits=32, packing=3, header=56), "32 bits with the masks"[:7]),
        (bmp(9, 9, bytes(400), bits=16, packing=3, header=52), "16 bits with the masks"),
        (bmp(9, 9, bytes(400), header=200), "a header of 200 bytes"),
        (bmp(16, 16, bytes(999), bits=24, packing=4, header=64), "OS/2, run-length in 24 bits"),
        (bmp(16, 16, bytes(999), bits=1, packing=3, header=64), "OS/2, packed by Huffman's code"),
    ],
)
def test_a_variant_that_is_not_read_is_named(data, variant):
    """Other packings, depths and masks are unsupported, with the variant named."""
    if data[28] == 32 and not any(data[54:70]):
        data = data[:54] + struct.pack("<4I", 0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000) + data[70:]
    assert rejected(data).startswith("unsupported_format") and variant in rejected(data)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("offset", [True, False])
def test_more_colours_than_their_numbers_reach(bits, offset):
    """A palette that is too long is read as far as it counts, wherever the rows are said to begin."""
    row = np.tile(np.arange(256, dtype=np.uint8), 300 * bits // 256 + 2)[: (300 * bits + 31) // 32 * 4].tobytes()
    data = bmp(300, 260, row * 260, bits=bits, packing=0)
    rows_at, colours = 54 + (4 << bits), (1 << bits) + 40
    begins = rows_at + 160 if offset else 0
    longer = data[:10] + struct.pack("<I", begins) + data[14:46] + struct.pack("<I", colours)
    longer += data[50:rows_at] + bytes(160) + data[rows_at:]
    np.testing.assert_array_equal(crop_of(longer), shown(opened(data)))


def test_rows_that_are_not_there_are_found_before_memory_is_taken():
    """A small file that claims 100 megapixels is corrupt by its header."""
    with pytest.raises(Rejected, match="corrupt: a bmp of"):
        headers.peek(bmp(10_000, 10_000, bytes(500), bits=24, packing=0))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_ordinary_files_are_pillows(mode):
    """What is not packed has Pillow's pixels."""
    data = encode(scene(300, 260).convert(mode), "BMP")
    np.testing.assert_array_equal(crop_of(data), shown(opened(data)))
