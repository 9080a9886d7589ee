"""What is in a data set, and what in it would give the label away: counts, sizes, formats, bytes, their correlation
with the label.

python -m train.main data inspect DIR --sheet contact.png
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console

from train.data.images import BadImage, decode_image, read_header
from train.data.records import Labelled
from train.progress import counting
from triton_models.weights import FAKE

SIZE_STEPS = (0, 128, 256, 384, 512, 768, 1024)
LOUD = 0.3  # Cramer's V from which a property is called a shortcut
TILE_PX = 96


@dataclass(frozen=True)
class Facts:
    """What the header and the file say of one image."""

    label: str
    generator: str
    format: str
    width: int
    height: int
    size_bytes: int


def gather(images: Sequence[Labelled], console: Console | None = None) -> list[Facts]:
    """The facts of every image whose header can be read."""
    facts: list[Facts] = []
    with counting(console, "file properties", len(images)) as advance:
        for image in images:
            advance(1)
            try:
                data = image.key.read()
                header = read_header(data)
            except (OSError, BadImage):
                continue  # open_source has named it already
            label = "fake" if image.label == FAKE else "real"
            facts.append(Facts(label, image.generator, header.format, header.width, header.height, len(data)))
    return facts


def properties(fact: Facts) -> dict[str, str]:
    """The properties that may give a label away, as categories."""
    ratio = fact.width / fact.height
    shape = "square" if 0.95 < ratio < 1.05 else "wide" if ratio > 1 else "tall"
    bits_per_pixel = 8 * fact.size_bytes / (fact.width * fact.height)
    return {
        "format": fact.format,
        "short side": _step(min(fact.width, fact.height)),
        "shape": shape,
        "bits per pixel": f"below {min(2 ** math.ceil(math.log2(max(bits_per_pixel, 0.25))), 16)}",
        "size": f"{fact.width}x{fact.height}",
    }


def _step(pixels: int) -> str:
    lower = max(step for step in SIZE_STEPS if step <= pixels)
    upper = next((step for step in SIZE_STEPS if step > pixels), None)
    return f"{lower}+" if upper is None else f"{lower}-{upper - 1}"


def correlations(facts: Sequence[Facts]) -> tuple[dict[str, dict[str, dict[str, int]]], dict[str, float]]:
    """(counts by property, value and label; Cramer's V of each property with the label, 0 none to 1 gives it away)."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for fact in facts:
        for name, value in properties(fact).items():
            counts[name][value][fact.label] += 1
    strength = {
        name: cramers_v(np.array([[row["real"], row["fake"]] for row in values.values()], dtype=float))
        for name, values in counts.items()
    }
    return {
        name: {value: dict(row) for value, row in sorted(values.items(), key=_by_number)}
        for name, values in counts.items()
    }, strength


def _by_number(item: tuple[str, object]) -> tuple[list[float], str]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", item[0])], item[0]


def cramers_v(table: np.ndarray) -> float:
    """Cramer's V of a contingency table [K, 2] with Bergsma's correction for small samples; 0 where a class is
    missing.
    """
    total = table.sum()
    if total < 2 or (table.sum(axis=0) == 0).any() or len(table) < 2:
        return 0.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    phi = ((table - expected) ** 2 / expected).sum() / total
    rows = len(table)
    corrected = max(0.0, phi - (rows - 1) / (total - 1))
    rows_corrected = rows - (rows - 1) ** 2 / (total - 1)
    return (
        float(np.sqrt(corrected / max(1e-12, min(rows_corrected - 1, 2 - 1 / (total - 1) - 1))))
        if rows_corrected > 1
        else 0.0
    )


def summary(facts: Sequence[Facts]) -> dict[str, Any]:
    """Counts, sizes and the strength of every shortcut, for the terminal and the report."""
    counts, strength = correlations(facts)
    generators = Counter((fact.label, fact.generator) for fact in facts)
    return {
        "images": dict(Counter(fact.label for fact in facts)),
        "generators": {f"{label}/{name}": count for (label, name), count in generators.most_common()},
        "megapixels": {
            label: _median([fact.width * fact.height / 1e6 for fact in facts if fact.label == label])
            for label in ("real", "fake")
        },
        "kilobytes": {
            label: _median([fact.size_bytes / 1024 for fact in facts if fact.label == label])
            for label in ("real", "fake")
        },
        "counts": counts,
        "label_given_away_by": dict(sorted(strength.items(), key=lambda item: -item[1])),
        "warnings": [
            f"{name} tells real from fake (Cramer's V {value:.2f}): equalise it before training"
            for name, value in strength.items()
            if value >= LOUD
        ],
    }


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 3) if values else 0.0


def contact_sheet(images: Sequence[Labelled], path: Path, columns: int = 12, most: int = 96) -> int:
    """Write a PNG sheet of evenly chosen thumbnails, framed by label (blue real, orange fake); returns how many are on
    it.
    """
    chosen = [images[index] for index in np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(int))]
    cell = TILE_PX + 6
    sheet = Image.new("RGB", (columns * cell, -(-len(chosen) // columns) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    shown = 0
    for image in chosen:
        try:
            thumbnail = ImageOps.fit(decode_image(image.key.read()), (TILE_PX, TILE_PX))
        except (OSError, BadImage):
            continue  # named by open_source
        x, y = shown % columns * cell, shown // columns * cell
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill="#D55E00" if image.label == FAKE else "#0072B2")
        sheet.paste(thumbnail, (x + 3, y + 3))
        shown += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    return shown
