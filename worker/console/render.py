"""One image for the page, decoded in a process of its own that has given up files, connections and programs.

`python -m worker.console.render PIXELS LONGEST MEMORY` confines itself, then takes what is wanted (SHOW, HASH) and the
image on stdin, to its end, and writes a line of JSON (`width`, `height`, `view` [h, w], `crop` [h, w]; or `phash`; or
`error`) and the raw pixels of both: whoever reads it parses nothing that a stranger's bytes could have shaped. It
serves one image and ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

import numpy as np
from PIL import Image

SHOW, HASH = b"s", b"h"


def _limit_memory(most: int) -> None:
    """On top of what there is now."""
    pages = int(open("/proc/self/statm", encoding="ascii").read().split()[5])  # noqa: SIM115, PTH123 - before it is confined
    limit = pages * resource.getpagesize() + most
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    from worker.console.phash import phash  # noqa: PLC0415
    from worker.crop import CROP_PX  # noqa: PLC0415 - what is imported is imported before it is confined
    from worker.errors import Rejected  # noqa: PLC0415
    from worker.examine import headers  # noqa: PLC0415
    from worker.examine.confine import confine  # noqa: PLC0415
    from worker.examine.pixels import decode_with_pillow, place  # noqa: PLC0415
    from worker.settings import LimitSettings  # noqa: PLC0415

    most_pixels, longest, memory = (int(text) for text in sys.argv[1:4])
    source, output = os.dup(0), os.dup(1)
    headers.load_plugins()
    Image.init()
    _limit_memory(memory)
    confine(keep_files=[source, output])
    with os.fdopen(source, "rb") as stream:
        wanted, data = stream.read(1), stream.read()
    parts: list[Any] = []
    try:
        header = headers.read(data)
        headers.check_limits(
            header.info, LimitSettings(max_image_bytes=max(1, len(data)), max_image_pixels=most_pixels)
        )
        picture = header.picture
        pixels = decode_with_pillow(picture, (0, 0, picture.width, picture.height))
        said: dict[str, Any]
        if wanted == HASH:
            said = {"phash": phash(pixels)}
        else:
            whole = Image.fromarray(pixels)
            whole.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=1.0)
            view, crop = np.asarray(whole), np.zeros((CROP_PX, CROP_PX, 3), np.uint8)
            place(decode_with_pillow(picture), crop)
            parts = [view, crop]
            said = {"width": picture.width, "height": picture.height, "view": view.shape[:2], "crop": crop.shape[:2]}
    except Rejected as rejected:
        said = {"error": rejected.detail}
    except MemoryError:
        said = {"error": "it takes more memory than one image may"}
    except Exception as error:  # noqa: BLE001 - Pillow's plugins raise whatever their parsing runs into
        said = {"error": f"it cannot be decoded: {type(error).__name__}"}
    with os.fdopen(output, "wb") as out:
        out.write(json.dumps(said).encode() + b"\n")
        for part in parts:
            out.write(np.ascontiguousarray(part).tobytes())


if __name__ == "__main__":
    main()
