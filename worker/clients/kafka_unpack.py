"""The compressed part of a record batch as a stream that is never larger in memory than what is asked for.

A batch of 40 kB may unpack to 40 MB or to 40 GB. The client library unpacks all of it at once; here a reader takes as
much as the next record needs, skips what is too long to keep, and gives up on a batch beyond `MAX_UNPACKED_BYTES`.

Use:  stream = Unpacked(codec, memoryview(packed)); stream.begin(); stream.read(10); stream.end()
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator

import lz4.frame
import snappy
import zstandard

MAX_UNPACKED_BYTES = 1024 * 1024 * 1024  # of one batch: about three seconds of gzip
_CHUNK_BYTES = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_XERIAL_MAGIC = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16
# A block of snappy unpacks as a whole. Xerial's streams are made of blocks of 32 KiB, others are one block.
_MAX_SNAPPY_BYTES = 128 * 1024 * 1024
_MAX_VARINT_BYTES = 10


class Broken(ValueError):
    """The bytes are not what they say they are; the message says how."""


class Unpacked:
    """Sequential reads from the records of one batch. `codec`: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.

    `left` is how much may be read before the record that was begun ends. Every method raises Broken where the bytes
    end too early, cannot be unpacked, or unpack to too much.
    """

    def __init__(self, codec: int, data: memoryview) -> None:
        self._chunks: Iterator[bytes | memoryview] = _CODECS.get(codec, _unknown)(data)
        self._chunk = memoryview(b"")
        self._unpacked_bytes = 0
        self.left = MAX_UNPACKED_BYTES

    def begin(self) -> int:
        """The length of the next record; reads stay inside of it until `end`."""
        self.left = _MAX_VARINT_BYTES
        length = self.varint()
        if length < 0:
            raise Broken(f"a record of {length} bytes")
        self.left = length
        return length

    def end(self) -> None:
        """Go to where the record ends, whatever has been read of it."""
        self.skip(self.left)

    def read(self, size: int) -> memoryview:
        """Exactly `size` bytes; without a copy where they stand together."""
        self._take(size)
        if size <= len(self._chunk):
            taken, self._chunk = self._chunk[:size], self._chunk[size:]
            return taken
        whole = bytearray(self._chunk)
        self._chunk = memoryview(b"")
        while len(whole) < size:
            self._next()
            missing = size - len(whole)
            whole += self._chunk[:missing]
            self._chunk = self._chunk[missing:]
        return memoryview(whole)

    def skip(self, size: int) -> str:
        """Pass over `size` bytes. Returns their SHA-256 in hex."""
        self._take(size)
        digest = hashlib.sha256()
        while size:
            if not self._chunk:
                self._next()
            passed, self._chunk = self._chunk[:size], self._chunk[size:]
            digest.update(passed)
            size -= len(passed)
        return digest.hexdigest()

    def varint(self) -> int:
        """A zigzag varint of up to 64 bits, the protocol's integer."""
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self.read(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
        raise Broken("a length of more than 64 bits")

    def _take(self, size: int) -> None:
        if not 0 <= size <= self.left:
            raise Broken(f"a field of {size} bytes in a record with {self.left} left")
        self.left -= size

    def _next(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except Broken:
            raise
        # zlib.error, RuntimeError (lz4), ZstdError, snappy's own: what they raise for bytes that are not theirs.
        except Exception as error:
            raise Broken(f"its records cannot be unpacked ({type(error).__name__}: {error})"[:300]) from error
        if chunk is None:
            raise Broken("it ends before its last record does")
        self._unpacked_bytes += len(chunk)
        if self._unpacked_bytes > MAX_UNPACKED_BYTES:
            raise Broken(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        self._chunk = memoryview(chunk)


def _plain(data: memoryview) -> Iterator[memoryview]:
    yield data


def _gzip(data: memoryview) -> Iterator[bytes]:
    """All members; what stands behind the last is ignored, as Java's reader does."""
    rest: bytes | memoryview = data
    while bytes(rest[:2]) == _GZIP_MAGIC:
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof:
            chunk = unpacker.decompress(rest, _CHUNK_BYTES)
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if chunk:
                yield chunk
            elif not rest and not unpacker.eof:
                return
    if rest is data:
        raise Broken("it is no gzip")


def _snappy(data: memoryview) -> Iterator[bytes]:
    if bytes(data[: len(_XERIAL_MAGIC)]) != _XERIAL_MAGIC:
        yield _snappy_block(data)
        return
    at = _XERIAL_HEADER_BYTES
    while at + 4 <= len(data):
        (size,) = struct.unpack_from(">i", data, at)
        if size < 0 or at + 4 + size > len(data):
            raise Broken("a block of snappy that is longer than its batch")
        yield _snappy_block(data[at + 4 : at + 4 + size])
        at += 4 + size


def _snappy_block(block: memoryview) -> bytes:
    """The size stands in front (little-endian base 128); it is looked at before anything is unpacked."""
    size = 0
    for index, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            break
    if size > _MAX_SNAPPY_BYTES:
        raise Broken(f"a block of snappy that unpacks to {size} bytes")
    unpacked: bytes = snappy.uncompress(block.tobytes())
    return unpacked


def _lz4(data: memoryview) -> Iterator[bytes]:
    rest: bytes | memoryview = data
    while len(rest):
        unpacker = lz4.frame.LZ4FrameDecompressor()
        while not unpacker.eof:
            chunk = unpacker.decompress(rest, max_length=_CHUNK_BYTES)
            rest = b""  # it keeps what it has not used
            if chunk:
                yield chunk
            elif not unpacker.eof:
                return
        rest = unpacker.unused_data or b""


def _zstd(data: memoryview) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while chunk := reader.read(_CHUNK_BYTES):
            yield chunk


def _unknown(_data: memoryview) -> Iterator[bytes]:
    raise Broken("its records are packed with a codec that does not exist")


_CODECS: dict[int, Callable[[memoryview], Iterator[bytes | memoryview]]] = {
    0: _plain,
    1: _gzip,
    2: _snappy,
    3: _lz4,
    4: _zstd,
}
