"""Opens whatever a path is: a folder of images, a folder of shards."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from train.data.folder import FolderSource, scan_folder
from train.data.images import DataError
from train.data.records import Labelled, Source
from train.data.shards import Mixing, ShardSource, open_shards, shards_in
from triton_models.weights import FAKE, REAL

SHOWN = 20


def open_source(
    path: str | Path, *, min_side_px: int = 1, mixing: Mixing | None = None, console: Console | None = None
) -> Source:
    """The data set at `path`; what is left out is named on `console`. Raises DataError if it is neither folder nor
    shards.
    """
    if not str(path):
        raise DataError("no data: set data.source to a folder (real/…, fake/<generator>/…) or a folder of shards")
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no folder: data.source names a folder of images or of *.tar shards")
    source: ShardSource | FolderSource
    if shards_in(path):
        source = open_shards(path, mixing, min_side_px)
        found = f"{len(source)} records"
    else:
        source, _ = scan_folder(path, min_side_px, console=console)
        fakes = sum(image.label for image in source.images)
        found = f"{len(source.images) - fakes} real and {fakes} generated images"
    left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(source.problems.items())) or "none"
    if console is not None:
        for problem in source.left_out[:SHOWN]:
            console.print(
                f"left out ({problem.kind}): {problem.path}: {problem.detail}",
                style="yellow",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        if len(source.left_out) > SHOWN:
            console.print(f"… and {len(source.left_out) - SHOWN} more", style="yellow")
        console.print(f"{path}: {found}; left out: {left_out}", highlight=False, markup=False, soft_wrap=True)
    if isinstance(source, FolderSource) and not source.images:
        raise DataError(
            f"{path}: no usable image (left out: {left_out}); expected real/… and fake/<generator>/… with "
            "images in them"
        )
    return source


def both_classes(source: Source, path: str | Path) -> list[Labelled]:
    """The images of `source`, opened at `path`. Raises DataError if there are no fakes, or in a group with fakes no
    reals.
    """
    images = source.labelled()
    labels: dict[str, set[int]] = {}
    for image in images:
        labels.setdefault(image.group, set()).add(image.label)
    for group, found in sorted(labels.items()):
        if REAL not in found:
            raise DataError(f"{Path(path) / group}: no real images: both are needed (real/…, fake/<generator>/…)")
    if not any(FAKE in found for found in labels.values()):
        raise DataError(f"{path}: no generated images: both are needed (real/…, fake/<generator>/…)")
    return images
