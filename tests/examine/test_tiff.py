"""TIFF: one directory is chosen and nothing else of the file decides."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, scene
from worker.errors import Rejected
from worker.examine import headers
from worker.examine.pixels import try_pillow

PHOTO = scene(300, 260)
GREY = np.asarray(PHOTO.convert("L"))
Tag = tuple[int, int, list[int]]
CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff(rows: bytes, *tags: Tag, order: str = "<", big: bool = False, more: bytes = b"") -> bytes:
    """A TIFF made by hand: one strip of `rows`, a directory with `tags`, then `more`."""
    head = 16 if big else 8
    given = {tag for tag, _, _ in tags}
    own: list[Tag] = [(273, 16 if big else 4, [head]), (279, 4, [len(rows)])]
    every = sorted([*tags, *(tag for tag in own if tag[0] not in given)])
    at = head + len(rows) + len(rows) % 2
    entry, inline = (20, 8) if big else (12, 4)
    values_at = at + (8 if big else 2) + entry * len(every) + inline
    entries, values = b"", b""
    for tag, kind, numbers in every:
        body = struct.pack(f"{order}{len(numbers)}{CODES[kind]}", *numbers)
        if len(body) > inline:
            where = values_at + len(values)
            values += body
            body = struct.pack(f"{order}{'Q' if big else 'I'}", where)
        entries += struct.pack(f"{order}HH{'Q' if big else 'I'}", tag, kind, len(numbers)) + body.ljust(inline, b"\0")
    magic = b"II" if order == "<" else b"MM"
    version = struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at)
    count = struct.pack(f"{order}{'Q' if big else 'H'}", len(every))
    padded = rows + b"\0" * (len(rows) % 2)
    return magic + version + padded + count + entries + bytes(inline) + values + more


def picture(width: int, height: int, *, bits: list[int], photometric: int, more: tuple[Tag, ...] = ()) -> list[Tag]:
    return [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, bits),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (277, 3, [len(bits)]),
        (278, 4, [height]),
        *more,
    ]


RGB = picture(300, 260, bits=[8, 8, 8], photometric=2)
RAW = PHOTO.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_both_byte_orders_are_read_in_both_sizes(order, big):
    """Classic and BigTIFF, little- and big-endian, have the same pixels."""
    np.testing.assert_array_equal(crop_of(tiff(RAW, *RGB, order=order, big=big)), shown(PHOTO))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_no_image_is_turned(orientation, compression):
    """Whatever the orientation says, size and pixels are those that are stored, packed or not."""
    data = encode(PHOTO, "TIFF", compression=compression, tiffinfo={274: orientation})
    stored = encode(PHOTO, "TIFF", compression=compression)
    np.testing.assert_array_equal(crop_of(data), shown(opened(stored)))
    assert (headers.peek(data).width, headers.peek(data).height) == (300, 260)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("compression", [1, 8])
def test_grey_of_16_bits_is_scaled(order, photometric, compression):
    """The upper eight bits, in both byte orders, packed or not; where 0 is white it stays so."""
    import zlib

    values = (GREY.astype(np.uint16) * 257).astype(f"{order}u2")
    rows = values.tobytes() if photometric else (65535 - values).astype(f"{order}u2").tobytes()
    tags = picture(300, 260, bits=[16], photometric=photometric)
    tags[3] = (259, 3, [compression])
    data = tiff(zlib.compress(rows) if compression == 8 else rows, *tags, order=order)
    np.testing.assert_array_equal(crop_of(data), shown(Image.fromarray(GREY)))


def test_grey_of_12_bits_is_scaled():
    """Twelve bits are scaled by their own maximum."""
    values = np.repeat(GREY.astype(np.uint16) << 4, 1, axis=1).reshape(-1, 2)
    first, second = values[:, 0], values[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    data = tiff(packed.tobytes(), *picture(300, 260, bits=[12], photometric=1))
    np.testing.assert_array_equal(crop_of(data), shown(Image.fromarray(GREY)))


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [None, 0, 1, 2], ids=["rgb", "more", "premultiplied", "alpha"])
def test_planes_one_behind_the_other(compression, order, bits, alpha):
    """Red, green, blue and perhaps alpha in planes have the pixels that they have side by side, packed or not."""
    import zlib

    planes = np.moveaxis(np.asarray(PHOTO), -1, 0)
    if alpha is not None:
        planes = np.concatenate([planes, np.full_like(planes[:1], 255)])
    size = planes[0].size * bits // 8
    rows = (planes.astype(f"{order}u2") * 257 if bits == 16 else planes).tobytes()
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    parts = [zlib.compress(part) for part in parts] if compression == 8 else parts
    offsets = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    tags = picture(300, 260, bits=[bits] * len(parts), photometric=2, more=((284, 3, [2]),))
    tags[3] = (259, 3, [compression])
    tags += [(273, 4, offsets), (279, 4, [len(part) for part in parts])]
    tags += [] if alpha is None else [(338, 3, [alpha])]
    np.testing.assert_array_equal(crop_of(tiff(b"".join(parts), *tags, order=order)), shown(PHOTO))


def test_grey_with_premultiplied_alpha():
    """Grey that was multiplied by its alpha is judged as it was before."""
    rows = np.stack([GREY, np.full_like(GREY, 255)], axis=-1).tobytes()
    tags = picture(300, 260, bits=[8, 8], photometric=1, more=((338, 3, [1]),))
    np.testing.assert_array_equal(crop_of(tiff(rows, *tags)), shown(Image.fromarray(GREY)))


@pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("compression", [1, 8])
def test_colours_that_pixels_share(across, down, compression):
    """YCbCr with one pair of colours for several pixels is smaller than it looks, and whole; cut it is corrupt."""
    import zlib

    flat = np.asarray(Image.new("RGB", (320, 256), (200, 90, 40)).convert("YCbCr"))
    unit = bytes([flat[0, 0, 0]] * (across * down) + [*flat[0, 0, 1:]])
    rows = unit * (320 // across * 256 // down)
    tags = picture(320, 256, bits=[8] * 3, photometric=6, more=((530, 3, [across, down]),))
    tags[3] = (259, 3, [compression])
    data = tiff(zlib.compress(rows) if compression == 8 else rows, *tags)
    assert np.abs(crop_of(data).astype(int) - [200, 90, 40]).max() <= 2
    beyond = tiff(rows[:-1000], *[tag for tag in tags if tag[0] != 259], (259, 3, [1]), (273, 4, [600]))
    assert "rows reach beyond the file" in rejected(beyond)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_a_file_that_is_cut_by_a_byte_is_called_so(compression):
    """Where lists or tables stand at the end, what is missing is named, not something else that is wrong then."""
    data = encode(PHOTO, "TIFF", compression=compression)
    assert crop_of(data).shape == (224, 224, 3)
    assert "cut off" in rejected(data[:-1])


@pytest.mark.parametrize(
    ("tags", "variant"),
    [
        (picture(16, 16, bits=[32], photometric=1, more=((339, 3, [3]),)), "32 bits a sample, float"),
        (picture(16, 16, bits=[32], photometric=1), "32 bits a sample, integer"),
        (picture(16, 16, bits=[16], photometric=1, more=((339, 3, [2]),)), "16 bits a sample, signed integer"),
        (picture(16, 16, bits=[16], photometric=1, more=((339, 3, [3]),)), "16 bits a sample, float"),
        (picture(16, 16, bits=[64], photometric=1), "64 bits a sample"),
        (picture(16, 16, bits=[32] * 3, photometric=2, more=((339, 3, [3] * 3),)), "32 bits a sample, float"),
        (picture(16, 16, bits=[32] * 3, photometric=2), "32-32-32 bits"),
        (picture(16, 16, bits=[16, 16], photometric=1), "16-16 bits"),
        (picture(16, 16, bits=[8], photometric=32803), "photometric 32803 (camera raw)"),
        (picture(16, 16, bits=[16] * 3, photometric=8), "16-16-16 bits, integer, photometric 8 (CIE Lab)"),
        (picture(16, 16, bits=[16, 16], photometric=1, more=((284, 3, [2]),)), "in planes"),
        ([*picture(16, 16, bits=[8], photometric=1)[:3], (259, 3, [34712]), (262, 3, [1])], "JPEG 2000"),
        ([*picture(16, 16, bits=[8], photometric=1)[:3], (259, 3, [777]), (262, 3, [1])], "number 777"),
    ],
)
def test_a_variant_that_is_not_read_is_named(tags, variant):
    """Float, wide and unknown samples and packings are unsupported, in the same words each time."""
    data = tiff(bytes(16 * 16 * 24), *tags)
    assert rejected(data).startswith("unsupported_format") and variant in rejected(data)
    assert rejected(data) == rejected(data) and "0x" not in rejected(data)


def test_a_packing_that_libtiff_was_not_built_with_is_named():
    """WebP in TIFF is read or named, never corrupt."""
    tags = picture(16, 16, bits=[8, 8, 8], photometric=2)
    tags[3] = (259, 3, [50001])
    data = tiff(encode(scene(16, 16), "WEBP", lossless=True), *tags)
    outcome = try_pillow(headers.read(data).picture)
    if isinstance(outcome, Rejected):
        assert "unsupported_format" in str(outcome) and "webp" in str(outcome)
    else:
        np.testing.assert_array_equal(outcome, shown(scene(16, 16)))


def test_a_reduced_preview_is_not_judged():
    """The first directory that is not marked as reduced is the picture; where all are, the first."""

    def pages(*reduced: int) -> bytes:
        out = io.BytesIO()
        images = [scene(300, 260, seed=number) for number in range(len(reduced))]
        for image, mark in zip(images, reduced, strict=True):
            image.encoderinfo = {"tiffinfo": {254: mark}}
        images[0].save(out, "TIFF", save_all=True, append_images=images[1:], tiffinfo={254: reduced[0]})
        return out.getvalue()

    np.testing.assert_array_equal(crop_of(pages(1, 0, 0)), shown(scene(300, 260, seed=1)))
    np.testing.assert_array_equal(crop_of(pages(0, 1)), shown(scene(300, 260, seed=0)))
    np.testing.assert_array_equal(crop_of(pages(1, 1)), shown(scene(300, 260, seed=0)))
    assert headers.peek(pages(1, 0, 0)).frames == 3


def test_directories_in_a_ring_or_beyond_the_file_end():
    """A directory that follows itself is one; a first one beyond the file is corrupt."""
    data = bytearray(tiff(RAW, *RGB))
    directory = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, directory)[0]
    struct.pack_into("<I", data, directory + 2 + 12 * count, directory)
    assert headers.peek(bytes(data)).frames == 1
    np.testing.assert_array_equal(crop_of(bytes(data)), shown(PHOTO))
    struct.pack_into("<I", data, 4, 2**31)
    assert rejected(bytes(data)).startswith("corrupt")


@pytest.mark.parametrize("tag", [33723, 34377, 34665, 34675, 34853, 700, 330, 270, 282, 37500])
def test_metadata_decides_nothing(tag):
    """Tags for EXIF, GPS, profiles and texts that lead nowhere leave the picture as it is."""
    np.testing.assert_array_equal(crop_of(tiff(RAW, *RGB, (tag, 4, [2**31] * 50))), shown(PHOTO))


def test_another_format_in_the_gap_is_not_opened():
    """A TIFF whose unused bytes spell another format's header is a TIFF, of the size that was checked."""
    text = b"\nImage size (x*y): 2000000000*2000000000\nImage type: RGB image\n\x1a"
    data = tiff(text + RAW, *RGB, (273, 4, [8 + len(text)]))
    np.testing.assert_array_equal(crop_of(data), shown(PHOTO))
    fli = bytearray(tiff(bytes(200_000) + RAW, *RGB, (273, 4, [8 + 200_000])))
    fli[8:16] = struct.pack("<HHHH", 40_000, 40_000, 8, 0)
    np.testing.assert_array_equal(crop_of(bytes(fli)), shown(PHOTO))


@pytest.mark.parametrize(
    "tags",
    [
        [(256, 4, [10_000]), (257, 4, [10_000]), *RGB[2:6], (278, 4, [10_000])],
        [(256, 4, [1]), (257, 4, [90_000_000]), *RGB[2:6], (278, 4, [1])],
        [*RGB, (273, 4, [2**32 - 1])],
        [tag for tag in RGB if tag[0] != 256],
    ],
    ids=["rows", "strips", "offset", "width"],
)
def test_what_a_directory_claims_is_bounded_by_the_file(tags):
    """Rows, strips and tiles that are not there are found before memory is taken for them."""
    assert rejected(tiff(RAW, *tags)).startswith("corrupt")
