"""What a header says of an image, and the bytes that its pixels depend on: what decoders get, and nothing else.

Each reader (jpeg, png, webp, gif, bmp, tiff, boxes) walks one format and leaves out whatever is no pixel: text,
profiles, EXIF, previews, later frames, what stands between and behind. So none of that can decide whether pixels are
judged, and no decoder meets a size, a format or a chunk that was not checked.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from worker.errors import Rejected, RejectReason


@dataclass(frozen=True, slots=True)
class Picture:
    """One still picture.

    `format`: the contract's name; `opener`: Pillow's, or `""` where this package decodes itself. `width` and `height`:
    of the whole image, in pixels; `box`: left, top, width, height of what `data` holds of it, None for all.
    `exact`: DALI is known to accept `data` if and only if Pillow does, with the same pixels. `passes`: how often the
    decoder walks over the pixels. `bits`: of a sample, where they are more than 8; `inverted`: 0 is white in such.
    `by_libtiff`: a TIFF whose rows Pillow takes for others where they are not packed; libtiff reads them.
    """

    format: str
    opener: str
    width: int
    height: int
    data: bytes
    box: tuple[int, int, int, int] | None = None
    frames: int = 1
    jpeg_quality: int | None = None
    exact: bool = False
    passes: int = 1
    bits: int = 8
    inverted: bool = False
    by_libtiff: bool = False

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """left, top, width, height of what `data` holds, in pixels of the whole image."""
        return self.box or (0, 0, self.width, self.height)


def corrupt(detail: str) -> Rejected:
    """The bytes are no whole image of their format."""
    return Rejected(RejectReason.CORRUPT, detail, stage="intake")


def unsupported(detail: str) -> Rejected:
    """A format, or a variant of one, that is not read here; `detail` names it."""
    return Rejected(RejectReason.UNSUPPORTED_FORMAT, detail, stage="intake")


_ADDRESS = re.compile(r" ?(?:object )?at 0x[0-9a-f]+")


def plain_reason(error: Exception) -> str:
    """What a decoder said, the same for the same bytes: without objects' addresses, at most 200 characters."""
    if isinstance(error, UnidentifiedImageError):
        return "its decoder does not know it"
    return " ".join(_ADDRESS.sub("", f"{type(error).__name__}: {error}").split())[:200]


def reason_of(error: Exception, data: bytes, opener: str) -> str:
    """The same, and where Pillow says only that it does not know an image: what made its reader give up."""
    if isinstance(error, UnidentifiedImageError) and opener in Image.OPEN:
        try:
            Image.OPEN[opener][0](io.BytesIO(data), "")
        except Exception as inner:  # noqa: BLE001 - whatever its reader raises is the reason
            return plain_reason(inner)
    return plain_reason(error)
