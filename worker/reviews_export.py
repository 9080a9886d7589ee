"""Reviewed images as folders that training reads: `real/GROUP/…`, `fake/GROUP/…` and `manifest.jsonl`.

A line of the manifest is the latest review of a verdict as JSON, with `path` below the folder, `weight` (how many
verdicts it stands for) and `group`. Copies of the same bytes are one file. Golden items, images that people are unsure
of or still contest, and those whose bytes are gone are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.clients.redis import Store
from worker.contract import Verdict
from worker.errors import SettingsError
from worker.explain.gone import Gone
from worker.explain.origin import read_again
from worker.review import Review
from worker.reviews import cases
from worker.settings import Settings

MANIFEST = "manifest.jsonl"
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif", "gif": ".gif"}


def export(
    settings: Settings, reviews: Sequence[Review], folder: Path, report: Callable[[str], None] = lambda _: None
) -> Counter[str]:
    """Counts of what was written (`real`, `fake`) and left out, by reason.

    Raises SettingsError where the folder is not empty or cannot be written, Unavailable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SettingsError([f"{folder} is not empty; name a new folder"])
    except OSError as error:
        raise SettingsError([f"{folder}: {error.strerror or error}"]) from None
    counts = Counter(golden=sum(one.golden for one in reviews))
    store = Store(settings.redis)
    written: dict[str, Path] = {}
    try:
        with (folder / MANIFEST).open("w", encoding="utf-8") as manifest:
            for case in cases(reviews):
                if case.is_open or case.final.decision == "unsure":
                    counts["contested" if case.is_open else "unsure"] += 1
                    continue
                path = _written(settings, store, case.final, folder, written)
                if isinstance(path, str):
                    counts["gone"] += 1
                    report(f"{case.final.image_id}: {path}")
                    continue
                counts[case.final.decision] += 1
                line = json.loads(case.final.to_json()) | {
                    "path": path.relative_to(folder).as_posix(),
                    "queue": case.first.queue,
                    "weight": case.weight,
                    "group": group_of(case.final),
                    "opinions": len(case.reviews),
                }
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
    finally:
        store.close()
    return +counts


def group_of(review: Review) -> str:
    """The same for images that are not to be on both sides of a split: near duplicates, copies of the same bytes."""
    return str(review.group or review.sha256[:16])


def _written(settings: Settings, store: Store, review: Review, folder: Path, written: dict[str, Path]) -> Path | str:
    """Where the image stands now, or why it does not."""
    if (known := written.get(review.sha256)) is not None:
        same = known.relative_to(folder).parts[0] == review.decision
        return known if same else "the same bytes were decided otherwise under another id"
    stored = store.verdict(review.image_id)
    if not stored.get("json"):
        return "its verdict is not in Redis any more, so nothing says where its bytes are"
    verdict = Verdict.model_validate_json(stored["json"])
    if verdict.sha256 != review.sha256:
        return "its id has been judged on other bytes since"
    try:
        data = read_again(settings, verdict.origin, review.sha256)
    except Gone as gone:
        return str(gone)
    assert hashlib.sha256(data).hexdigest() == review.sha256
    queue = re.sub(r"[^a-z0-9_-]", "_", review.queue)
    path = folder / review.decision / queue / f"{review.sha256}{_SUFFIXES.get(verdict.image.format, '')}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    written[review.sha256] = path
    return path
