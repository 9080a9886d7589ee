"""What is no image that is read here is named, so that its producer sees at once what was sent."""

import base64
import gzip
import lzma

import pytest

from tests.examine.judged import rejected
from tests.odd_images import encode, scene
from worker.examine import others

PHOTO = scene(64, 48)
JPEG = encode(PHOTO, "JPEG")
PNG = encode(PHOTO, "PNG")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n <!DOCTYPE html><title>404</title>", "an HTML page"),
        (b'{"error": "no such key"}', "JSON"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "XML"),
        (gzip.compress(JPEG), "gzip"),
        (lzma.compress(JPEG), "xz"),
        (base64.b64encode(JPEG), "base64 of a JPEG"),
        (base64.encodebytes(PNG), "base64 of a PNG"),
        (b'"' + base64.b64encode(encode(PHOTO, "WEBP")) + b'"', "base64 of a WebP"),
        (b"data:image/png;base64," + base64.b64encode(PNG), "data: URL"),
        (JPEG.hex().encode(), "hexadecimal"),
        (b"https://example.org/a.jpg", "an address"),
        (JPEG.decode("latin-1").encode(), "each byte became a letter"),
        (JPEG.decode("utf-8", "replace").encode(), "decoded as text"),
        (PNG.replace(b"\r\n", b"\n"), "line ends were changed"),
        (b"\0\0\0\0\x07" + JPEG, "a JPEG behind 5 bytes"),
        (b"Content-Type: image/png\r\n\r\n" + PNG, "a PNG behind 27 bytes"),
        (encode(PHOTO, "PDF"), "a PDF"),
        (encode(PHOTO, "ICO"), "an icon"),
        (encode(PHOTO, "JPEG2000"), "JPEG 2000"),
        (encode(PHOTO, "DDS"), "DirectDraw"),
        (encode(PHOTO, "PPM"), "Netpbm"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "brand 'isom'"),
        (bytes(128) + b"DICM", "DICOM"),
        (bytes(1000), "zero bytes"),
    ],
)
def test_what_was_sent_instead_is_named(data, named):
    """Pages, wrappings and other formats are unsupported, by name."""
    assert rejected(data).startswith("unsupported_format") and named in rejected(data)


@pytest.mark.parametrize("data", [b"hello world", b"\1\2\3", b"QkFS, a word", b"\xff", b"iVBO"])
def test_nothing_is_guessed(data):
    """Bytes that say nothing get no name."""
    assert others.name(data) == ""
    assert "looks like" not in rejected(data)
