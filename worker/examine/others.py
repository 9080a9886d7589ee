"""What bytes are that are no image which is read here, told by how they begin: what a rejection says to its producer.

Names alone; nothing here decides. The commonest mistakes are an image in a wrapping (base64, gzip, a frame of a
serialiser), a page that says why there is no image, and formats of cameras and printers.
"""

from __future__ import annotations

import re

# Where a name stands by its first bytes; longer ones first where one begins another.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\2\0", "a cursor (CUR) or a Targa picture"),
    (b"icns", "an icon (ICNS)"),
    (b"DDS ", "a DirectDraw surface (DDS)"),
    (b"qoif", "QOI"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"v/1\1", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"II\xbc\1", "JPEG XR"),
    (b"IIU\0", "a camera's raw file (RW2)"),
    (b"IIRO", "a camera's raw file (ORF)"),
    (b"IIRS", "a camera's raw file (ORF)"),
    (b"MMOR", "a camera's raw file (ORF)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (b"FOVb", "a camera's raw file (X3F)"),
    (b"\0MRM", "a camera's raw file (MRW)"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"\x89PNG\n\x1a\n", "a PNG whose line ends were changed: it was sent as text"),
    (b"\x89PNG\r\n\x1a\r\n", "a PNG whose line ends were changed: it was sent as text"),
    (b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", "bytes that were decoded as text, which loses them"),
    (b"\xef\xbf\xbdPNG", "a PNG that was decoded as text, which loses bytes"),
    (b"\xc3\xbf\xc3\x98\xc3\xbf", "a JPEG that was sent as text: each byte became a letter"),
    (b"\xc2\x89PNG", "a PNG that was sent as text: each byte became a letter"),
    (b"\x1f\x8b", "packed with gzip; images are sent as they are"),
    (b"BZh", "packed with bzip2; images are sent as they are"),
    (b"\xfd7zXZ\0", "packed with xz; images are sent as they are"),
    (b"(\xb5/\xfd", "packed with zstd; images are sent as they are"),
    (b"PK\3\4", "a ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1aE\xdf\xa3", "a video (Matroska, WebM)"),
    (b"FLV\1", "a video (FLV)"),
    (b"OggS", "Ogg"),
    (b"ID3", "an MP3"),
    (b"glTF", "glTF"),
    (b"Obj\1", "an Avro file"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "HDF5"),
    (b"SIMPLE  =", "FITS"),
)
_RIFF = {b"WAVE": "a sound (WAV)", b"AVI ": "a video (AVI)"}
_CAMERA_BRANDS = (b"crx ",)
_NETPBM = re.compile(rb"P[1-7]\s")
_BASE64 = {
    b"/9j/": "JPEG",
    b"iVBORw0KGgo": "PNG",
    b"UklGR": "WebP",
    b"R0lGOD": "GIF",
    b"Qk": "BMP",
    b"SUkq": "TIFF",
    b"TU0AK": "TIFF",
}
_BASE64_ONLY = re.compile(rb"[A-Za-z0-9+/_=\r\n-]{40,}+\Z")
# What an image that is read here begins with, for one that stands a little behind the first byte.
_INSIDE = re.compile(rb"\xff\xd8\xff[\xc0-\xfe]|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a", re.DOTALL)
_NAMES = {0xFF: "JPEG", 0x89: "PNG", 0x52: "WebP", 0x47: "GIF"}
_LOOKED_AT = 512
_DICOM_AT = 128


def name(data: bytes) -> str:
    """What `data` seems to be, for people; empty where nothing is known of it."""
    found = next((spoken for start, spoken in _BEGINNINGS if data.startswith(start)), "")
    return found or _container(data) or _text(data[:_LOOKED_AT]) or _hidden(data[:_LOOKED_AT])


def _container(data: bytes) -> str:
    if data.startswith(b"RIFF"):
        return _RIFF.get(data[8:12], "a RIFF file that is no WebP")
    if data[4:8] == b"ftyp":
        if data[8:12] in _CAMERA_BRANDS:
            return "a camera's raw file (CR3)"
        return f"a video or another ISO file (brand {data[8:12].decode('ascii', 'replace')!r})"
    if data[_DICOM_AT : _DICOM_AT + 4] == b"DICM":
        return "DICOM"
    return ""


def _text(start: bytes) -> str:
    if _NETPBM.match(start):
        return "a Netpbm picture (PPM)"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text.lower()
    if b"<svg" in lower and lower.startswith(b"<"):
        return "SVG"
    if lower.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if lower.startswith(b"<"):
        return "XML or HTML"
    if text.startswith((b"{", b"[")):
        return "JSON; a reference needs its content-type"
    if lower.startswith(b"data:"):
        return "a data: URL; images are sent as bytes"
    if lower.startswith((b"https://", b"http://", b"s3://", b"file://")):
        return "an address; a reference is JSON with its content-type"
    bare = text.lstrip(b"\"'")
    packed = next((form for begin, form in _BASE64.items() if bare.startswith(begin)), None)
    if packed and _BASE64_ONLY.match(bare.rstrip(b"\"'")):
        return f"base64 of a {packed}; images are sent as bytes"
    if re.match(rb"(?:ffd8ff|89504e47)", lower):
        return "an image as hexadecimal text; images are sent as bytes"
    return ""


def _hidden(start: bytes) -> str:
    inside = _INSIDE.search(start)
    if inside is None:
        return "" if any(start) or not start else "nothing but zero bytes"
    return f"a {_NAMES[inside.group()[0]]} behind {inside.start()} bytes of something else"
