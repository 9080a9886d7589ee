"""What the bytes of an image say before a model sees it: whose photograph it is, its header as the worker reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console

from train.data.copies import perceptual_hash
from train.data.images import BadImage, decode_image
from train.data.records import Labelled
from train.fitted import HASH_DIGITS, photograph_hash
from train.progress import counting
from worker.contract import ImageInfo
from worker.errors import Rejected
from worker.examine import headers

THREADS = 4


@dataclass(frozen=True)
class Look:
    """`photograph`: by name or bytes, without regard to copies; `fingerprint` tells those (train/data/copies.py)."""

    photograph: str
    sha256: str
    info: ImageInfo
    fingerprint: int


def look_at(images: Sequence[Labelled], console: Console | None = None) -> list[Look | str]:
    """A look at each image, or the reason why there is none: `corrupt`, `unsupported_format`, …"""
    with counting(console, "headers and copies", len(images)) as advance, ThreadPoolExecutor(THREADS) as pool:
        found = []
        for look in pool.map(_look, images):
            advance(1)
            found.append(look)
    return found


def _look(image: Labelled) -> Look | str:
    try:
        data = image.key.read()
        info = headers.peek(data)
        pixels = decode_image(data)
    except (OSError, BadImage):
        return "corrupt"
    except Rejected as rejected:
        return str(rejected.reason)
    sha256 = hashlib.sha256(data).hexdigest()
    return Look(photograph_hash(image) or sha256[:HASH_DIGITS], sha256, info, perceptual_hash(pixels))
