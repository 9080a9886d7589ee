"""What a child does with one image: read its header, decode its crop, see what the file says of itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from worker.contract import ImageInfo
from worker.crop import CROP_PX, Pixels, View
from worker.errors import Rejected, SettingsError
from worker.examine import headers, views
from worker.examine.findings import Cost, Findings
from worker.examine.picture import Picture
from worker.examine.pixels import Dali, central_region, place, try_pillow
from worker.examine.provenance.reader import Crop, ProvenanceReader
from worker.settings import LimitSettings

Device = Literal["cpu", "gpu", "none"]
# Milliseconds and bytes for a pixel, or MB for a million of them: what Pillow takes for a whole image.
_PER_MEGAPIXEL = {
    "jpeg": (12.0, 5.0),
    "png": (50.0, 8.0),
    "webp": (55.0, 20.0),
    "gif": (40.0, 8.0),
    "bmp": (15.0, 6.0),
    "tiff": (40.0, 10.0),
    "avif": (80.0, 16.0),
}
# What Pillow keeps for a row beside its pixels; an image may be one pixel wide.
_ROW_BYTES = 16
_DEAREST = (100.0, 20.0)


@dataclass(frozen=True, slots=True)
class Header:
    """An image that is within the limits, and how it is going to be decoded."""

    picture: Picture
    data: bytes
    info: ImageInfo
    cost: Cost
    together: bool


def cost(picture: Picture, *, by_dali: bool) -> Cost:
    """An upper guess, from decodes of 25 and 100 megapixels on one core of a server."""
    megapixels = picture.width * picture.height / 1e6
    copies = 2 * len(picture.data)
    if by_dali and picture.format == "jpeg":  # decodes no further than the crop, and holds a few rows
        return Cost(1 + 5 * megapixels + copies / 1e5, copies + 64 * picture.width)
    ms, size = _PER_MEGAPIXEL.get(picture.format, _DEAREST)
    if picture.format == "jpeg" and picture.passes > 1:
        ms, size = ms + 2.5 * picture.passes, 13
    return Cost(1 + ms * megapixels + copies / 1e5, copies + int(size * 1e6 * megapixels) + _ROW_BYTES * picture.height)


class Body:
    """The readers of one process. `device`: where DALI decodes; `none`: Pillow takes all. `provenance`: who reads
    evidence; None: nobody. `view`: what becomes of a picture; None: the central crop.
    """

    def __init__(self, device: Device, provenance: ProvenanceReader | None = None, view: View | None = None) -> None:
        """Raises SettingsError where there is no GPU, though it is asked for."""
        self._provenance = provenance
        self._view = view
        self._dali: Dali | None = None
        if device == "none":
            return
        try:
            self._dali = Dali(device)
        except ImportError as error:
            if device == "gpu":
                raise SettingsError([f"DALI cannot be imported ({error}); install nvidia-dali-cuda130"]) from None

    @property
    def decoder(self) -> str:
        """What decodes most images: `cpu` or `gpu` is DALI, `pillow` is without it."""
        return self._dali.device if self._dali else "pillow"

    def warm_up(self) -> None:
        """Decode pictures of our own: libraries are loaded and buffers made, or else it fails here."""
        headers.load_plugins()
        for form in ("JPEG", "PNG"):
            out = io.BytesIO()
            Image.new("RGB", (256, 256), (90, 120, 30)).save(out, form)
            header = self.read(out.getvalue(), 1 << 20, 1 << 20)
            crop = np.zeros((*(self._view or View()).size, 3), np.uint8)
            if header.together:
                self.decode_together([header], [crop])
            self.decode_one(header, crop)

    def read(self, data: bytes, max_bytes: int, max_pixels: int) -> Header:
        """Raises Rejected."""
        header = headers.read(data)
        headers.check_limits(header.info, LimitSettings(max_image_bytes=max_bytes, max_image_pixels=max_pixels))
        together = self._dali is not None and header.picture.exact
        dear = cost(header.picture, by_dali=together)
        if self._view is not None:  # decoded whole, converted, and then once more for the filter
            megapixels = header.info.width * header.info.height / 1e6
            dear = Cost(dear.effort_ms + 10 * megapixels, dear.decoded_bytes + int(9e6 * megapixels))
        return Header(header.picture, data, header.info, dear, together)

    def decode_together(self, group: Sequence[Header], rows: Sequence[Pixels]) -> set[int]:
        """Into `rows`, but those positions that the decoder refuses, found by halving: one bad image fails a call."""
        assert self._dali is not None
        try:
            regions = self._dali([one.picture for one in group])
        except Exception:  # noqa: BLE001 - DALI raises RuntimeError for a bad image as for its own trouble
            if len(group) == 1:
                return {0}
            middle = len(group) // 2
            behind = self.decode_together(group[middle:], rows[middle:])
            return self.decode_together(group[:middle], rows[:middle]) | {middle + one for one in behind}
        for region, row in zip(regions, rows, strict=True):
            place(region, row)
        return set()

    def decode_one(self, header: Header, row: Pixels) -> None:
        """Into `row`. Raises Rejected, MemoryError."""
        if self._view is not None:
            views.make(header.picture, self._view, row)
            return
        outcome = try_pillow(header.picture)
        if isinstance(outcome, Rejected):
            raise outcome
        place(outcome, row)

    def findings(self, header: Header, row: Pixels, *, with_evidence: bool) -> Findings:
        """What was found out about an image whose pixels are in `row`."""
        if self._provenance is None or not with_evidence:
            return Findings(header.info)
        width, height = header.info.width, header.info.height
        left, top, crop_width, crop_height = central_region(width, height)
        x, y = (CROP_PX - crop_width) // 2, (CROP_PX - crop_height) // 2
        crop = Crop(row[y : y + crop_height, x : x + crop_width], left, top, width, height)
        evidence = self._provenance.read(header.data, header.info.format, crop)
        return Findings(header.info, evidence, self._provenance.version)

    def close(self) -> None:
        """End the decoders' threads."""
        self._dali = None
