"""D3 (elsaEU/ELSA_D3, from the hub or from local parquet in its schema) + its real images -> WebDataset shards.

    python -m train.main data d3 hf://elsaEU/ELSA_D3 shards/ --split validation

Rows are taken in blocks, one shard each. A block is finished when its shard stands in manifest.json; a stopped run redoes the
unfinished block, whose downloads are kept in `.staging`, so nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from train.data.download import Downloader, DownloadLimits
from train.data.images import BadImage, DataError, read_header
from train.data.shards import MANIFEST, D3Record, index_shard, write_shard
from train.hub import first_line, quiet_hub
from train.progress import counting

__all__ = ["D3Rows", "DownloadLimits", "build_shards"]

HUB_PREFIX = "hf://"
GENERATORS = range(4)
ROWS_AHEAD = 4  # times `concurrency`; a row with its four images is about 1 MB in memory
_DETAILS = ("model", "width", "height", "num_inference_steps", "filepath")
REQUIRED = (
    "id",
    "original_prompt",
    "positive_prompt",
    "negative_prompt",
    "url",
    *(f"image_gen{k}" for k in GENERATORS),
    *(f"model_gen{k}" for k in GENERATORS),
)
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def build_shards(
    source: str,
    out: Path,
    *,
    split: str = "train",
    records_per_shard: int = 5000,
    limit: int | None = None,
    limits: DownloadLimits | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the shards that are not there yet; returns the manifest. Raises DataError for a wrong source, schema or another run's `out`."""
    limits = limits or DownloadLimits()
    manifest = _manifest(out, {"source": source, "split": split, "records_per_shard": records_per_shard})
    finished = len(manifest["shards"])
    seen = _seen(out, manifest)
    taken = sum(entry["rows"] for entry in manifest["shards"])
    stream = D3Rows(source, split, manifest["position"])
    rows = islice(stream, None if limit is None else max(0, limit - taken))
    for block in range(finished, 10**9):
        chunk = islice(rows, records_per_shard)
        first = next(chunk, None)
        if first is None:
            break
        failures: list[dict[str, str]] = []
        staging = out / ".staging" / f"{block:06d}"
        staging.mkdir(parents=True, exist_ok=True)
        with counting(console, f"rows of shard {block}", records_per_shard) as advance:
            counted = _counted(_chain(first, chunk), advance)
            entry = write_shard(out, block, _records(counted, split, staging, seen, failures, limits))
        _failures_of(out, entry["shard"]).write_text("".join(json.dumps(failure) + "\n" for failure in failures))
        reasons = Counter(failure["reason"].split(":", maxsplit=1)[0] for failure in failures)
        manifest["shards"].append({**entry, "rows": counted.count, "failures": dict(sorted(reasons.items()))})
        manifest["position"] = stream.position()
        _save_manifest(out, manifest)
        shutil.rmtree(staging)
        if console is not None:
            console.print(
                f"{entry['shard']}: {entry['records']} of {counted.count} rows, {sum(reasons.values())} failures {dict(reasons)}", highlight=False
            )
        if counted.count < records_per_shard:
            break
    return _save_manifest(out, manifest)


class D3Rows:
    """D3's rows, image columns as {"bytes", "path"}: streamed from the hub or local parquet, from where `position` says (None = the first).

    Raises DataError for a source that cannot be read or has another schema, also while rows are read.
    """

    def __init__(self, source: str, split: str = "train", position: Mapping[str, Any] | None = None) -> None:
        import datasets  # noqa: PLC0415 - takes seconds, and folders need none of it

        self._source, self._errors = source, (OSError, ValueError, datasets.exceptions.DatasetsError)
        with self._clear():
            if source.startswith(HUB_PREFIX):
                stream = datasets.load_dataset(source.removeprefix(HUB_PREFIX), split=split, streaming=True)
            else:
                path = Path(source)
                files = sorted(str(file) for file in path.rglob("*.parquet")) if path.is_dir() else [str(path)] if path.is_file() else []
                if not files:
                    raise DataError(f"{source} is neither hf://owner/name nor a parquet file nor a folder of them")
                stream = datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
            columns = stream.column_names or list(next(iter(stream), {}))
            if missing := [name for name in REQUIRED if name not in columns]:
                raise DataError(f"{source}: columns {', '.join(missing)} are missing; expected the schema of elsaEU/ELSA_D3")
            for name in [f"image_gen{k}" for k in GENERATORS]:
                stream = stream.cast_column(name, datasets.Image(decode=False))
            if position is not None:
                stream.load_state_dict(dict(position))
        self._stream = stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._clear():
            yield from self._stream

    def position(self) -> dict[str, Any]:
        """Where the next row is, as JSON: a run that goes on from here reads none of the files before it again."""
        return self._stream.state_dict()

    @contextmanager
    def _clear(self) -> Iterator[None]:
        try:
            with quiet_hub():
                yield
        except self._errors as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self._source}: {first_line(error)}") from error


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


def _records(rows: _counted, split: str, staging: Path, seen: set[str], failures: list[dict[str, str]], limits: DownloadLimits) -> Iterator[D3Record]:
    """The records of a block in row order; downloads run ahead of the record that is written, so that a slow link holds up few."""
    known = _read_failures(staging)
    ahead: deque[tuple[str, dict[str, Any], Future[None] | None]] = deque()

    def finish(key: str, row: dict[str, Any], download: Future[None] | None) -> Iterator[D3Record]:
        if download is not None:
            download.result()
        url = str(row["url"])
        if key in known:
            failures.append({"id": key, "url": url, "reason": known[key]})
            return
        fakes, broken = _fakes(row)
        failures.extend({"id": key, "url": url, "reason": f"generated image unreadable: {slot}"} for slot in broken)
        if fakes:
            yield D3Record(key, {"real": (staging / key).read_bytes(), **fakes}, str(row["original_prompt"]), url, _details(row))

    with Downloader(limits) as downloader:
        for row in rows:
            key = f"elsa_v2__{split}__{_UNSAFE.sub('_', str(row['id']))}"
            if key in seen:
                failures.append({"id": key, "url": str(row["url"]), "reason": "duplicate id"})
                continue
            seen.add(key)
            there = (staging / key).exists() or key in known
            ahead.append((key, row, None if there else downloader.submit(str(row["url"]), partial(_stage, staging, key, known))))
            if len(ahead) > ROWS_AHEAD * limits.concurrency:
                yield from finish(*ahead.popleft())
        while ahead:
            yield from finish(*ahead.popleft())


def _stage(staging: Path, key: str, known: dict[str, str], result: bytes | str) -> None:
    if isinstance(result, str):
        known[key] = result
        with (staging / "failed.jsonl").open("a") as file:
            file.write(json.dumps({"id": key, "reason": result}) + "\n")
        return
    partial = staging / f"{key}.partial"
    partial.write_bytes(result)
    partial.replace(staging / key)


def _read_failures(staging: Path) -> dict[str, str]:
    path = staging / "failed.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
    return {entry["id"]: entry["reason"] for entry in entries}


def _fakes(row: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    images: dict[str, bytes] = {}
    broken: list[str] = []
    for k in GENERATORS:
        data = (row[f"image_gen{k}"] or {}).get("bytes")
        try:
            read_header(data or b"")
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
        return {**asked, "position": None, "shards": []}
    manifest: dict[str, Any] = json.loads(path.read_text())
    for name, value in asked.items():
        if manifest[name] != value:
            raise DataError(f"{out} was begun with {name} {manifest[name]!r}, not {value!r}: use the same, or another folder")
    return manifest


def _seen(out: Path, manifest: Mapping[str, Any]) -> set[str]:
    """The ids of every row of the finished shards, written or failed."""
    shards = [entry["shard"] for entry in manifest["shards"]]
    failed = {json.loads(line)["id"] for shard in shards for line in _failures_of(out, shard).read_text().splitlines()}
    return failed | {str(identity) for shard in shards for identity in index_shard(out / shard)[0]}


def _failures_of(out: Path, shard: str) -> Path:
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
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(full, indent=2) + "\n")
    partial.replace(out / MANIFEST)
    return full
