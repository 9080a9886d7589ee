"""Encoded bytes, and the crop's pixels -> Evidence. Made once in a process; it reads nothing but its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.crop import Pixels
from worker.evidence import NOTHING, C2pa, Evidence, FileMetadata, Watermark, declare
from worker.examine.provenance import aigc, exif, tools, watermark, xmp
from worker.examine.provenance.manifest import ManifestReader
from worker.examine.provenance.marks import MAX_MARK_BYTES, Marks, find_marks
from worker.examine.provenance.trust import reader_version


@dataclass(frozen=True, slots=True)
class Crop:
    """Decoded pixels of a part of the image: uint8 [H, W, 3] RGB, unscaled, from (`left_px`, `top_px`) on."""

    pixels: Pixels
    left_px: int
    top_px: int
    image_width: int
    image_height: int


class ProvenanceReader:
    """Reads what a file says about its origin. Stateless but for the trust list; one thread at a time."""

    def __init__(self, anchors_pem: str | None) -> None:
        self.version = reader_version(anchors_pem)
        self._manifests = ManifestReader(anchors_pem)

    def read(self, data: bytes, image_format: str, crop: Crop | None = None) -> Evidence:
        """The evidence in `data`, without neighbours. Raises nothing for what the file holds but MemoryError."""
        marks = find_marks(data, image_format)
        found = _watermark(crop) if crop is not None else None
        if not marks and found is None:
            return NOTHING
        metadata = _metadata(marks)
        c2pa = self._manifests.read(data, image_format) if marks.c2pa else C2pa()
        return Evidence(declared=declare(c2pa, metadata, found), c2pa=c2pa, metadata=metadata, watermark=found)


def _metadata(marks: Marks) -> FileMetadata:
    exif_texts = exif.texts(marks.exif, MAX_MARK_BYTES) if marks.exif else {}
    properties = xmp.properties(marks.xmp) if marks.xmp else {}
    source_type = properties.get("source_type")
    return FileMetadata(
        tool=tools.recognise(marks.texts, exif_texts, properties),
        source_type=xmp.last_segment(source_type) if source_type else None,
        aigc=aigc.label(_aigc_texts(marks, exif_texts, properties)),
    )


def _aigc_texts(marks: Marks, exif_texts: Mapping[int, str], properties: Mapping[str, str]) -> list[str]:
    """Where the label may stand; of texts of any meaning only those that name it."""
    texts = [properties["aigc"]] if "aigc" in properties else []
    texts += [text for keyword, text in marks.texts if keyword == "AIGC"]
    texts += [text for _, text in marks.texts if text.lstrip().startswith('{"AIGC"')]
    return texts + [text for text in exif_texts.values() if '"AIGC"' in text]


def _watermark(crop: Crop) -> Watermark | None:
    return watermark.find(crop.pixels, crop.left_px, crop.top_px, crop.image_width, crop.image_height)
