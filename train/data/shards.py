"""WebDataset shards of D3 records: one real and up to four fakes each, in their original bytes, with captions and URL.

`shard-000000.tar` is a plain tar that the webdataset library reads: `<id>.real.jpg`, `<id>.gen_0.png` …,
`<id>.caption.txt`, `<id>.url.txt`, `<id>.json`. `shard-000000.index.npz` beside it says where every image lies, so that
any record is one seek away; shards from elsewhere are indexed once by their headers. `manifest.json` has counts and
hashes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.data.images import EXTENSIONS, BadImage, DataError, read_header
from train.data.reading import reading_order
from train.data.records import Key, Labelled, Pair, Problem, held_out, is_odd
from triton_models.files import replacing
from triton_models.weights import FAKE, REAL

MANIFEST = "manifest.json"
HEAD_BYTES = 65536  # has the header of nearly every image
SLOTS = ("real", "gen_0", "gen_1", "gen_2", "gen_3")
# What np.load raises for a file that was cut off or is something else.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError)
_MEMBER = re.compile(r"^(?P<id>[^.]+)\.(?P<slot>real|gen_[0-3])\.[^.]+$")


@dataclass(frozen=True)
class D3Record:
    """One record on its way into a shard: original bytes by slot, and text members."""

    id: str
    images: Mapping[str, bytes]
    caption: str
    url: str
    details: Mapping[str, Any]


def write_shard(folder: Path, number: int, records: Iterable[D3Record]) -> dict[str, Any]:
    """Write shard `number` with its index, atomically; returns its manifest entry."""
    path = folder / f"shard-{number:06d}.tar"
    for leftover in folder.glob(f".{path.name}.*"):
        leftover.unlink()  # of a build that was killed
    ids: list[str] = []
    offsets: list[list[int]] = []
    sizes: list[list[int]] = []
    sides_px: list[list[int]] = []
    with replacing(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            row_offsets, row_sizes, row_sides = ([0] * len(SLOTS) for _ in range(3))
            for slot, data in record.images.items():
                index = SLOTS.index(slot)
                extension, row_sides[index] = _looks(data)
                row_offsets[index] = _add(tar, f"{record.id}.{slot}.{extension}", data)
                row_sizes[index] = len(data)
            _add(tar, f"{record.id}.caption.txt", record.caption.encode())
            _add(tar, f"{record.id}.url.txt", record.url.encode())
            hashes = {slot: hashlib.sha256(data).hexdigest() for slot, data in record.images.items()}
            _add(tar, f"{record.id}.json", json.dumps({**record.details, "sha256": hashes}).encode())
            ids.append(record.id)
            offsets.append(row_offsets)
            sizes.append(row_sizes)
            sides_px.append(row_sides)
    save_index(
        path, ids, offsets, sizes, sides_px
    )  # last: an index older than its shard is made anew, a newer one is believed
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    images = int(np.count_nonzero(np.array(sizes))) if sizes else 0
    return {"shard": path.name, "records": len(ids), "images": images, "bytes": path.stat().st_size, "sha256": digest}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _looks(data: bytes) -> tuple[str, int]:
    """(extension, shorter side in pixels) by the header; 0 pixels without one."""
    try:
        header = read_header(data)
    except BadImage:
        return "img", 0
    return EXTENSIONS.get(header.format, "img"), min(header.width, header.height)


def _index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.npz")


def shards_in(folder: Path) -> list[Path]:
    """The tars of `folder`, and of the parts that `data d3 --part` made in it."""
    return [*sorted(folder.glob("*.tar")), *sorted(folder.glob("part-*/*.tar"))]


def unindexed(folder: Path) -> list[Path]:
    """The shards of `folder` that have no index beside them."""
    return [shard for shard in shards_in(folder) if not _index_path(shard).exists()]


def save_index(
    shard: Path,
    ids: list[str],
    offsets: Sequence[Sequence[int]] | np.ndarray,
    sizes: Sequence[Sequence[int]] | np.ndarray,
    sides_px: Sequence[Sequence[int]] | np.ndarray,
) -> None:
    """Write the index beside `shard`: ids [R], and by slot [R, 5] offsets, sizes in bytes and shorter sides."""
    shape = (-1, len(SLOTS))
    with replacing(_index_path(shard)) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            ids=np.array(ids, dtype=np.str_),
            offsets=np.array(offsets, dtype=np.int64).reshape(shape),
            sizes=np.array(sizes, dtype=np.int64).reshape(shape),
            sides_px=np.array(sides_px, dtype=np.int64).reshape(shape),
        )


def index_shard(shard: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids [R], offsets [R, 5], sizes [R, 5], shorter sides in pixels [R, 5]) of a shard; 0 where there is none.

    From its index or, without a whole one, the headers of the tar and of the images. Raises DataError.
    """
    index = _index_path(shard)
    if index.exists() and index.stat().st_mtime_ns >= shard.stat().st_mtime_ns - 10**9:
        with suppress(*DAMAGED), np.load(index) as arrays:
            return arrays["ids"], arrays["offsets"], arrays["sizes"], arrays["sides_px"]
    rows: dict[str, tuple[list[int], list[int], list[int]]] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                if match := _MEMBER.match(Path(member.name).name):
                    offsets, sizes, sides_px = rows.setdefault(
                        match["id"], ([0] * len(SLOTS), [0] * len(SLOTS), [0] * len(SLOTS))
                    )
                    slot = SLOTS.index(match["slot"])
                    offsets[slot], sizes[slot] = member.offset_data, member.size
                    image = tar.extractfile(member)
                    if image is not None:
                        head = image.read(HEAD_BYTES)
                        sides_px[slot] = _looks(head)[1] or _looks(head + image.read())[1]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: {error}; write or copy the shard again") from error
    if not rows:
        raise DataError(f"{shard}: no members named <id>.real.<ext> or <id>.gen_<0-3>.<ext>")
    ids = list(rows)
    parts = [[row[part] for row in rows.values()] for part in range(3)]
    with suppress(OSError):  # data that may only be read are indexed by every run anew
        save_index(shard, ids, *parts)
    tables = [np.array(part, dtype=np.int64).reshape(-1, len(SLOTS)) for part in parts]
    return np.array(ids, dtype=np.str_), tables[0], tables[1], tables[2]


@dataclass(frozen=True)
class Mixing:
    """How records of shards are mixed: see reading_order."""

    window: int = 1000
    shards_at_once: int = 16
    resample: bool = False


@dataclass
class ShardSource:
    """Records of a folder of shards; only those with a real image and at least one fake."""

    shards: list[str]
    names: np.ndarray  # [R] UTF-8 bytes, a quarter of the memory of text: 2.3 million are 55 MB
    shard_of: np.ndarray  # [R] int32, ascending
    offsets: np.ndarray  # [R, 5] bytes
    sizes: np.ndarray  # [R, 5] bytes, 0 = absent
    problems: dict[str, int]
    mixing: Mixing = field(default_factory=Mixing)
    left_out: list[Problem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> np.ndarray:
        """[R] text."""
        return np.char.decode(self.names, "utf-8")

    def id_of(self, record: int) -> str:
        return bytes(self.names[record]).decode()

    @property
    def images(self) -> int:
        """How many `labelled` would list."""
        return int(np.count_nonzero(self.sizes))

    @property
    def generators(self) -> list[str]:
        return [name for slot, name in enumerate(SLOTS) if slot and self.sizes[:, slot].any()]

    def key(self, record: int, slot: int) -> Key:
        return Key(self.shards[self.shard_of[record]], int(self.offsets[record, slot]), int(self.sizes[record, slot]))

    def labelled(self) -> list[Labelled]:
        return [
            Labelled(f"{self.id_of(record)}.{name}", self.key(record, slot), REAL if slot == 0 else FAKE, name)
            for record in range(len(self))
            for slot, name in enumerate(SLOTS)
            if self.sizes[record, slot]
        ]

    def order(self, epoch: int, seed: int) -> ShardOrder:
        """As train/data/reading.py reads shards, with one random fake of each record's."""
        rng = np.random.default_rng([seed, epoch])
        counts = np.bincount(self.shard_of, minlength=len(self.shards))
        records = reading_order(
            counts, rng, window=self.mixing.window, at_once=self.mixing.shards_at_once, resample=self.mixing.resample
        )
        present = self.sizes[:, 1:] > 0
        pick = (rng.random(len(self)) * present.sum(axis=1)).astype(np.int8)
        slots = 1 + (np.cumsum(present, axis=1, dtype=np.int8) > pick[:, None]).argmax(axis=1)
        return ShardOrder(self, records.astype(np.int32), slots.astype(np.int8))

    def split(self, fraction: float) -> tuple[ShardSource, ShardSource]:
        held = np.array([held_out(self.id_of(record), fraction) for record in range(len(self))], dtype=bool)
        return self._part(~held, self.left_out), self._part(held, [])

    def _part(self, kept: np.ndarray, left_out: list[Problem]) -> ShardSource:
        problems = dict(Counter(problem.kind for problem in left_out))
        return ShardSource(
            self.shards,
            self.names[kept],
            self.shard_of[kept],
            self.offsets[kept],
            self.sizes[kept],
            problems,
            self.mixing,
            left_out,
        )


@dataclass(frozen=True)
class ShardOrder:
    """See ShardSource.order: `records` in order, and for every record the slot of its fake."""

    source: ShardSource
    records: np.ndarray
    fake_slot: np.ndarray

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pair:
        record = int(self.records[index])
        return Pair(
            self.source.id_of(record),
            self.source.key(record, 0),
            self.source.key(record, int(self.fake_slot[record])),
        )


def open_shards(folder: str | Path, mixing: Mixing | None = None, min_side_px: int = 1) -> ShardSource:
    """All shards of `folder` (*.tar, and those of its part-*), but for images whose shorter side is below `min_side_px`
    or whose header cannot be read.

    Raises DataError if there is none or nothing in them can be paired.
    """
    odd: list[Path] = []
    paths: list[Path] = []
    for path in shards_in(Path(folder)):
        (odd if is_odd(path) else paths).append(path)
    if not paths:
        raise DataError(f"{folder} holds no *.tar shards")
    parts: list[tuple[np.ndarray, ...]] = []
    unusable: list[Problem] = []
    unpaired: list[Problem] = []
    for number, path in enumerate(paths):
        ids, offsets, sizes, sides_px = index_shard(path)
        small = (sizes > 0) & (sides_px < min_side_px)
        for record, slot in np.argwhere(small):
            side = int(sides_px[record, slot])
            tiny = ("tiny", f"the shorter side is {side}, below {min_side_px}")
            told = tiny if side else ("corrupt", "no image header")
            unusable.append(Problem(f"{path}/{ids[record]}.{SLOTS[slot]}", *told))
        sizes = np.where(small, 0, sizes)
        whole = (sizes[:, 0] > 0) & (sizes[:, 1:] > 0).any(axis=1)
        for record in np.flatnonzero(~whole):
            why = "no fake" if sizes[record, 0] else "no real image"
            unpaired.append(Problem(f"{path}/{ids[record]}", "incomplete", why))
        shard_of = np.full(int(whole.sum()), number, dtype=np.int32)
        parts.append((np.char.encode(ids[whole], "utf-8"), shard_of, offsets[whole], sizes[whole]))
    left_out = [Problem(str(path), "stray", "no regular file") for path in odd] + unusable + unpaired
    names, shards, offsets, sizes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not len(names):
        raise DataError(f"{folder}: no record has a real image and a fake")
    problems = dict(Counter(problem.kind for problem in left_out))
    tars = [str(path) for path in paths]
    return ShardSource(tars, names, shards, offsets, sizes, problems, mixing or Mixing(), left_out)
