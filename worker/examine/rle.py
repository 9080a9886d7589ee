"""Run-length BMP: the rows that are looked at, a run of commands at a time instead of byte by byte.

A command is (count, index), or an escape: end of line (0, 0), end of picture (0, 1), a move (0, 2, right, up), or
literal indices (0, n, …) padded to 16 bits (Microsoft, "Bitmap Compression"). What no command paints has index 0.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from worker.examine import bmp
from worker.examine.picture import corrupt

# A step is a run of like commands, about a microsecond; a photograph of 25 MB has a million.
MAX_STEPS = 4_000_000
_RUNS = re.compile(rb"(?:[^\0].)++", re.DOTALL)
_LINES = re.compile(rb"(?:\0\0)++")

Indices = npt.NDArray[np.uint8]


def region(data: bytes, left: int, top: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3]: that part of the picture, RGB. Raises Rejected `corrupt` where it ends early."""
    layout = bmp.read_layout(data)
    out = np.zeros((height, width), np.uint8)
    first = top if layout.top_down else layout.height - top - height
    _paint(data, layout, out, first, left)
    palette = np.zeros((256, 3), np.uint8)
    entries = len(layout.palette) // layout.entry_bytes
    colours = np.frombuffer(layout.palette, np.uint8, entries * layout.entry_bytes)
    palette[: min(entries, 256)] = colours.reshape(entries, layout.entry_bytes)[:256, 2::-1]
    return palette[out if layout.top_down else out[::-1]]


def _paint(data: bytes, layout: bmp.Layout, out: Indices, first: int, left: int) -> None:
    """Fill `out`, whose rows are those of the file from `first` on, with the columns from `left` on."""
    nibbles = layout.packing == bmp.RLE4
    position, size, x, y = layout.offset, len(data), 0, 0
    for _ in range(MAX_STEPS):
        if y >= layout.height or (y == layout.height - 1 and x >= layout.width):
            return
        if position + 2 > size:
            raise corrupt("the run-length commands of the bmp end before its last row")
        if data[position]:
            found = _RUNS.match(data, position)
            assert found is not None
            x += _paint_runs(found.group(), nibbles, out, (y - first, x - left), layout.width - x)
            position = found.end()
            continue
        escape = data[position + 1]
        if escape == 0:
            found = _LINES.match(data, position)
            assert found is not None
            x, y = 0, y + len(found.group()) // 2
            position = found.end()
        elif escape == 1:
            return
        elif escape == 2:
            if position + 4 > size:
                raise corrupt("the run-length commands of the bmp end before its last row")
            x, y = x + data[position + 2], y + data[position + 3]
            position += 4
        else:
            length = (escape + 1) // 2 if nibbles else escape
            literal = np.frombuffer(data, np.uint8, min(length, size - position - 2), position + 2)
            _place(_unpacked(literal, escape) if nibbles else literal, out, (y - first, x - left))
            x += escape
            position += 2 + length + (length & 1)
    raise corrupt(f"the run-length commands of the bmp are more than {MAX_STEPS}")


def _paint_runs(runs: bytes, nibbles: bool, out: Indices, at: tuple[int, int], space_px: int) -> int:
    """Paint (count, index) pairs into one row; the pixels they cover, which end with the row."""
    pairs = np.frombuffer(runs, np.uint8).reshape(-1, 2)
    ends = np.cumsum(pairs[:, 0], dtype=np.int64)
    covered = int(min(ends[-1], max(space_px, 0)))
    if 0 <= at[0] < len(out) and covered:
        used = int(np.searchsorted(ends, covered)) + 1
        counts = pairs[:used, 0].astype(np.int64)
        row = np.repeat(pairs[:used, 1], counts)
        if nibbles:
            odd = (np.arange(len(row)) - np.repeat(ends[:used] - counts, counts)) % 2
            row = np.where(odd, row & 15, row >> 4).astype(np.uint8)
        _place(row[:covered], out, at)
    return covered


def _unpacked(packed: Indices, count: int) -> Indices:
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]


def _place(indices: Indices, out: Indices, at: tuple[int, int]) -> None:
    """Copy what of `indices`, from row and column `at` on, lies in `out`."""
    row, column = at
    if not 0 <= row < len(out):
        return
    start, end = max(column, 0), min(column + len(indices), out.shape[1])
    if start < end:
        out[row, start:end] = indices[start - column : end - column]
