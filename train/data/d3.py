"""D3 (elsaEU/ELSA_D3, from the hub or from local parquet in its schema) + its real images -> WebDataset shards.

    python -m train.main data d3 hf://elsaEU/ELSA_D3 shards/ --split validation

Rows are taken in blocks, one shard each. A block is finished when its shard stands in manifest.json; a stopped run redoes the
unfinished block, whose downloads are kept in `.staging`, so nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from train.data.download import DownloadLimits, download_all
from train.data.images import BadImage, DataError, read_header
from train.data.shards import MANIFEST, D3Record, index_shard, write_shard

__all__ = ["DownloadLimits", "build_shards", "read_rows"]

HUB_PREFIX = "hf://"
GENERATORS = range(4)
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
    seen = {str(identity) for entry in manifest["shards"] for identity in index_shard(out / entry["shard"])[0]}
    taken = sum(entry["rows"] for entry in manifest["shards"])
    rows = islice(read_rows(source, split, skip=taken), None if limit is None else max(0, limit - taken))
    for block in range(finished, 10**9):
        chunk = islice(rows, records_per_shard)
        first = next(chunk, None)
        if first is None:
            break
        failures: list[dict[str, str]] = []
        staging = out / ".staging" / f"{block:06d}"
        staging.mkdir(parents=True, exist_ok=True)
        counted = _counted(_chain(first, chunk))
        entry = write_shard(out, block, _records(counted, split, staging, seen, failures, limits))
        (out / f"shard-{block:06d}.failures.jsonl").write_text("".join(json.dumps(failure) + "\n" for failure in failures))
        reasons = Counter(failure["reason"].split(":", maxsplit=1)[0] for failure in failures)
        manifest["shards"].append({**entry, "rows": counted.count, "failures": dict(sorted(reasons.items()))})
        _save_manifest(out, manifest)
        shutil.rmtree(staging)
        if console is not None:
            console.print(
                f"{entry['shard']}: {entry['records']} of {counted.count} rows, {sum(reasons.values())} failures {dict(reasons)}", highlight=False
            )
        if counted.count < records_per_shard:
            break
    return _save_manifest(out, manifest)


def read_rows(source: str, split: str = "train", skip: int = 0) -> Iterator[dict[str, Any]]:
    """D3's rows from `skip` on, image columns as {"bytes", "path"}: streamed from the hub or local parquet. Raises DataError."""
    import datasets  # noqa: PLC0415 - takes seconds, and folders need none of it

    try:
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
        yield from stream.skip(skip)
    except (OSError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: {str(error).splitlines()[0]}") from error


class _counted:  # noqa: N801 - used as a function
    """An iterator that knows how many it has given."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows, self.count = rows, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            self.count += 1
            yield row


def _chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _records(rows: _counted, split: str, staging: Path, seen: set[str], failures: list[dict[str, str]], limits: DownloadLimits) -> Iterator[D3Record]:
    """The records of a block in row order, as many downloads at a time as the limits say."""
    known = _read_failures(staging)
    waiting = iter(rows)
    while group := list(islice(waiting, limits.concurrency)):
        keyed = [(f"elsa_v2__{split}__{_UNSAFE.sub('_', str(row['id']))}", row) for row in group]
        missing = [(key, row) for key, row in keyed if not (staging / key).exists() and key not in known]
        results = asyncio.run(download_all([str(row["url"]) for _, row in missing], limits))
        for (key, _), result in zip(missing, results, strict=True):
            _stage(staging, key, result, known)
        for key, row in keyed:
            if key in seen:
                failures.append({"id": key, "url": str(row["url"]), "reason": "duplicate id"})
                continue
            seen.add(key)
            if key in known:
                failures.append({"id": key, "url": str(row["url"]), "reason": known[key]})
                continue
            fakes, broken = _fakes(row)
            failures += [{"id": key, "url": str(row["url"]), "reason": f"generated image unreadable: {slot}"} for slot in broken]
            if fakes:
                yield D3Record(key, {"real": (staging / key).read_bytes(), **fakes}, str(row["original_prompt"]), str(row["url"]), _details(row))


def _stage(staging: Path, key: str, result: bytes | str, known: dict[str, str]) -> None:
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
        return {**asked, "shards": []}
    manifest: dict[str, Any] = json.loads(path.read_text())
    for name, value in asked.items():
        if manifest[name] != value:
            raise DataError(f"{out} was begun with {name} {manifest[name]!r}, not {value!r}: use the same, or another folder")
    return manifest


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
