"""Encoded bytes to pixels: uint8 [N, 224, 224, 3], the central crop at native size, black where the image is smaller.

The reference is Pillow's `convert("RGB")` of the first frame that viewers show and torchvision's CenterCrop(224), no
orientation applied, grey of 16 bits scaled; on a CPU every pixel equals it. DALI takes what it decodes identically and
faster (baseline JPEG: only the region that is looked at; PNG up to 8 bits), Pillow takes the rest and gives the second
opinion on everything DALI refuses. Both get what `headers` kept of the file, and open no other format or size.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import structlog
from PIL import Image, UnidentifiedImageError

from worker.contract import ImageInfo
from worker.crop import CROP_PX, Pixels
from worker.errors import Rejected, RejectReason, SettingsError
from worker.examine import headers, rle, tiff
from worker.examine.cores import usable_cores
from worker.examine.picture import Picture, corrupt, plain_reason, unsupported
from worker.settings import DecodeSettings

# Pixels decoded whole at the same time; a larger image is decoded alone. Pillow holds up to 4 bytes for each.
WHOLE_AT_ONCE_PX = 32_000_000
_MAX_THREADS = 8

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


def decode_with_pillow(picture: Picture) -> Pixels:
    """The central region, uint8 [H, W, 3] with H, W <= 224: the reference.

    Raises Rejected, and whatever Pillow raises.
    """
    left, top, width, height = central_region(picture.width, picture.height)
    if not picture.opener:
        return rle.region(picture.data, left, top, width, height)
    inner_left, inner_top, inner_width, inner_height = picture.inner
    with Image.open(io.BytesIO(picture.data), formats=[picture.opener]) as image:
        if image.size != (inner_width, inner_height):
            raise corrupt(f"opens as {image.size[0]} x {image.size[1]} pixels; its header was read as other")
        x0, y0 = max(left, inner_left), max(top, inner_top)
        x1 = max(min(left + width, inner_left + inner_width), x0)
        y1 = max(min(top + height, inner_top + inner_height), y0)
        # Cropped first: the conversion works on single pixels, and the whole image may be a thousand times larger.
        part = _rgb(image.crop((x0 - inner_left, y0 - inner_top, x1 - inner_left, y1 - inner_top)), picture)
    if part.shape[:2] == (height, width):
        return part
    out = np.zeros((height, width, 3), np.uint8)  # a first frame that covers a part of its canvas
    out[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return out


def _rgb(part: Image.Image, picture: Picture) -> Pixels:
    """uint8 [H, W, 3]; grey of more than 8 bits by its upper eight, as Pillow has it for colour."""
    if part.mode in ("I", "F"):
        raise unsupported(f"{'integer' if part.mode == 'I' else 'float'} grey of 32 bits a sample")
    if not part.mode.startswith("I;16"):
        return np.asarray(part.convert("RGB"))
    grey = np.asarray(part).astype(np.uint16)
    if picture.inverted:
        grey = (1 << picture.bits) - 1 - grey
    return np.repeat((grey >> max(picture.bits - 8, 0)).astype(np.uint8)[..., None], 3, axis=2)


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


class Dali:
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


class Decoder:
    """Decodes batches. One thread at a time may call it; making it takes seconds, so make it once."""

    def __init__(self, settings: DecodeSettings) -> None:
        """Raises SettingsError where the settings ask for a GPU that is not there."""
        threads = min(usable_cores(), _MAX_THREADS)
        self._dali: Dali | None = None
        try:
            self._dali = Dali(settings, threads)
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
        """The crops of `images`, whose headers `infos` describe (headers.peek, within the limits).

        An image that cannot be decoded stays black and is in `failures`, as Rejected; it costs no other image anything.
        One whose header says now what it did not say then is not opened.
        """
        pixels = np.zeros((len(images), CROP_PX, CROP_PX, 3), np.uint8)
        failures: dict[int, Rejected] = {}
        pictures: dict[int, Picture] = {}
        for i, (data, info) in enumerate(zip(images, infos, strict=True)):
            header = _header_or_rejected(data, info)
            if isinstance(header, Rejected):
                failures[i] = header
            else:
                pictures[i] = header
        fast = [i for i, picture in pictures.items() if self._dali and picture.exact]
        refused: list[int] = []
        for chunk in _chunks(fast, lambda i: self._whole_pixels(pictures[i])):
            refused += self._by_dali(chunk, pictures, pixels)
        slow = sorted(pictures.keys() - set(fast)) + refused
        for chunk in _chunks(slow, lambda i: pictures[i].width * pictures[i].height):
            for i, outcome in zip(chunk, self._by_pillow([pictures[i] for i in chunk]), strict=True):
                if isinstance(outcome, Rejected):
                    failures[i] = outcome
                else:
                    place(outcome, pixels[i])
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

    def _whole_pixels(self, picture: Picture) -> int:
        """Pixels that DALI holds at once: of a JPEG on the CPU a few rows, else all."""
        rows = 16 if picture.format == "jpeg" and self.device == "cpu" else picture.height
        return rows * picture.width

    def _by_dali(self, indices: list[int], pictures: Mapping[int, Picture], pixels: Pixels) -> list[int]:
        """Fills `pixels`; returns the indices that DALI refuses, found by halving: one bad image fails a call."""
        assert self._dali is not None
        try:
            regions = self._dali([pictures[i] for i in indices])
        except Exception as error:  # noqa: BLE001 - DALI raises RuntimeError for a bad image as for its own trouble; Pillow has the last word
            if len(indices) == 1:
                _log.debug("dali_refused", error=str(error.__cause__ or error)[:300])
                return indices
            middle = len(indices) // 2
            return [i for half in (indices[:middle], indices[middle:]) for i in self._by_dali(half, pictures, pixels)]
        for i, region in zip(indices, regions, strict=True):
            place(region, pixels[i])
        return []

    def _by_pillow(self, pictures: Sequence[Picture]) -> list[Pixels | Rejected]:
        """One after the other where together they take more memory than there is: one may be to blame for all."""
        try:
            return list(self._pool.map(try_pillow, pictures))
        except MemoryError:
            return [_try_alone(picture) for picture in pictures]


def _header_or_rejected(data: bytes, info: ImageInfo) -> Picture | Rejected:
    try:
        header = headers.read(data, stage="decode")
    except Rejected as rejected:
        return rejected
    if header.info != info:
        return _failed(f"its header was read as {info.format} of {info.width} x {info.height} pixels, and is another")
    return header.picture


def _try_alone(picture: Picture) -> Pixels | Rejected:
    try:
        return try_pillow(picture)
    except MemoryError:
        return _failed("its decoder asks for more memory than it may have (MemoryError)")


def try_pillow(picture: Picture) -> Pixels | Rejected:
    try:
        return decode_with_pillow(picture)
    except MemoryError:
        raise
    except Rejected as rejected:
        return Rejected(rejected.reason, rejected.detail, stage="decode")
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
        return _unread_tiff(picture, error) or _failed(f"cannot be decoded: {plain_reason(error)}")


def _unread_tiff(picture: Picture, error: Exception) -> Rejected | None:
    """A TIFF that is whole, of samples or a packing that Pillow does not know: its reader found all in order."""
    if picture.format != "tiff":
        return None
    if isinstance(error, UnidentifiedImageError):
        detail = f"a TIFF of a kind that is not read: {tiff.variant(picture.data)}"
        return Rejected(RejectReason.UNSUPPORTED_FORMAT, detail, stage="decode")
    codec = tiff.optional_codec(picture.data)
    if codec and not _libtiff_has(codec):
        detail = f"a TIFF packed as {codec}, which this build of libtiff does not read"
        return Rejected(RejectReason.UNSUPPORTED_FORMAT, detail, stage="decode")
    return None


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
    top, left = (CROP_PX - height) // 2, (CROP_PX - width) // 2
    target[top : top + height, left : left + width] = region
