"""The part of an image that the model looks at: its size, and how it is held."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CROP_PX = 224
CROP_BYTES = CROP_PX * CROP_PX * 3
Pixels = npt.NDArray[np.uint8]
"""uint8 [..., 224, 224, 3], RGB."""
