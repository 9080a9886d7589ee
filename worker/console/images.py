"""What the page shows of an image: fresh pictures of pixels that a confined process read (render.py), never the
sender's bytes. Kept for a while, as many bytes as the settings allow; processes stand ready, as each serves one image
and ends.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import worker
from worker.console import render
from worker.console.gate import Gate
from worker.crop import Pixels
from worker.errors import AssayError
from worker.settings import Settings

LONGEST_PX = 1600
_TIMEOUT_S = 30.0
_READY = 2
_QUALITY = 90
_MAX_LINE = 1024
_WAITING = 16  # people beyond those whose images are decoded: a page asks for two at a time
_WAIT_S = 20.0


class NoImage(AssayError):
    """There is nothing to show; the message says why."""


@dataclass(frozen=True, slots=True)
class Shown:
    """`view`: the whole image as a JPEG, LONGEST_PX at most; `crop`: what the model saw as a PNG; sizes in pixels."""

    view: bytes
    crop: bytes
    width: int
    height: int
    view_width: int
    view_height: int

    @property
    def size_bytes(self) -> int:
        return len(self.view) + len(self.crop) + 256


class Renderers:
    """Confined processes that wait for an image each."""

    def __init__(self, settings: Settings) -> None:
        self._arguments = [
            str(settings.limits.max_image_pixels),
            str(LONGEST_PX),
            str(settings.decode.memory_bytes),
        ]
        self._lock = threading.Lock()
        self._ready: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def fill(self) -> None:
        """Have as many ready as there should be."""
        while True:
            with self._lock:
                if self._closed or len(self._ready) >= _READY:
                    return
                self._ready.append(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "worker.console.render", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd=Path(worker.__file__).parents[1],
        )

    def render(self, data: bytes) -> Shown:
        """Raises NoImage."""
        return _read(self._ask(render.SHOW, data))

    def phash(self, data: bytes) -> str:
        """The perceptual hash of an image, 16 hexadecimal digits (phash.py). Raises NoImage."""
        found = _said(self._ask(render.HASH, data)).get("phash")
        if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{16}", found):
            raise NoImage("its decoder answered with something else")
        return found

    def _ask(self, what: bytes, data: bytes) -> bytes:
        with self._lock:
            process = self._ready.pop(0) if self._ready else self._start()
        try:
            out, _ = process.communicate(what + data, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise NoImage("it takes too long to decode") from None
        except OSError as error:
            raise NoImage(f"its decoder died: {error}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            threading.Thread(target=self.fill, name="renderers", daemon=True).start()
        return out

    def close(self) -> None:
        with self._lock:
            self._closed, ready, self._ready = True, self._ready, []
        for process in ready:
            process.kill()
            process.communicate()


def _said(out: bytes) -> dict[str, Any]:
    """What stands on the first line. Raises NoImage."""
    line, newline, _ = out[:_MAX_LINE].partition(b"\n")
    if not newline:
        raise NoImage("its decoder died")
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise NoImage("its decoder answered with something else")
    if "error" in said:
        raise NoImage(str(said["error"])[:300])
    return said


def _read(out: bytes) -> Shown:
    said, rest = _said(out), out[out.find(b"\n") + 1 :]
    try:
        (view_h, view_w), (crop_h, crop_w) = said["view"], said["crop"]
        width, height = int(said["width"]), int(said["height"])
        view = np.frombuffer(rest, np.uint8, view_h * view_w * 3).reshape(view_h, view_w, 3)
        crop = np.frombuffer(rest, np.uint8, crop_h * crop_w * 3, view_h * view_w * 3).reshape(crop_h, crop_w, 3)
    except (ValueError, KeyError, TypeError):
        raise NoImage("its decoder answered with something else") from None
    return Shown(_encoded(view, "JPEG"), _encoded(crop, "PNG"), width, height, view_w, view_h)


def _encoded(pixels: Pixels, image_format: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, quality=_QUALITY)
    return out.getvalue()


class Images:
    """By hash, each made once however many ask, a few at a time. Raises NoImage, Busy, and what `fetch` raises."""

    def __init__(self, settings: Settings) -> None:
        self._most_bytes = settings.console.image_cache_bytes
        self._gate = Gate(
            "many images are decoded", at_once=settings.console.renderers, waiting=_WAITING, wait_s=_WAIT_S
        )
        self.renderers = Renderers(settings)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Shown] = OrderedDict()
        self._bytes = 0
        self._making: dict[str, threading.Lock] = {}

    def shown(self, sha256: str, fetch: Callable[[], bytes]) -> Shown:
        """`fetch` gives the encoded bytes, where they have to be had."""
        with self._lock:
            making = self._making.setdefault(sha256, threading.Lock())
        with making:
            with self._lock:
                if (found := self._kept.get(sha256)) is not None:
                    self._kept.move_to_end(sha256)
                    return found
            try:
                with self._gate.passing():
                    data = fetch()
                    if hashlib.sha256(data).hexdigest() != sha256:
                        raise NoImage("what is there now are other bytes than those that were judged")
                    made = self.renderers.render(data)
                self._keep(sha256, made)
            finally:
                with self._lock:
                    self._making.pop(sha256, None)
            return made

    def _keep(self, sha256: str, made: Shown) -> None:
        with self._lock:
            self._kept[sha256] = made
            self._bytes += made.size_bytes
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= gone.size_bytes
