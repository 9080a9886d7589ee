"""A folder of images as a data set: `real/…` and `fake/<generator>/…`, or D3's test layout
`{augm,no_augm}/{real,gen_0,…}/`.

Every file is opened and decoded once: corrupt, tiny and duplicate ones are named and counted, never dropped in silence,
and so is what lies where nothing is looked for. Links are followed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from train.data.images import BadImage, DataError, decode_image
from train.data.records import Key, Labelled, Pair, Problem, held_out, is_odd, photograph, shuffled
from train.progress import counting
from triton_models.weights import FAKE, REAL

# Files that accompany images; everything else that is no image is named.
SIDECARS = frozenset({".txt", ".json", ".csv", ".md", ".jsonl", ".html"})
GROUPS = ("augm", "no_augm")


@dataclass
class FolderSource:
    """Labelled files. Reals and fakes are shuffled apart and paired; an epoch is as long as the larger class."""

    images: list[Labelled]
    problems: dict[str, int]
    left_out: list[Problem] = field(default_factory=list)

    def labelled(self) -> list[Labelled]:
        return self.images

    def order(self, epoch: int, seed: int) -> FolderOrder:
        """The pairs of `epoch`. Raises DataError if a class is empty."""
        reals = [image for image in self.images if image.label == REAL]
        fakes = [image for image in self.images if image.label == FAKE]
        if not reals or not fakes:
            raise DataError(
                f"{len(reals)} real and {len(fakes)} generated images: both are needed (real/…, fake/<generator>/…)"
            )
        rng = np.random.default_rng([seed, epoch])
        length = max(len(reals), len(fakes))
        return FolderOrder(reals, fakes, shuffled(len(reals), length, rng), shuffled(len(fakes), length, rng))

    def split(self, fraction: float) -> tuple[FolderSource, FolderSource]:
        held = [held_out(photograph(image), fraction) for image in self.images]
        parts = ([image for image, out in zip(self.images, held, strict=True) if out == side] for side in (False, True))
        kept, apart = parts
        return FolderSource(kept, self.problems, self.left_out), FolderSource(apart, {})


@dataclass(frozen=True)
class FolderOrder:
    """See FolderSource.order."""

    reals: Sequence[Labelled]
    fakes: Sequence[Labelled]
    real_order: np.ndarray
    fake_order: np.ndarray

    def __len__(self) -> int:
        return len(self.real_order)

    def __getitem__(self, index: int) -> Pair:
        real, fake = self.reals[self.real_order[index]], self.fakes[self.fake_order[index]]
        return Pair(f"{real.id}+{fake.id}", real.key, fake.key)


def scan_folder(
    folder: str | Path, min_side_px: int = 1, threads: int = 4, *, console: Console | None = None
) -> tuple[FolderSource, list[Problem]]:
    """Every image below `folder`, and every file left out. Ids are the SHA-256 of the bytes.

    Raises DataError if the layout is not one of the two.
    """
    candidates, problems = list_folder(Path(folder))
    checked: list[Labelled | Problem] = []
    with ThreadPoolExecutor(threads) as pool, counting(console, f"looking at {folder}", len(candidates)) as advance:
        for result in pool.map(lambda image: _check(image, min_side_px), candidates):
            checked.append(result)
            advance(1)
    problems += [result for result in checked if isinstance(result, Problem)]
    images = [result for result in checked if isinstance(result, Labelled)]
    labels: dict[str, set[int]] = {}
    for image in images:
        labels.setdefault(f"{image.group}/{image.id}", set()).add(image.label)
    kept: list[Labelled] = []
    seen: dict[str, str] = {}
    for image in images:
        content = f"{image.group}/{image.id}"
        if len(labels[content]) > 1:
            problems.append(
                Problem(image.key.path, "conflict", "the same bytes are among the real and the generated images")
            )
        elif content in seen:
            problems.append(Problem(image.key.path, "duplicate", f"same bytes as {seen[content]}"))
        else:
            seen[content] = image.key.path
            kept.append(image)
    return FolderSource(kept, dict(Counter(problem.kind for problem in problems)), problems), problems


def list_folder(folder: Path) -> tuple[list[Labelled], list[Problem]]:
    """Every file that should be an image, sorted by path, id not yet set; and what lies beside the layout. Raises
    DataError for another layout.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    groups = {name: folder / name for name in GROUPS if (folder / name / "real").is_dir()}
    images: list[Labelled] = []
    strays = (
        [
            stray
            for child in _children(folder)
            if child.name not in groups
            for stray in _strays(child, " and ".join(groups))
        ]
        if groups
        else []
    )
    for group, root in (groups or {"": folder}).items():
        real, fake = root / "real", root / "fake"
        if not real.is_dir():
            raise DataError(
                f"{folder} has no real/: expected real/… and fake/<generator>/…, or {{augm,no_augm}}/{{real,gen_0,…}}/"
            )
        images += [Labelled("", Key(str(path)), REAL, _below(path, real) or "real", group) for path in _files(real)]
        others = [child for child in _children(root) if child != real]
        if fake.is_dir():
            images += [Labelled("", Key(str(path)), FAKE, _below(path, fake) or "fake", group) for path in _files(fake)]
            strays += [stray for child in others if child != fake for stray in _strays(child, "real and fake")]
        else:
            images += [
                Labelled("", Key(str(path)), FAKE, child.name, group)
                for child in others
                if child.is_dir()
                for path in _files(child)
            ]
            strays += [
                stray for child in others if not child.is_dir() for stray in _strays(child, "the folders of images")
            ]
    return images, strays


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _strays(path: Path, expected: str) -> list[Problem]:
    """`path`, if it holds what may be images, as a problem."""
    if path.is_dir():
        count = len(_files(path))
        return [Problem(str(path), "stray", f"beside {expected}, so not looked at (files: {count})")] if count else []
    return [Problem(str(path), "stray", f"beside {expected}, so not looked at")] if _may_be_image(path) else []


def _files(folder: Path) -> list[Path]:
    """All that may be images below `folder`, sorted. Links are followed, but never to a folder that they lie in. Raises
    OSError.
    """
    around = {parent.resolve() for parent in (folder, *folder.parents)} | {*folder.resolve().parents}
    found: list[Path] = []
    for path in folder.iterdir():
        if not path.is_dir():
            found += [path] if _may_be_image(path) else []
        elif path.resolve() not in around:
            found += _files(path)
    return sorted(found)


def _may_be_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() not in SIDECARS


def _below(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _check(image: Labelled, min_side_px: int) -> Labelled | Problem:
    if is_odd(Path(image.key.path)):
        return Problem(image.key.path, "stray", "no regular file")
    try:
        data = image.key.read()
        pixels = decode_image(data)
    except (OSError, BadImage) as error:
        return Problem(image.key.path, "corrupt", str(error))
    if min(pixels.size) < min_side_px:
        return Problem(
            image.key.path, "tiny", f"{pixels.width}x{pixels.height}, the shorter side is below {min_side_px}"
        )
    return replace(image, id=hashlib.sha256(data).hexdigest())
