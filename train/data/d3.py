"""D3 (elsaEU/ELSA_D3, from the hub or from local parquet in its schema) + its real images -> WebDataset shards.

    python -m train.main data d3 hf://elsaEU/ELSA_D3 shards/ --split validation

Rows are taken in blocks, one shard each. A block is finished when its shard stands in manifest.json; a stopped run
redoes the unfinished block, whose downloads are kept in `.staging`, so nothing is lost and nothing comes twice. A
failure that may pass (no answer, a busy server) is tried again when its block is redone: by itself in an unfinished
one, with --retry-failed in any.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from train.data.d3_rows import GENERATORS, D3Rows
from train.data.download import Downloader, DownloadLimits, may_pass
from train.data.images import BadImage, DataError, read_header
from train.data.records import Key
from train.data.shards import MANIFEST, D3Record, index_shard, write_shard
from train.progress import counting
from triton_models.files import replacing

__all__ = ["DownloadLimits", "build_shards"]

ROWS_AHEAD = 4  # times `concurrency`; a row with its four images is about 1 MB in memory
_DETAILS = ("model", "width", "height", "num_inference_steps", "filepath")
DUPLICATE, UNREADABLE = "duplicate id", "generated image unreadable"  # failures of a row that are none of its download
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_KEY_CHARACTERS = 80  # with the longest ending below the 100 of a name in a tar


def build_shards(
    source: str,
    out: Path,
    *,
    split: str = "train",
    records_per_shard: int = 5000,
    limit: int | None = None,
    part: tuple[int, int] = (1, 1),
    limits: DownloadLimits | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the shards that are not there yet; returns the manifest. `part`: of the split, see D3Rows. `retry_failed`
    redoes those with failures that may pass.

    Raises DataError for a wrong source, schema or another run's `out`, and when the network seems to be down.
    """
    limits = limits or DownloadLimits()
    asked = {"source": source, "split": split, "records_per_shard": records_per_shard}
    if part != (1, 1):
        asked["part"] = f"{part[0]}/{part[1]}"
    manifest = _manifest(out, asked)
    seen: set[str] = set()
    write = partial(_write_block, out, split, seen, limits, _Unanswered(limits.max_unanswered), console)
    for block, entry in enumerate(manifest["shards"]):
        if retry_failed and any(may_pass(failure["reason"]) for failure in _failures(out, entry["shard"])):
            again = D3Rows(source, split, _position(manifest, block), part)
            _reopen(out, block, entry["shard"])
            manifest["shards"][block] = write(block, islice(again, entry["rows"]), entry["rows"])
            _finish_block(out, block, manifest)
        seen.update(_ids(out, entry["shard"]))
    taken = sum(entry["rows"] for entry in manifest["shards"])
    stream = D3Rows(source, split, _position(manifest, len(manifest["shards"])), part)
    rows = islice(stream, None if limit is None else max(0, limit - taken))
    for block in range(len(manifest["shards"]), 10**9):
        chunk = islice(rows, records_per_shard)
        first = next(chunk, None)
        if first is None:
            break
        entry = write(block, _chain(first, chunk), records_per_shard)
        manifest["shards"].append(entry)
        manifest["positions"].append(stream.position())
        _finish_block(out, block, manifest)
        if entry["rows"] < records_per_shard:
            break
    return _save_manifest(out, manifest)


def _write_block(
    out: Path,
    split: str,
    seen: set[str],
    limits: DownloadLimits,
    unanswered: _Unanswered,
    console: Console | None,
    block: int,
    rows: Iterator[dict[str, Any]],
    expected: int,
) -> dict[str, Any]:
    """Write the shard of a block and the list of its failures; returns the manifest entry."""
    failures: list[dict[str, str]] = []
    staging = _staging(out, block)
    staging.mkdir(parents=True, exist_ok=True)
    with counting(console, f"rows of shard {block}", expected) as advance:
        counted = _counted(rows, advance)
        entry = write_shard(out, block, _records(counted, split, staging, seen, failures, limits, unanswered))
    _failures_path(out, entry["shard"]).write_text("".join(json.dumps(failure) + "\n" for failure in failures))
    reasons = Counter(failure["reason"].split(":", maxsplit=1)[0] for failure in failures)
    if console is not None:
        console.print(
            f"{entry['shard']}: {entry['records']} of {counted.count} rows, {sum(reasons.values())} failures "
            f"{dict(reasons)}",
            highlight=False,
        )
    return {**entry, "rows": counted.count, "failures": dict(sorted(reasons.items()))}


def _finish_block(out: Path, block: int, manifest: dict[str, Any]) -> None:
    _save_manifest(out, manifest)
    shutil.rmtree(_staging(out, block))


def _staging(out: Path, block: int) -> Path:
    return out / ".staging" / f"{block:06d}"


def _position(manifest: Mapping[str, Any], block: int) -> dict[str, Any] | None:
    return manifest["positions"][block - 1] if block else None


def _reopen(out: Path, block: int, shard: str) -> None:
    """Stage what a finished shard has: its real images, and the links that are dead."""
    staging = _staging(out, block)
    staging.mkdir(parents=True, exist_ok=True)
    ids, offsets, sizes, _ = index_shard(out / shard)
    for key, offset, size in zip(ids.tolist(), offsets[:, 0].tolist(), sizes[:, 0].tolist(), strict=True):
        if not (staging / key).exists():
            _stage(staging, key, {}, Key(str(out / shard), offset, size).read())
    for failure in _failures(out, shard):
        if not failure["reason"].startswith((DUPLICATE, UNREADABLE)):
            _stage(staging, failure["id"], {}, failure["reason"])


@dataclass
class _Unanswered:
    """Counts the failures in a row that may pass: beyond `most` of them it is the network, not the links."""

    most: int
    in_a_row: int = 0
    last: str = ""

    def note(self, result: bytes | str) -> None:
        if isinstance(result, str) and may_pass(result):
            self.in_a_row, self.last = self.in_a_row + 1, result
        else:
            self.in_a_row = 0

    def check(self) -> None:
        """Raises DataError if the network seems to be down."""
        if self.in_a_row >= self.most:
            raise DataError(
                f"{self.in_a_row} downloads in a row failed, the last with: {self.last}. The network seems to "
                "be down: once it is up "
                "the same command goes on where it stopped (--give-up-after takes another number)"
            )


class _counted:  # noqa: N801 - used as a function
    """An iterator that knows how many it has given, and tells `advance`."""

    def __init__(self, rows: Iterator[dict[str, Any]], advance: Callable[[int], object]) -> None:
        self._rows, self._advance, self.count = rows, advance, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.count += 1
            self._advance(1)
            yield row


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _records(
    rows: _counted,
    split: str,
    staging: Path,
    seen: set[str],
    failures: list[dict[str, str]],
    limits: DownloadLimits,
    unanswered: _Unanswered,
) -> Iterator[D3Record]:
    """The records of a block in row order; downloads run ahead of the record that is written, so that a slow link holds
    up few.
    """
    known = _read_failures(staging)
    ahead: deque[tuple[str, dict[str, Any], Future[None] | None]] = deque()

    def keep(key: str, result: bytes | str) -> None:
        unanswered.note(result)
        _stage(staging, key, known, result)

    def finish(key: str, row: dict[str, Any], download: Future[None] | None) -> Iterator[D3Record]:
        if download is not None:
            download.result()
            unanswered.check()
        url = str(row["url"])
        if key in known:
            failures.append({"id": key, "url": url, "reason": known[key]})
            return
        fakes, broken = _fakes(row)
        failures.extend({"id": key, "url": url, "reason": f"{UNREADABLE}: {slot}"} for slot in broken)
        if fakes:
            yield D3Record(
                key, {"real": (staging / key).read_bytes(), **fakes}, row["original_prompt"] or "", url, _details(row)
            )

    with Downloader(limits) as downloader:
        for row in rows:
            key = _key(split, str(row["id"]))
            if key in seen:
                failures.append({"id": key, "url": str(row["url"]), "reason": DUPLICATE})
                continue
            seen.add(key)
            there = (staging / key).exists() or key in known
            ahead.append((key, row, None if there else downloader.submit(str(row["url"]), partial(keep, key))))
            if len(ahead) > ROWS_AHEAD * limits.concurrency:
                yield from finish(*ahead.popleft())
        while ahead:
            yield from finish(*ahead.popleft())


def _key(split: str, identity: str) -> str:
    """The name of a record's files: the id as D3 has it where that can be a name, else made one, with a hash that keeps
    it distinct.
    """
    asked = f"elsa_v2__{split}__{identity}"
    name = _UNSAFE.sub("_", asked)
    if name == asked and len(name) <= _KEY_CHARACTERS:
        return name
    digest = hashlib.sha256(asked.encode()).hexdigest()[:12]
    return f"{name[: _KEY_CHARACTERS - 1 - len(digest)]}-{digest}"


def _stage(staging: Path, key: str, known: dict[str, str], result: bytes | str) -> None:
    if isinstance(result, str):
        known[key] = result
        if may_pass(result):
            return  # said of this try only: a block that is redone tries again
        with (staging / "failed.jsonl").open("a") as file:
            file.write(
                "\n" + json.dumps({"id": key, "reason": result}) + "\n"
            )  # on a line of its own, also after one that was cut off
        return
    with replacing(staging / key) as partial:
        partial.write_bytes(result)


def _read_failures(staging: Path) -> dict[str, str]:
    path = staging / "failed.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
    return {entry["id"]: entry["reason"] for entry in entries}


def _fakes(row: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    images: dict[str, bytes] = {}
    broken: list[str] = []
    for k in GENERATORS:
        data: bytes = (row[f"image_gen{k}"] or {}).get("bytes") or b""
        try:
            read_header(data)
            images[f"gen_{k}"] = data
        except BadImage:
            broken.append(f"gen_{k}")
    return images, broken


def _details(row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: row[name] for name in ("positive_prompt", "negative_prompt")}
    return texts | {f"gen_{k}": {name: row.get(f"{name}_gen{k}") for name in _DETAILS} for k in GENERATORS}


def _manifest(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    path = out / MANIFEST
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        return {**asked, "positions": [], "shards": []}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        begun = {name: manifest[name] for name in (*asked, "positions", "shards")}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no whole manifest of data d3 ({error!r}): put it back, or build in another folder"
        ) from error
    for name, value in asked.items():
        if begun[name] != value:
            raise DataError(
                f"{out} was begun with {name} {begun[name]!r}, not {value!r}: use the same, or another folder"
            )
    return manifest


def _ids(out: Path, shard: str) -> set[str]:
    """The ids of every row of a finished shard, written or failed."""
    return {failure["id"] for failure in _failures(out, shard)} | {
        str(identity) for identity in index_shard(out / shard)[0]
    }


def _failures(out: Path, shard: str) -> list[dict[str, str]]:
    path = _failures_path(out, shard)
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): put it back, or build in another folder") from error


def _failures_path(out: Path, shard: str) -> Path:
    return (out / shard).with_suffix(".failures.jsonl")


def _save_manifest(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    entries = manifest["shards"]
    failures: Counter[str] = Counter()
    for entry in entries:
        failures.update(entry["failures"])
    full = {
        **manifest,
        **{name: sum(entry[name] for entry in entries) for name in ("rows", "records", "images", "bytes")},
        "failures": dict(failures),
    }
    with replacing(out / MANIFEST) as partial:
        partial.write_text(json.dumps(full, indent=2) + "\n")
    return full
