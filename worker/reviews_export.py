"""Reviewed images as folders that training reads: `real/GROUP/…`, `fake/GROUP/…` and `manifest.jsonl`.

With a share held out there are two such folders, `fit/` and `held-out/`: near duplicates and copies are on one side,
the same side in every export, so that what a model was fitted on is never what it is measured on.

A line of the manifest is the latest review of a verdict as JSON, with `path` below the folder, `weight` (how many
verdicts it stands for) and `group`. Copies of the same bytes are one file. Golden items, images that people are unsure
of or still contest, and those whose bytes are gone are left out and counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from worker.clients.redis import Store
from worker.errors import NotFound, SettingsError
from worker.explain.gone import Gone
from worker.explain.origin import read_again
from worker.query import read_stored
from worker.review import Review
from worker.reviews import Case, cases
from worker.settings import Settings

MANIFEST = "manifest.jsonl"
FIT, HELD_OUT = "fit", "held-out"
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif", "gif": ".gif"}


def export(
    settings: Settings,
    reviews: Sequence[Review],
    folder: Path,
    report: Callable[[str], None] = lambda _: None,
    held_out: float = 0.0,
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
    sides = [folder / FIT, folder / HELD_OUT] if held_out else [folder]
    found = cases(reviews)
    groups = groups_of(found)
    try:
        with contextlib.ExitStack() as stack:
            manifests = {}
            for side in sides:
                side.mkdir(exist_ok=True)
                manifests[side] = stack.enter_context((side / MANIFEST).open("w", encoding="utf-8"))
            for case in found:
                if case.is_open or case.final.decision == "unsure":
                    counts["contested" if case.is_open else "unsure"] += 1
                    continue
                group = groups[case.final.sha256]
                side = sides[held_out > 0 and _drawn(group) < held_out]
                path = _written(settings, store, case.final, side, written)
                if isinstance(path, str):
                    counts["gone"] += 1
                    report(f"{case.final.image_id}: {path}")
                    continue
                counts[case.final.decision] += 1
                manifests[side].write(_line(case, path.relative_to(side), group))
    finally:
        store.close()
    return +counts


def _line(case: Case, path: Path, group: str) -> str:
    """Of the manifest."""
    line = json.loads(case.final.to_json()) | {
        "path": path.as_posix(),
        "queue": case.first.queue,
        "weight": case.weight,
        "group": group,
        "opinions": len(case.reviews),
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def groups_of(found: Iterable[Case]) -> dict[str, str]:
    """By hash of the bytes, a name that near duplicates share, and groups that have the same bytes among theirs. It is
    the least of those that belong together, whatever order the reviews came in.
    """
    first: dict[str, str] = {}

    def name_of(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    hashes = set()
    for case in found:
        for review in case.reviews:
            hashes.add(review.sha256)
            one, other = name_of(review.sha256), name_of(str(review.group or review.sha256))
            first[max(one, other)] = min(one, other)
    return {sha256: name_of(sha256) for sha256 in hashes}


def _drawn(group: str) -> float:
    """A number in [0, 1) that is the same for a group in every export."""
    return int.from_bytes(hashlib.sha256(f"held out\n{group}".encode()).digest()[:6], "big") / 2**48


def _written(settings: Settings, store: Store, review: Review, folder: Path, written: dict[str, Path]) -> Path | str:
    """Where the image stands now, or why it does not."""
    if (known := written.get(review.sha256)) is not None:
        same = known.relative_to(folder).parts[0] == review.decision
        return known if same else "the same bytes were decided otherwise under another id"
    stored = store.verdict(review.image_id)
    if not stored.get("json"):
        return "its verdict is not in Redis any more, so nothing says where its bytes are"
    try:
        verdict = read_stored(stored["json"], review.image_id)
    except NotFound as none:
        return str(none)
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
