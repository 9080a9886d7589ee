"""One view of one image, made in a process of its own that has given up files, connections and programs.

`python -m worker.explain.decode` takes the view (a line of JSON) and the image on stdin, and writes the pixels or a
line that says what is wrong. `explain` runs where an operator sits: the bytes of strangers are no more welcome there
than in the worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

import numpy as np

import worker
from worker.crop import Pixels, View
from worker.errors import Rejected
from worker.explain.gone import Gone
from worker.settings import LimitSettings

_TIMEOUT_S = 60.0
_MAX_PIXELS = 1 << 27


class Decoder:
    """Such a process, started while the image is still being fetched. It decodes one image, and ends with the block."""

    def __init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "LD_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=kept,
            cwd=Path(worker.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def look(self, data: bytes, view: View) -> Pixels:
        """What a detector of this view sees, uint8 [H, W, 3]. Raises Gone where it cannot be decoded."""
        height, width = view.size
        try:
            answer, _ = self._process.communicate(view.to_json().encode() + b"\n" + data, _TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Gone("decoding it takes too long") from None
        if len(answer) != height * width * 3:
            raise Gone(f"it cannot be decoded here: {answer.decode('utf-8', 'replace')[:200] or 'the decoder died'}")
        return np.frombuffer(answer, np.uint8).reshape(height, width, 3)


def _main() -> None:
    from worker.examine import headers, views  # noqa: PLC0415 - what is imported is imported before it is confined
    from worker.examine.confine import confine  # noqa: PLC0415

    view = View.parse(sys.stdin.buffer.readline().decode())
    data, output = sys.stdin.buffer.read(), os.dup(1)
    headers.load_plugins()
    confine(keep_files=[output])
    try:
        header = headers.read(data)
        headers.check_limits(header.info, LimitSettings(max_image_bytes=len(data), max_image_pixels=_MAX_PIXELS))
        pixels = np.zeros((*view.size, 3), np.uint8)
        views.make(header.picture, view, pixels)
        answer = pixels.tobytes()
    except Rejected as rejected:
        answer = rejected.detail.encode()
    with os.fdopen(output, "wb") as out:
        out.write(answer)


if __name__ == "__main__":
    _main()
