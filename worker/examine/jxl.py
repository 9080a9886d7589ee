"""JPEG XL's size and orientation (ISO 18181-1, annex A), read bit by bit: its decoder tells a size once all is decoded.

The orientation is set to none in place, as no format's is applied.
"""

from __future__ import annotations

from worker.examine.boxes import inside
from worker.examine.picture import Picture, corrupt

_CODESTREAM, _CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
STARTS = (_CODESTREAM, _CONTAINER)
_SIZE_BITS = (9, 13, 18, 30)
# Width to height; none for a width of its own.
_RATIOS = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_MAX_HEADER_BYTES = 32


class _Bits:
    """Unsigned numbers, the least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self.position = 0

    def take(self, count: int) -> int:
        value = self._value >> self.position & ((1 << count) - 1)
        self.position += count
        return value


def read(data: bytes) -> Picture:
    """Raises Rejected `corrupt`."""
    start = _start(data)
    bits = _Bits(data[start + 2 : start + 2 + _MAX_HEADER_BYTES])
    width, height = _size(bits)
    picture = data
    if not bits.take(1) and bits.take(1):  # not all is as usual, and there are further fields: the first turns
        picture = _without_bits(data, 8 * (start + 2) + bits.position, 3)
    return Picture("jxl", "JXL", width, height, picture, bits=16)


def _start(data: bytes) -> int:
    if data.startswith(_CODESTREAM):
        return 0
    for kind, skip in ((b"jxlc", 0), (b"jxlp", 4)):
        for first, _ in inside(data, kind, 0, len(data), skip):
            if data[first : first + 2] == _CODESTREAM:
                return first
    raise corrupt("the jxl header cannot be read")


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = _side(bits, small)
    over, under = _RATIOS[bits.take(3)]
    width = height * over // under if under else _side(bits, small)
    return width, height


def _side(bits: _Bits, small: int) -> int:
    return 8 * (1 + bits.take(5)) if small else 1 + bits.take(_SIZE_BITS[bits.take(2)])


def _without_bits(data: bytes, position: int, count: int) -> bytes:
    changed = bytearray(data)
    for bit in range(position, min(position + count, 8 * len(data))):
        changed[bit // 8] &= ~(1 << bit % 8)
    return bytes(changed)
