"""GIF's blocks (GIF89a): the screen and its first picture.

Junk between blocks is crossed in one search, and so is none of a decoder's time. An ordinary file goes to Pillow as it
is; one with junk, or with more than a little before its first picture, without what is no picture.
"""

from __future__ import annotations

import re
import struct

from worker.examine.picture import Picture, corrupt

# Blocks of at most 255 bytes each; walking over so many takes 0.1 s, and full ones are more than the limit on bytes.
MAX_BLOCKS = 1_000_000
_SMALL_BYTES = 65_536
_CONTROL = b"\xf9"
_JUNK = re.compile(rb"[^\x21\x2c\x3b]*+")


def read(data: bytes) -> Picture:
    """The screen, or the first picture where that reaches further. Raises Rejected `corrupt`."""
    if len(data) < 13:
        raise corrupt("the gif header cannot be read")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    head = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    position, control, plain, blocks = _to_picture(data, head, 0)
    if blocks >= MAX_BLOCKS:
        raise corrupt(f"a gif of more than {MAX_BLOCKS} blocks before its first picture")
    if position + 10 > len(data):
        raise corrupt("a gif without a picture")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
    width, height = max(width, left + frame_width), max(height, top + frame_height)
    if not width or not height:
        raise corrupt(f"the gif header says {width} x {height} pixels")
    kept = data
    if not plain or position - head > _SMALL_BYTES:
        kept = data[:head] + control + data[position:]
    return Picture("gif", "GIF", width, height, kept, frames=_frames(data, position, blocks))


def _to_picture(data: bytes, position: int, blocks: int) -> tuple[int, bytes, bool, int]:
    """Where the next picture stands (the file's end where none does), the control block before it, whether nothing but
    blocks stands between, and the blocks walked over so far.
    """
    control, plain = b"", True
    while blocks < MAX_BLOCKS:
        junk = _JUNK.match(data, position)
        if junk is None or junk.end() == len(data):
            break
        plain = plain and not junk.group()
        position = junk.end()
        if data[position] == 0x2C:
            return position, control, plain, blocks
        if data[position] == 0x3B:
            break
        start, length = position, data[position + 2] if position + 2 < len(data) else 0
        position, blocks = _over_blocks(data, position + 2, blocks + 1)
        if data[start + 1 : start + 2] == _CONTROL:
            # Pillow reads four bytes of it, whatever its length says.
            control = data[start : start + 3 + length] + b"\0" if length >= 4 else b""
            plain = plain and length >= 4
    return len(data), control, plain, blocks


def _over_blocks(data: bytes, position: int, blocks: int) -> tuple[int, int]:
    size = len(data)
    while position < size and data[position] and blocks < MAX_BLOCKS:
        position += 1 + data[position]
        blocks += 1
    return position + 1, blocks


def _frames(data: bytes, position: int, blocks: int) -> int:
    """How many pictures there are, as far as the bound on blocks reaches."""
    frames = 0
    while position + 10 <= len(data) and blocks < MAX_BLOCKS:
        frames += 1
        flags = data[position + 9]
        position += 10 + (3 << (flags & 7) + 1 if flags & 0x80 else 0) + 1
        position, blocks = _over_blocks(data, position, blocks)
        position, _, _, blocks = _to_picture(data, position, blocks)
    return max(frames, 1)
