"""Which parts of a crop speak for a score: each part is covered in turn, and the score asked again.

No gradients and nothing of the model's inside: any detector that answers with a score can be explained (Zeiler and
Fergus, 2014). The cover is the crop's own colours, blurred: a grey square would be a new thing to see. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from worker.crop import Pixels

WINDOWS_A_SIDE = 4  # of the shorter side: 56 px of 224
OVERLAP = 0.5
BLUR = 2 / 7  # of a window
BATCH = 64
# Beyond it a score of float32 says no more than that it is sure.
_MAX_LOGIT = 16.0

Floats = npt.NDArray[np.float64]
Answers = npt.NDArray[np.floating]
Place = tuple[slice, slice]
# uint8 [N, H, W, 3] RGB -> P(fake) [N]
Score = Callable[[Pixels], Answers]


@dataclass(frozen=True, slots=True)
class Attribution:
    """`weights` [H, W]: how much each pixel speaks for fake (above 0) or for real (below 0), in logits of the score.

    `score`: of the whole crop. `grid` [rows, columns]: what covering each window took away, before it was spread.
    `window_px`: a window's side; `stride_px`: from one to the next.
    """

    score: float
    grid: Floats
    weights: Floats
    window_px: int
    stride_px: int

    def strongest(self, *, fake: bool) -> tuple[int, int, int, int]:
        """left, top, right, bottom in pixels of the window that speaks most for fake, or for real."""
        place = int(np.argmax(self.grid) if fake else np.argmin(self.grid))
        row, column = divmod(place, self.grid.shape[1])
        left, top = column * self.stride_px, row * self.stride_px
        return left, top, left + self.window_px, top + self.window_px


def attribute(pixels: Pixels, score: Score, *, overlap: float = OVERLAP, batch_items: int = BATCH) -> Attribution:
    """The attribution of `score` over one crop, uint8 [H, W, 3]. Raises what `score` raises.

    `overlap`: the share of a window that the next one covers again; less of it asks fewer questions, of a dear model.
    """
    height, width = pixels.shape[:2]
    side = max(1, min(height, width) // WINDOWS_A_SIDE)
    stride = max(1, round(side * (1 - overlap)))
    tops, lefts = range(0, height - side + 1, stride), range(0, width - side + 1, stride)
    windows = [np.s_[top : top + side, left : left + side] for top in tops for left in lefts]
    answers = [score(batch) for batch in _batches(pixels, windows, side * BLUR, batch_items)]
    scores = np.concatenate(answers).astype(np.float64)
    logits = _logit(scores)
    taken = logits[0] - logits[1:]
    weights, counts = np.zeros((height, width)), np.zeros((height, width))
    for place, change in zip(windows, taken, strict=True):
        weights[place] += change
        counts[place] += 1
    grid = taken.reshape(len(tops), len(lefts))
    return Attribution(float(scores[0]), grid, weights / np.maximum(counts, 1), side, stride)


def _batches(pixels: Pixels, windows: list[Place], blur_px: float, items: int) -> Iterator[Pixels]:
    """The crop itself, then each covered one."""
    cover = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur_px)))
    batch = [pixels]
    for place in windows:
        covered = pixels.copy()
        covered[place] = cover[place]
        batch.append(covered)
        if len(batch) == items:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _logit(scores: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logits: Floats = np.log(scores) - np.log1p(-scores)
    return logits.clip(-_MAX_LOGIT, _MAX_LOGIT)
