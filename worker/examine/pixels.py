"""Encoded bytes to pixels: uint8 [N, 224, 224, 3], the central crop at native size, black where the image is smaller.

The reference is Pillow's `convert("RGB")` of the first frame that viewers show and torchvision's CenterCrop(224), no
orientation applied, grey of 16 bits scaled; on a CPU every pixel equals it. DALI takes what it decodes identically and
faster (baseline JPEG: only the region that is looked at; PNG up to 8 bits), Pillow takes the rest and gives the second
opinion on everything DALI refuses. Both get what `headers` kept of the file, and open no other format or size.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from worker.crop import CROP_PX, Pixels
from worker.errors import Rejected, RejectReason, SettingsError
from worker.examine import boxes, rle, tiff, webp
from worker.examine.picture import Picture, corrupt, reason_of, unsupported

Part = tuple[int, int, int, int]  # left, top, width, height


def central_region(width: int, height: int, crop_px: int = CROP_PX) -> Part:
    """Of the central crop inside the image: torchvision's offsets, half to even (225 -> 0, 227 -> 2)."""
    left = round((width - crop_px) / 2) if width > crop_px else 0
    top = round((height - crop_px) / 2) if height > crop_px else 0
    return left, top, min(width, crop_px), min(height, crop_px)


def decode_with_pillow(picture: Picture, part: Part | None = None) -> Pixels:
    """That part, or the central region, uint8 [H, W, 3]: the reference.

    Raises Rejected, and whatever Pillow raises.
    """
    left, top, width, height = part or central_region(picture.width, picture.height)
    if not picture.opener:
        return rle.region(picture.data, left, top, width, height)
    if picture.format == "webp":
        return webp.region(picture, left, top, width, height)
    inner_left, inner_top, inner_width, inner_height = picture.inner
    TiffImagePlugin.READ_LIBTIFF = picture.by_libtiff
    with Image.open(io.BytesIO(picture.data), formats=[picture.opener]) as image:
        if image.size != (inner_width, inner_height):
            raise corrupt(f"opens as {image.size[0]} x {image.size[1]} pixels; its header was read as other")
        # At once: libjpeg's arithmetic decoder cannot wait in the middle for the next 64 KiB.
        image.decodermaxblock = max(image.decodermaxblock, len(picture.data))
        x0, y0 = max(left, inner_left), max(top, inner_top)
        x1 = max(min(left + width, inner_left + inner_width), x0)
        y1 = max(min(top + height, inner_top + inner_height), y0)
        # Cropped first: the conversion works on single pixels, and the whole image may be a thousand times larger.
        found = _rgb(image.crop((x0 - inner_left, y0 - inner_top, x1 - inner_left, y1 - inner_top)), picture)
    if found.shape[:2] == (height, width):
        return found
    out = np.zeros((height, width, 3), np.uint8)  # a first frame that covers a part of its canvas
    out[y0 - top : y1 - top, x0 - left : x1 - left] = found
    return out


def _rgb(part: Image.Image, picture: Picture) -> Pixels:
    """uint8 [H, W, 3]; grey of more than 8 bits by its upper eight, as Pillow has it for colour."""
    if part.mode in ("I", "F"):
        raise unsupported(f"{'integer' if part.mode == 'I' else 'float'} grey of 32 bits a sample")
    if part.mode == "La":  # which Pillow converts to LA alone
        part = part.convert("LA")
    if not part.mode.startswith("I;16"):
        return np.asarray(part.convert("RGB"))
    grey = np.asarray(part).astype(np.uint16)
    if picture.inverted:
        grey = (1 << picture.bits) - 1 - grey
    return np.repeat((grey >> max(picture.bits - 8, 0)).astype(np.uint8)[..., None], 3, axis=2)


def _import_dali() -> tuple[Any, Any]:
    """nvidia.dali.backend and the dynamic mode, which imports torch where it finds it, for type names alone: 6 s and
    600 MB.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from nvidia.dali import backend  # noqa: PLC0415 - takes seconds, and is not there on every machine
        from nvidia.dali.experimental import dynamic  # noqa: PLC0415
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return backend, dynamic


class Dali:
    """DALI in dynamic mode, bound to one device. A batch either decodes or raises as a whole."""

    def __init__(self, device: Literal["cpu", "gpu"]) -> None:
        """Raises ImportError where DALI is not installed, SettingsError where the GPU asked for is not there."""
        backend, dynamic = _import_dali()
        if device == "gpu" and not backend.GetCUDADeviceCount():
            raise SettingsError(
                ["ASSAY_DECODE__DEVICE=gpu: no CUDA device is visible; expected a GPU with its driver, or auto or cpu"]
            )
        self.device = device
        self._dynamic = dynamic
        self._context = dynamic.EvalContext(num_threads=1)  # children are as many as cores
        # nvJPEG's own upsampling differs from libjpeg's; this option exists only there.
        self._options: dict[str, Any] = {"jpeg_fancy_upsampling": True} if self.device == "gpu" else {}

    def __call__(self, pictures: Sequence[Picture]) -> list[Pixels]:
        """The central region of each, uint8 [H, W, 3]. Raises whatever DALI raises, for all, when one is bad."""
        # left, top, width, height
        regions = np.array([central_region(picture.width, picture.height) for picture in pictures], np.int32)
        as_batch = self._dynamic.as_batch
        with self._context:
            decoded = self._dynamic.decoders.image_slice(
                as_batch([np.frombuffer(picture.data, np.uint8) for picture in pictures]),
                device=self.device,
                start=as_batch(np.ascontiguousarray(regions[:, [1, 0]])),
                shape=as_batch(np.ascontiguousarray(regions[:, [3, 2]])),
                axis_names="HW",
                adjust_orientation=False,
                **self._options,
            )
            if self.device == "gpu":
                decoded = decoded.cpu()
            return [np.asarray(tensor) for tensor in decoded.tensors]


def try_pillow(picture: Picture, part: Part | None = None) -> Pixels | Rejected:
    """That part, or the central region, or why there is none. MemoryError passes through: what it says depends on the
    process.
    """
    try:
        return decode_with_pillow(picture, part)
    except MemoryError:
        raise
    except Rejected as rejected:
        return Rejected(rejected.reason, rejected.detail, stage="decode")
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
        return _unread_tiff(picture, error) or _failed(f"cannot be decoded: {_reason(picture, error)}")


def _reason(picture: Picture, error: Exception) -> str:
    missing = boxes.missing(picture.data) if picture.format in ("avif", "heic") else 0
    if picture.format == "jxl":
        return "its decoder gave up"  # in its own words: to build it anew and see
    return f"{missing} bytes are missing" if missing else reason_of(error, picture.data, picture.opener)


def _unread_tiff(picture: Picture, error: Exception) -> Rejected | None:
    """A TIFF that is whole, of samples or a packing that Pillow does not know: its reader found all in order."""
    if picture.format != "tiff":
        return None
    if isinstance(error, UnidentifiedImageError) or any(words in str(error) for words in _NO_SUCH_MODE):
        detail = f"a TIFF of a kind that is not read: {tiff.variant(picture.data)}"
        return Rejected(RejectReason.UNSUPPORTED_FORMAT, detail, stage="decode")
    codec = tiff.optional_codec(picture.data)
    if codec and not _libtiff_has(codec):
        detail = f"a TIFF packed as {codec}, which this build of libtiff does not read"
        return Rejected(RejectReason.UNSUPPORTED_FORMAT, detail, stage="decode")
    return None


# What Pillow says of samples that it can name and not unpack or convert.
_NO_SUCH_MODE = ("unknown raw mode", "conversion from")


@cache
def _libtiff_has(codec: str) -> bool:
    """Whether Pillow's libtiff was built with it, by trying."""
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), "TIFF", compression=codec)
    except Exception:  # noqa: BLE001 - whatever it says, it does not work
        return False
    return True


def _failed(detail: str) -> Rejected:
    return Rejected(RejectReason.CORRUPT, detail, stage="decode")


def place(region: Pixels, target: Pixels) -> None:
    """Centres the region in the black crop: left and top floor, as torchvision pads."""
    height, width = region.shape[:2]
    top, left = (target.shape[0] - height) // 2, (target.shape[1] - width) // 2
    target[top : top + height, left : left + width] = region
