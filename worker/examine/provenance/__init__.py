"""What the encoded bytes of an image say about its origin: signed manifests, metadata, generators' own fields, marks.

`marks.py` walks over the container and takes out the few places that can hold a mark, without decoding anything: for
most images there is none, and nothing else runs. What is there is read by `exif.py`, `xmp.py` and `manifest.py` (C2PA)
and recognised by `tools.py`; `watermark.py` looks at pixels; `reader.py` puts it together. Everything here is a pure
function of the bytes, bounded in bytes and depth, and never raises for what a file holds.
"""
