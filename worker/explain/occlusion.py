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

WINDOW_PX = 56
STRIDE_PX = 28
BLUR_PX = 16
BATCH = 64
# Beyond it a score of float32 says no more than that it is sure.
_MAX_LOGIT = 16.0

Floats = npt.NDArray[np.float64]
# uint8 [N, H, W, 3] RGB -> P(fake) [N]
Score = Callable[[Pixels], npt.NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Attribution:
    """`weights` [H, W]: how much each pixel speaks for fake (above 0) or for real (below 0), in logits of the score.

    `score`: of the whole crop. `grid` [rows, columns]: what covering each window took away, before it was spread.
    """

    score: float
    grid: Floats
    weights: Floats

    def strongest(self, *, fake: bool) -> tuple[int, int, int, int]:
        """left, top, right, bottom in pixels of the window that speaks most for fake, or for real."""
        place = int(np.argmax(self.grid) if fake else np.argmin(self.grid))
        row, column = divmod(place, self.grid.shape[1])
        return (
            column * STRIDE_PX,
            row * STRIDE_PX,
            column * STRIDE_PX + WINDOW_PX,
            row * STRIDE_PX + WINDOW_PX,
        )


def attribute(pixels: Pixels, score: Score) -> Attribution:
    """The attribution of `score` over one crop, uint8 [H, W, 3]. Raises what `score` raises."""
    height, width = pixels.shape[:2]
    tops, lefts = range(0, height - WINDOW_PX + 1, STRIDE_PX), range(0, width - WINDOW_PX + 1, STRIDE_PX)
    windows = [(top, left) for top in tops for left in lefts]
    answers = [score(batch) for batch in _batches(pixels, windows)]
    scores = np.concatenate(answers).astype(np.float64)
    logits = _logit(scores)
    taken = logits[0] - logits[1:]
    weights, counts = np.zeros((height, width)), np.zeros((height, width))
    for (top, left), change in zip(windows, taken, strict=True):
        weights[top : top + WINDOW_PX, left : left + WINDOW_PX] += change
        counts[top : top + WINDOW_PX, left : left + WINDOW_PX] += 1
    return Attribution(float(scores[0]), taken.reshape(len(tops), len(lefts)), weights / np.maximum(counts, 1))


def _batches(pixels: Pixels, windows: list[tuple[int, int]]) -> Iterator[Pixels]:
    """The crop itself, then each covered one."""
    cover = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR_PX)))
    batch = [pixels]
    for top, left in windows:
        covered = pixels.copy()
        place = np.s_[top : top + WINDOW_PX, left : left + WINDOW_PX]
        covered[place] = cover[place]
        batch.append(covered)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _logit(scores: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logits: Floats = np.log(scores) - np.log1p(-scores)
    return logits.clip(-_MAX_LOGIT, _MAX_LOGIT)
