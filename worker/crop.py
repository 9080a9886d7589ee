"""The part of an image that the model looks at: its size, how it is held, and the memory that batches of it lie in."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

CROP_PX = 224
CROP_BYTES = CROP_PX * CROP_PX * 3
Pixels = npt.NDArray[np.uint8]
"""uint8 [..., 224, 224, 3], RGB."""


class Lease(Protocol):
    """Memory that somebody reads: given back once, when nobody does any more."""

    def release(self) -> None: ...
