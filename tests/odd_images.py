"""Images that are unusual, broken or no images at all, made on the fly: what the worker must survive.

`odd_images()` gives a name, the bytes, and what has to become of them: "ok" (a verdict) or the reasons that a rejection
may carry. Names end with the extension that a file of the kind would have. Under the default limits of the settings.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from worker.errors import RejectReason

OK = frozenset({"ok"})
NO_IMAGE = frozenset({RejectReason.UNSUPPORTED_FORMAT, RejectReason.CORRUPT})
CORRUPT = frozenset({RejectReason.CORRUPT})
UNSUPPORTED = frozenset({RejectReason.UNSUPPORTED_FORMAT})
TOO_MANY_PIXELS = frozenset({RejectReason.TOO_MANY_PIXELS})
EMPTY = frozenset({RejectReason.EMPTY})
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class OddImage:
    """`expect`: {"ok"}, or the reject reasons that are right for these bytes."""

    data: bytes
    expect: frozenset[str]
    note: str

    @property
    def ok(self) -> bool:
        return self.expect == OK


def scene(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with gradients, edges and noise, so that a shift by one pixel or another upsampling shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 3 + y) % 256, (x + y * 2) % 256, ((x // 16 + y // 16) % 2) * 200]
    array = np.stack(channels, axis=-1).astype(np.int16) + rng.integers(-20, 20, (height, width, 3), dtype=np.int16)
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, fmt: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def red_png(red: int, size: int = 16) -> bytes:
    """A square of one colour; its decoded pixels say which it was."""
    return encode(Image.new("RGB", (size, size), (red, 0, 0)), "PNG")


def planted(order: str) -> bytes:
    """A GIF whose decoder does what `order` says, where tests/examine/planted is on its path."""
    return encode(Image.new("P", (300, 300), 3), "GIF", comment=b"PLANTED " + order.encode())


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    rows: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    """A PNG made by hand: `rows` are the filtered scan lines before compression."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b"")


def rgb16_png(width: int, height: int) -> bytes:
    values = np.random.default_rng(3).integers(0, 65536, (height, width * 3), dtype=np.uint16).astype(">u2")
    return png(width, height, depth=16, rows=b"".join(b"\0" + row.tobytes() for row in values))


def interlaced_png(width: int, height: int) -> bytes:
    pixels = np.asarray(scene(width, height))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]]
    return png(width, height, interlace=1, rows=b"".join(rows))


def png_bomb(width: int, height: int) -> bytes:
    """One bit per pixel, all zero: a few hundred kilobytes that want gigabytes."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8) * 100
    body = b"".join(compressor.compress(row) for _ in range(height // 100)) + compressor.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header: a header that lies."""
    out = bytearray(data)
    frame = data.index(b"\xff\xc0")
    out[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(out)


def corrupted(data: bytes, start: float, length: int, seed: int = 5) -> bytes:
    """Random bytes from the share `start` of the file on."""
    out, at = bytearray(data), int(len(data) * start)
    out[at : at + length] = random.Random(seed).randbytes(len(out[at : at + length]))
    return bytes(out)


def many_scans_jpeg(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition costs a pass over the whole image."""
    data = encode(scene(400, 300), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def tiff_with_tile(width: int, height: int, tile_width: int, tile_height: int) -> bytes:
    """A grey deflate TIFF with one tile, by hand; the tile may be larger than the image."""
    body = zlib.compress(bytes(min(tile_width * tile_height, 100_000)))
    tags = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, tile_width),
        (323, tile_height),
        (324, 0),
        (325, len(body)),
    ]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, offset if tag == 324 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + body


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    return tags.tobytes()


def frames(mode: str = "RGB") -> list[Image.Image]:
    return [scene(300, 260, mode, seed=seed) for seed in range(3)]


def _jpegs() -> dict[str, tuple[bytes, frozenset[str], str]]:
    photo = scene(400, 300)
    cmyk = encode(scene(320, 280, "CMYK"), "JPEG", quality=90)
    plain = encode(photo, "JPEG", quality=85)
    return {
        "plain.jpg": (plain, OK, "an ordinary JPEG"),
        "grey.jpg": (encode(photo.convert("L"), "JPEG"), OK, "one component"),
        "cmyk-adobe.jpg": (cmyk, OK, "four components, inverted as Adobe does"),
        "cmyk-plain.jpg": (
            cmyk.replace(b"\xff\xee\x00\x0eAdobe", b"\xff\xee\x00\x0eadobe"),
            OK,
            "four components without the Adobe marker",
        ),
        "ycck.jpg": (
            cmyk.replace(b"Adobe\x00\x64\x00\x00\x00\x00\x00", b"Adobe\x00\x64\x00\x00\x00\x00\x02"),
            OK,
            "four components marked YCCK",
        ),
        "rgb.jpg": (encode(photo, "JPEG", keep_rgb=True), OK, "stored as RGB, not YCbCr"),
        "444.jpg": (encode(photo, "JPEG", subsampling=0), OK, "no chroma subsampling"),
        "422.jpg": (encode(photo, "JPEG", subsampling=1), OK, "chroma halved in one direction"),
        "progressive.jpg": (encode(photo, "JPEG", progressive=True), OK, "progressive"),
        "restarts.jpg": (encode(photo, "JPEG", restart_marker_blocks=4), OK, "restart markers"),
        "quality-1.jpg": (encode(photo, "JPEG", quality=1), OK, "very coarse"),
        "exif-rotated.jpg": (encode(photo, "JPEG", exif=exif(6)), OK, "orientation 6, which is not applied"),
        "two-pictures.mpo": (
            encode(photo, "MPO", save_all=True, append_images=frames()),
            OK,
            "MPO counts as JPEG, first picture",
        ),
        "odd-size.jpg": (encode(scene(501, 333), "JPEG"), OK, "odd width and height"),
        "223x225.jpg": (encode(scene(223, 225), "JPEG"), OK, "smaller in one direction"),
        "1x1.jpg": (encode(scene(1, 1), "JPEG"), OK, "one pixel"),
        "10x4000.jpg": (encode(scene(10, 4000), "JPEG"), OK, "narrow and tall"),
        "trailing-garbage.jpg": (plain + b"garbage" * 50, OK, "bytes after the end"),
        "leading-fill.jpg": (plain[:2] + b"\xff\xff" + plain[2:], OK, "fill bytes before a marker"),
        "truncated.jpg": (plain[: len(plain) * 2 // 3], CORRUPT, "two thirds of a file"),
        "truncated-tail.jpg": (plain[:-30], CORRUPT, "the last bytes are missing, far below the crop"),
        "truncated-header.jpg": (plain[:60], NO_IMAGE, "the header alone"),
        "progressive-truncated.jpg": (
            encode(photo, "JPEG", progressive=True)[:-400],
            CORRUPT,
            "the last scan is missing",
        ),
        "magic-only.jpg": (b"\xff\xd8\xff", NO_IMAGE, "three bytes"),
        "header-lies-larger.jpg": (
            with_jpeg_size(plain, 400, 3000),
            OK,
            "says ten times the height it has; libjpeg fills with grey",
        ),
        "header-lies-huge.jpg": (with_jpeg_size(plain, 60000, 60000), TOO_MANY_PIXELS, "says 60000 x 60000"),
        "scan-bomb.jpg": (many_scans_jpeg(300), CORRUPT, "300 scans, each of which walks over the whole image"),
        "header-zero.jpg": (with_jpeg_size(plain, 0, 0), NO_IMAGE, "says 0 x 0"),
    }


def _pngs() -> dict[str, tuple[bytes, frozenset[str], str]]:
    photo = scene(300, 260)
    grey16 = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (260, 300), dtype=np.uint16))
    translucent = photo.copy()
    translucent.putalpha(scene(300, 260, "L", seed=4))
    palette = photo.quantize(64)
    plain = encode(photo, "PNG")
    broken_crc = bytearray(plain)
    broken_crc[
        plain.index(b"IDAT") + 4 + struct.unpack(">I", plain[plain.index(b"IDAT") - 4 : plain.index(b"IDAT")])[0]
    ] ^= 0xFF
    return {
        "plain.png": (plain, OK, "an ordinary PNG"),
        "grey.png": (encode(photo.convert("L"), "PNG"), OK, "8-bit grey"),
        "bilevel.png": (encode(photo.convert("1"), "PNG"), OK, "1 bit"),
        "grey-alpha.png": (encode(translucent.convert("LA"), "PNG"), OK, "grey with alpha"),
        "alpha.png": (encode(translucent, "PNG"), OK, "alpha, which is dropped"),
        "transparent-colour.png": (encode(photo, "PNG", transparency=(10, 20, 30)), OK, "a transparent colour"),
        "palette.png": (encode(palette, "PNG"), OK, "palette"),
        "palette-4-bit.png": (encode(photo.quantize(9), "PNG", bits=4), OK, "palette, 4 bits"),
        "palette-transparent.png": (
            encode(palette, "PNG", transparency=bytes(range(64))),
            OK,
            "palette with transparency",
        ),
        "grey-16-bit.png": (encode(grey16, "PNG"), OK, "16-bit grey"),
        "rgb-16-bit.png": (rgb16_png(300, 260), OK, "16 bits per channel"),
        "interlaced.png": (interlaced_png(300, 260), OK, "Adam7"),
        "gamma.png": (
            plain[:33] + png_chunk(b"gAMA", struct.pack(">I", 100000)) + plain[33:],
            OK,
            "a gamma that is not applied",
        ),
        "animated.png": (
            encode(frames()[0], "PNG", save_all=True, append_images=frames()[1:]),
            OK,
            "APNG, first frame",
        ),
        "exif-rotated.png": (encode(photo, "PNG", exif=exif(3)), OK, "orientation 3, which is not applied"),
        "1x1.png": (encode(scene(1, 1), "PNG"), OK, "one pixel"),
        "225x227.png": (encode(scene(225, 227), "PNG"), OK, "half-pixel offsets"),
        "4000x10.png": (encode(scene(4000, 10), "PNG"), OK, "wide and flat"),
        "trailing-garbage.png": (plain + b"garbage" * 50, OK, "bytes after IEND"),
        "broken-crc.png": (bytes(broken_crc), OK, "the checksum of the picture data is wrong, the data is not"),
        "truncated.png": (plain[: len(plain) // 2], CORRUPT, "half a file"),
        "corrupted.png": (corrupted(plain, 0.3, 2000), CORRUPT, "the deflate stream is damaged"),
        "header-only.png": (plain[:33], NO_IMAGE, "signature and header"),
        "no-rows.png": (png(300, 300), CORRUPT, "no picture data at all"),
        "header-zero.png": (png(0, 0), NO_IMAGE, "says 0 x 0"),
        "bomb-30000x30000.png": (png_bomb(30000, 30000), TOO_MANY_PIXELS, "0.9 gigapixels in a small file"),
        "header-lies-huge.png": (png(2**31 - 1, 2**31 - 1), TOO_MANY_PIXELS, "says the largest size there is"),
    }


def _others() -> dict[str, tuple[bytes, frozenset[str], str]]:
    photo = scene(300, 260)
    translucent = photo.copy()
    translucent.putalpha(128)
    webp = encode(photo, "WEBP", quality=80)
    tiff = encode(photo, "TIFF", compression="tiff_lzw")
    gif = encode(frames()[0], "GIF", save_all=True, append_images=frames()[1:], duration=100)
    grey16 = Image.fromarray(np.random.default_rng(2).integers(0, 65536, (260, 300), dtype=np.uint16))
    cases = {
        "plain.webp": (webp, OK, "lossy WebP"),
        "lossless.webp": (encode(photo, "WEBP", lossless=True), OK, "lossless WebP"),
        "alpha.webp": (encode(translucent, "WEBP"), OK, "lossy with alpha"),
        "alpha-lossless.webp": (encode(translucent, "WEBP", lossless=True), OK, "lossless with alpha"),
        "animated.webp": (encode(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), OK, "first frame"),
        "exif-rotated.webp": (encode(photo, "WEBP", exif=exif(6)), OK, "orientation 6, which is not applied"),
        "small.webp": (encode(scene(50, 224), "WEBP"), OK, "narrower than the crop"),
        "truncated.webp": (webp[: len(webp) // 2], CORRUPT, "half a file"),
        "header-only.webp": (webp[:30], NO_IMAGE, "30 bytes"),
        "plain.bmp": (encode(photo, "BMP"), OK, "24-bit BMP"),
        "grey.bmp": (encode(photo.convert("L"), "BMP"), OK, "8-bit grey BMP"),
        "palette.bmp": (encode(photo.quantize(16), "BMP"), OK, "palette BMP"),
        "bilevel.bmp": (encode(photo.convert("1"), "BMP"), OK, "1-bit BMP"),
        "alpha.bmp": (encode(translucent, "BMP"), OK, "32-bit BMP"),
        "truncated.bmp": (encode(photo, "BMP")[:1000], CORRUPT, "1000 bytes"),
        "lzw.tiff": (tiff, OK, "LZW TIFF"),
        "raw.tiff": (encode(photo, "TIFF"), OK, "uncompressed TIFF"),
        "deflate.tiff": (encode(photo, "TIFF", compression="tiff_adobe_deflate"), OK, "deflate TIFF"),
        "jpeg.tiff": (encode(photo, "TIFF", compression="jpeg"), OK, "JPEG in TIFF"),
        "cmyk.tiff": (encode(photo.convert("CMYK"), "TIFF"), OK, "CMYK TIFF"),
        "grey-16-bit.tiff": (encode(grey16, "TIFF"), OK, "16-bit grey TIFF"),
        "palette.tiff": (encode(photo.quantize(64), "TIFF"), OK, "palette TIFF"),
        "bilevel-g4.tiff": (encode(photo.convert("1"), "TIFF", compression="group4"), OK, "fax TIFF"),
        "multi-page.tiff": (encode(frames()[0], "TIFF", save_all=True, append_images=frames()[1:]), OK, "first page"),
        "tile-larger-than-image.tiff": (
            tiff_with_tile(240, 230, 256, 256),
            OK,
            "one tile that reaches beyond the image",
        ),
        "tile-bomb.tiff": (tiff_with_tile(16, 16, 32768, 32768), CORRUPT, "a tile of a gigabyte for 16 x 16 pixels"),
        "truncated.tiff": (encode(photo, "TIFF")[:5000], CORRUPT, "5000 bytes"),
        "plain.gif": (encode(photo, "GIF"), OK, "GIF"),
        "animated.gif": (gif, OK, "first frame"),
        "transparent.gif": (encode(photo.quantize(32), "GIF", transparency=3), OK, "a transparent palette entry"),
        "truncated.gif": (gif[:2000], CORRUPT, "2000 bytes"),
        "empty": (b"", EMPTY, "nothing at all"),
        "page.html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NO_IMAGE, "an error page"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="300"/>', UNSUPPORTED, "SVG"),
        "paper.pdf": (encode(photo, "PDF"), UNSUPPORTED, "PDF"),
        "icon.ico": (encode(photo, "ICO"), UNSUPPORTED, "ICO"),
        "picture.ppm": (encode(photo, "PPM"), UNSUPPORTED, "PPM"),
        "picture.jp2": (encode(photo, "JPEG2000"), UNSUPPORTED, "JPEG 2000"),
        "text.jpg": (b"this is no picture", NO_IMAGE, "text"),
        "random.bin": (random.Random(0).randbytes(4096), NO_IMAGE, "random bytes"),
        "zeros.bin": (bytes(4096), NO_IMAGE, "zeros"),
    }
    if "AVIF" in Image.registered_extensions().values():
        avif = encode(photo, "AVIF", quality=60)
        cases["plain.avif"] = (avif, OK, "AVIF")
        cases["truncated.avif"] = (avif[: len(avif) // 2], NO_IMAGE, "half a file")
    return cases


@cache
def odd_images() -> dict[str, OddImage]:
    """All odd images by name; made once per process (about a second)."""
    makers: tuple[Callable[[], dict[str, tuple[bytes, frozenset[str], str]]], ...] = (_jpegs, _pngs, _others)
    return {name: OddImage(*case) for make in makers for name, case in make().items()}
