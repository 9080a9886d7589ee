"""Opens whatever a path is: a folder of images, a folder of shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console

from train.data.folder import scan_folder
from train.data.images import DataError
from train.data.records import Source
from train.data.shards import open_shards

SHOWN = 20


def open_source(path: str | Path, *, min_side_px: int = 1, window: int = 1000, console: Console | None = None) -> Source:
    """The data set at `path`; what is left out is named on `console`. Raises DataError if it is neither folder nor shards."""
    if not str(path):
        raise DataError("no data: set data.source to a folder (real/…, fake/<generator>/…) or a folder of shards")
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is no folder: data.source names a folder of images or of *.tar shards")
    if any(path.glob("*.tar")):
        return open_shards(path, window)
    source, problems = scan_folder(path, min_side_px, console=console)
    if console is not None:
        for problem in problems[:SHOWN]:
            console.print(f"left out ({problem.kind}): {problem.path}: {problem.detail}", style="yellow", highlight=False, soft_wrap=True)
        if len(problems) > SHOWN:
            console.print(f"… and {len(problems) - SHOWN} more", style="yellow")
        counts = Counter("fake" if image.label else "real" for image in source.images)
        left_out = ", ".join(f"{count} {kind}" for kind, count in sorted(source.problems.items())) or "none"
        console.print(f"{path}: {counts['real']} real and {counts['fake']} generated images; left out: {left_out}", highlight=False, soft_wrap=True)
    if not source.images:
        raise DataError(f"{path}: no usable image")
    return source
