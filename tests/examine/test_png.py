"""PNG: metadata and lengths decide nothing, and the first frame that viewers show is judged."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.examine.judged import crop_of, opened, rejected, shown
from tests.odd_images import encode, png_chunk, scene
from worker.examine import headers

PLAIN = encode(scene(320, 280), "PNG")
BIG = zlib.compress(bytes(range(256)) * 6000, 9)


def inserted(data: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = data.index(before) - 4
    return data[:at] + b"".join(chunks) + data[at:]


def wrong(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + BIG),
        png_chunk(b"zTXt", b"workflow\0\0" + BIG),
        png_chunk(b"iCCP", b"icc\0\0" + BIG),
        png_chunk(b"iCCP", b"icc\0\7garbage"),
        png_chunk(b"iCCP", b"no end"),
        png_chunk(b"eXIf", b"garbage"),
        png_chunk(b"tEXt", b"k\0" + bytes(5_000_000)),
        wrong(png_chunk(b"gAMA", bytes(4))),
        png_chunk(b"gAMA", b""),
        png_chunk(b"cHRM", b"short"),
        png_chunk(b"pHYs", b""),
        png_chunk(b"tRNS", b"\0"),
        png_chunk(b"acTL", b"short"),
        png_chunk(b"acTL", struct.pack(">II", 0, 0)),
        png_chunk(b"fcTL", bytes(26)),
        png_chunk(b"aaAa", b"") * 1000,
    ],
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_metadata_decides_nothing(chunk, before):
    """Texts, profiles and chunks of any size and state, before or behind the picture, leave it as it is."""
    np.testing.assert_array_equal(crop_of(inserted(PLAIN, chunk, before=before)), shown(opened(PLAIN)))


@pytest.mark.parametrize("palettes", [[], [b""], [bytes(100)], [bytes(771)], [bytes(192), bytes(192)]])
def test_numbers_in_no_palette_are_no_pixels(palettes):
    """Without a palette that holds no viewer shows anything; the numbers are not taken for grey."""
    photo = scene(320, 280).quantize(64)
    data = encode(photo, "PNG")
    at = data.index(b"PLTE") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4])
    changed = data[:at] + b"".join(png_chunk(b"PLTE", palette) for palette in palettes) + data[end:]
    assert rejected(changed).startswith("corrupt") and "palette" in rejected(changed)


def test_no_length_is_followed_that_the_file_does_not_have():
    """A chunk that claims 2 GB is cut to what is there before any decoder sees it, or refused."""
    at = PLAIN.index(b"IDAT") - 4
    claimed = PLAIN[:at] + b"\x7f\xff\xff\xff" + PLAIN[at + 4 :]
    assert len(headers.read(claimed).picture.data) < 2 * len(PLAIN)
    assert "longer than the file" in rejected(inserted(PLAIN, b"\x7f\xff\xff\xfftEXtk\0v"))


def test_pieces_of_a_picture_are_put_together():
    """A picture in pieces of any size, empty ones among them, is one; a piece behind another chunk is none of it."""
    start = PLAIN.index(b"IDAT") - 4
    body, rest = in_one_piece(PLAIN), PLAIN[-12:]
    pieces = b"".join(png_chunk(b"IDAT", body[at : at + 7]) for at in range(0, len(body), 7))
    late = png_chunk(b"tEXt", b"a\0b") + png_chunk(b"IDAT", b"garbage")
    np.testing.assert_array_equal(
        crop_of(PLAIN[:start] + png_chunk(b"IDAT", b"") + pieces + late + rest), shown(opened(PLAIN))
    )


def in_one_piece(data: bytes) -> bytes:
    """Its picture, packed."""
    kept = headers.read(data).picture.data
    start = kept.index(b"IDAT")
    return kept[start + 4 : start + 4 + int.from_bytes(kept[start - 4 : start])]


def animation(default: Image.Image, frame: Image.Image, *, at: tuple[int, int] = (0, 0), sequence: int = 1) -> bytes:
    """An APNG whose default picture is none of its frames."""
    body = in_one_piece(encode(frame, "PNG"))
    control = struct.pack(">IIIIIHHBB", 0, *frame.size, *at, 1, 10, 0, 0)
    data = encode(default, "PNG", compress_level=9)
    data = inserted(data, png_chunk(b"acTL", struct.pack(">II", 1, 0)))
    return inserted(
        data,
        png_chunk(b"fcTL", control),
        png_chunk(b"fdAT", struct.pack(">I", sequence) + body[:100]),
        png_chunk(b"fdAT", struct.pack(">I", sequence + 1) + body[100:]),
        before=b"IEND",
    )


def test_the_first_frame_that_viewers_show_is_judged():
    """A default picture that is no frame of the animation is shown by nobody, and not judged."""
    default, frame = scene(300, 260, seed=1), scene(300, 260, seed=2)
    data = animation(default, frame)
    np.testing.assert_array_equal(crop_of(data), shown(frame))
    assert headers.peek(data).frames == 1
    np.testing.assert_array_equal(crop_of(animation(default, frame, sequence=5)), shown(default))


def test_a_frame_that_covers_a_part_stands_where_it_says():
    """A first frame smaller than its canvas is placed on black."""
    frame = scene(100, 60, seed=2)
    canvas = Image.new("RGB", (300, 260))
    canvas.paste(frame, (150, 120))
    data = animation(scene(300, 260, seed=1), frame, at=(150, 120))
    np.testing.assert_array_equal(crop_of(data), shown(canvas))
    assert (headers.peek(data).width, headers.peek(data).height) == (300, 260)
    outside = animation(scene(900, 900), scene(10, 10), at=(0, 0))
    assert not crop_of(outside).any()


def test_frames_are_counted_where_they_stand():
    """`frames` counts control chunks, whatever the animation claims."""
    data = encode(scene(40, 30), "PNG", save_all=True, append_images=[scene(40, 30, seed=s) for s in (1, 2)])
    assert headers.peek(data).frames == 3
    assert headers.peek(PLAIN).frames == 1


@pytest.mark.parametrize("mode", ["stored", "interlaced"])
def test_grey_of_16_bits_is_scaled(mode):
    """The upper eight bits of each sample, not a white page."""
    grey = np.asarray(scene(300, 260, "L"))
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    if mode == "interlaced":
        data = encode(opened(data), "PNG", pnginfo=None)
    np.testing.assert_array_equal(crop_of(data), shown(Image.fromarray(grey)))


def test_apples_own_variant_is_named():
    """CgBI is unsupported, not corrupt."""
    assert "CgBI" in rejected(PLAIN[:8] + png_chunk(b"CgBI", bytes(4)) + PLAIN[8:])
