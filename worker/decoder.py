"""Encoded bytes to pixels: uint8 [N, 224, 224, 3], the central crop at native size, black where the image is smaller.

The reference is Pillow's `convert("RGB")` of the first frame and torchvision's CenterCrop(224), EXIF orientation not
applied; on a CPU every pixel equals it. DALI takes what it decodes identically and faster (baseline JPEG: only the
region
that is looked at; PNG up to 8 bits), Pillow takes the rest and gives the second opinion on everything DALI refuses.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from PIL import Image

from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason, SettingsError
from worker.imaging import jpeg_frame
from worker.settings import DecodeSettings

CROP_PX = 224
# Pixels decoded whole at the same time; a larger image is decoded alone. Pillow holds up to 4 bytes for each.
WHOLE_AT_ONCE_PX = 32_000_000
# Every scan of a progressive JPEG walks over the whole image; encoders write about ten. A file within the limits could
# hold
# 400,000 and occupy the decoder for hours.
MAX_JPEG_SCANS = 100
_MAX_THREADS = 8
_JPEG_BASELINE = (0xC0, 0xC1)
# In a scan's data only stuffing (FF 00), restarts (FF D0 to D7) and fill (FF FF) may follow an FF; anything else ends
# it.
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

Pixels = npt.NDArray[np.uint8]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels`: uint8 [N, 224, 224, 3], C-contiguous, RGB; black where `failures` names the index."""

    pixels: Pixels
    failures: dict[int, Rejected]


def central_region(width: int, height: int) -> tuple[int, int, int, int]:
    """left, top, width, height of the central crop inside the image: torchvision's offsets, half to even (225 -> 0, 227
    -> 2).
    """
    left = round((width - CROP_PX) / 2) if width > CROP_PX else 0
    top = round((height - CROP_PX) / 2) if height > CROP_PX else 0
    return left, top, min(width, CROP_PX), min(height, CROP_PX)


def decode_with_pillow(data: bytes) -> Pixels:
    """The central region, uint8 [H, W, 3] with H, W <= 224: the reference. Raises whatever Pillow raises."""
    with Image.open(io.BytesIO(data)) as image:
        left, top, width, height = central_region(*image.size)
        # Cropped first: the conversion works on single pixels, and the whole image may be a thousand times larger.
        return np.asarray(image.crop((left, top, left + width, top + height)).convert("RGB"))


def dali_decodes_exactly(data: bytes, info: ImageInfo) -> bool:
    """Whether DALI is known to accept these bytes if and only if Pillow does, with the same pixels.

    It decodes no further than the crop and so misses damage below it; with the scan's extent checked here both agree.
    Left
    to Pillow, each with differences measured: progressive JPEG (damaged ones are smoothed differently, by up to 3),
    CMYK
    (another inversion), 16-bit PNG and TIFF (rounded, not cut), palette TIFF, WebP (damage below the crop goes unseen).
    """
    if info.format == "jpeg":
        frame = jpeg_frame(data)
        if frame is None or frame.marker not in _JPEG_BASELINE or frame.components == 4:
            return False
        if data[frame.scan + 4 : frame.scan + 5] != bytes([frame.components]):  # more than one scan
            return False
        end = _SCAN_END.search(data, frame.scan + 2)
        return end is not None and end.group() == b"\xff\xd9"
    if info.format == "png":
        return (
            data[12:16] == b"IHDR"
            and data[24:25] <= b"\x08"
            and data.endswith(_PNG_END)
            and _pillow_opens_single_frame(data)
        )
    return False


def _pillow_opens_single_frame(data: bytes) -> bool:
    """Pillow refuses some metadata that DALI does not look at, such as text that unpacks to too much."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return not getattr(image, "is_animated", False)
    except Exception:  # noqa: BLE001 - decode_with_pillow() will meet the same error and report it
        return False


def _chunks(indices: Iterable[int], cost: Callable[[int], int]) -> Iterator[list[int]]:
    """Runs of indices whose costs add up to WHOLE_AT_ONCE_PX at most; a dearer one stands alone."""
    chunk: list[int] = []
    total = 0
    for index in indices:
        if chunk and total + cost(index) > WHOLE_AT_ONCE_PX:
            yield chunk
            chunk, total = [], 0
        chunk.append(index)
        total += cost(index)
    if chunk:
        yield chunk


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


class _Dali:
    """DALI in dynamic mode, bound to one device. A batch either decodes or raises as a whole."""

    def __init__(self, settings: DecodeSettings, threads: int) -> None:
        """Raises ImportError where DALI is not installed, SettingsError where the GPU asked for is not there."""
        backend, dynamic = _import_dali()
        gpus = int(backend.GetCUDADeviceCount())
        if settings.device == "gpu" and not gpus:
            raise SettingsError(
                ["ASSAY_DECODE__DEVICE=gpu: no CUDA device is visible; expected a GPU with its driver, or auto or cpu"]
            )
        self.device = "gpu" if gpus and settings.device != "cpu" else "cpu"
        self._dynamic = dynamic
        self._context = dynamic.EvalContext(num_threads=threads)
        # nvJPEG's own upsampling differs from libjpeg's; this option exists only there.
        self._options: dict[str, Any] = {"jpeg_fancy_upsampling": True} if self.device == "gpu" else {}

    def __call__(self, images: Sequence[bytes], infos: Sequence[ImageInfo]) -> list[Pixels]:
        """The central region of each, uint8 [H, W, 3]. Raises whatever DALI raises, for all, when one is bad."""
        regions = np.array(
            [central_region(info.width, info.height) for info in infos], np.int32
        )  # left, top, width, height
        as_batch = self._dynamic.as_batch
        with self._context:
            decoded = self._dynamic.decoders.image_slice(
                as_batch([np.frombuffer(data, np.uint8) for data in images]),
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


class Decoder:
    """Decodes batches. One thread at a time may call it; making it takes seconds, so make it once."""

    def __init__(self, settings: DecodeSettings) -> None:
        """Raises SettingsError where the settings ask for a GPU that is not there."""
        threads = settings.threads or min(len(os.sched_getaffinity(0)), _MAX_THREADS)
        self._dali: _Dali | None = None
        try:
            self._dali = _Dali(settings, threads)
        except ImportError as error:
            if settings.device == "gpu":
                raise SettingsError(
                    [f"ASSAY_DECODE__DEVICE=gpu: DALI cannot be imported ({error}); install nvidia-dali-cuda130"]
                ) from None
            _log.warning(
                "dali_missing",
                error=str(error),
                effect="Pillow decodes, more slowly",
                remedy="install nvidia-dali-cuda130",
            )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    @property
    def device(self) -> str:
        """Where JPEG is decoded: `gpu`, `cpu`, or `pillow` without DALI."""
        return self._dali.device if self._dali else "pillow"

    def decode(self, images: Sequence[bytes], infos: Sequence[ImageInfo]) -> Decoded:
        """The crops of `images`, whose headers `infos` describe (imaging.peek, within the limits).

        An image that cannot be decoded stays black and is in `failures`, as Rejected(corrupt); it costs no other image
        anything. MemoryError passes through: it says nothing about an image.
        """
        pixels = np.zeros((len(images), CROP_PX, CROP_PX, 3), np.uint8)
        fast = [i for i in range(len(images)) if self._dali and dali_decodes_exactly(images[i], infos[i])]
        refused: list[int] = []
        for chunk in _chunks(fast, lambda i: self._whole_pixels(infos[i])):
            refused += self._by_dali(chunk, images, infos, pixels)
        slow = sorted({*range(len(images))} - {*fast}) + refused
        failures: dict[int, Rejected] = {}
        for chunk in _chunks(slow, lambda i: infos[i].width * infos[i].height):
            outcomes = self._pool.map(_try_pillow, [images[i] for i in chunk])
            for i, outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, Rejected):
                    failures[i] = outcome
                else:
                    _place(outcome, pixels[i])
        if len(refused) > 1 and len(refused) == len(fast) and not failures.keys() & set(refused):
            _log.warning(
                "dali_refuses_everything",
                images=len(refused),
                device=self.device,
                remedy="restart the worker; ASSAY_DECODE__DEVICE=cpu",
            )
        return Decoded(pixels, failures)

    def close(self) -> None:
        """Ends the threads; the decoder cannot be used afterwards."""
        self._pool.shutdown(cancel_futures=True)
        self._dali = None

    def _whole_pixels(self, info: ImageInfo) -> int:
        """Pixels that DALI holds at once: of a JPEG on the CPU a few rows, else all."""
        return 16 * info.width if info.format == "jpeg" and self.device == "cpu" else info.width * info.height

    def _by_dali(
        self, indices: list[int], images: Sequence[bytes], infos: Sequence[ImageInfo], pixels: Pixels
    ) -> list[int]:
        """Fills `pixels`; returns the indices that DALI refuses, found by halving: one bad image fails a whole call."""
        assert self._dali is not None
        try:
            regions = self._dali([images[i] for i in indices], [infos[i] for i in indices])
        except Exception as error:  # noqa: BLE001 - DALI raises RuntimeError for a bad image as for its own trouble; Pillow has the last word
            if len(indices) == 1:
                _log.debug("dali_refused", error=str(error.__cause__ or error)[:300])
                return indices
            middle = len(indices) // 2
            return [
                i for half in (indices[:middle], indices[middle:]) for i in self._by_dali(half, images, infos, pixels)
            ]
        for i, region in zip(indices, regions, strict=True):
            _place(region, pixels[i])
        return []


def _try_pillow(data: bytes) -> Pixels | Rejected:
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        return Rejected(RejectReason.CORRUPT, f"a JPEG of more than {MAX_JPEG_SCANS} scans", stage="decode")
    try:
        return decode_with_pillow(data)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
        return Rejected(
            RejectReason.CORRUPT, f"cannot be decoded: {type(error).__name__}: {error}"[:300], stage="decode"
        )


def _place(region: Pixels, target: Pixels) -> None:
    """Centres the region in the black crop: left and top floor, as torchvision pads."""
    height, width = region.shape[:2]
    top, left = (CROP_PX - height) // 2, (CROP_PX - width) // 2
    target[top : top + height, left : left + width] = region
