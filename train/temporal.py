"""Detection by the date of a generator's release: what a detector meets that was trained before.

`generators.csv` beside this file has name patterns with the month of the first public release and the era; the longest
pattern that begins the name decides (`gan` also within it). `evaluate --release-dates FILE` reads one with the same
columns first, for generators of your own and for dates that you know better.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data.images import DataError
from train.intervals import NONE, auc_interval, auc_of
from triton_models.weights import FAKE, HEADS, REAL

KNOWN = Path(__file__).with_name("generators.csv")
ERAS = (
    "GAN",
    "first diffusion and autoregressive",
    "Stable Diffusion 1 and 2",
    "SDXL and its time",
    "FLUX and after",
    "proprietary",
)
NOT_KNOWN = "not known"
_COLUMNS = {"pattern", "released", "era"}
_GAN = re.compile(r"gan(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Release:
    """`released` is YYYY-MM, or empty where nobody noted it."""

    pattern: str
    released: str
    era: str


def read_releases(own: Path | None = None) -> list[Release]:
    """The table, with that of `own` before it. Raises DataError for another layout."""
    found: list[Release] = []
    for path in filter(None, (own, KNOWN)):
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--release-dates {path}: {error}") from error
        for row in rows:
            if not row.keys() >= _COLUMNS or not re.fullmatch(r"(\d{4}-(0[1-9]|1[0-2]))?", row["released"] or ""):
                raise DataError(f"--release-dates {path}: {row}: expected the columns pattern, released (YYYY-MM), era")
            found.append(Release(row["pattern"].lower(), row["released"] or "", row["era"] or NOT_KNOWN))
    return found


def release_of(generator: str, releases: Sequence[Release]) -> Release:
    """The release with the longest pattern that `generator` begins with (the first of equals); else by its being a GAN;
    else not known.
    """
    name = generator.lower()
    best = max(
        (one for one in releases if name.startswith(one.pattern)), key=lambda one: len(one.pattern), default=None
    )
    if best is not None:
        return best
    return Release(name, "", "GAN" if _GAN.search(name) else NOT_KNOWN)


def table(
    labels: np.ndarray,
    scores: np.ndarray,
    generators: np.ndarray,
    photographs: np.ndarray,
    releases: Sequence[Release],
    heads: Sequence[str] = HEADS,
) -> list[dict[str, Any]]:
    """Rows of eras, then of generators by date: AUC with interval of each head against all reals, and how many fakes.

    `labels` [N], `scores` [N, heads], `generators` [N], `photographs` [N].
    """
    names = sorted(set(generators[labels == FAKE].tolist()))
    release = {name: release_of(name, releases) for name in names}
    eras = [*ERAS, *sorted({one.era for one in release.values()} - {*ERAS, NOT_KNOWN}), NOT_KNOWN]
    made: list[dict[str, Any]] = []
    for era in eras:
        members = [name for name in names if release[name].era == era]
        if members:
            dates = sorted(filter(None, (release[name].released for name in members)))
            span = f"{dates[0]} to {dates[-1]}" if dates else ""
            row = {"kind": "era", "name": era, "era": era, "released": span, "generators": len(members)}
            made.append(row | _against_reals(labels, scores, np.isin(generators, members), photographs, heads))
    for name in sorted(names, key=lambda one: (release[one].released or "9999", one)):
        row = {"kind": "generator", "name": name, "era": release[name].era, "released": release[name].released}
        made.append(row | _against_reals(labels, scores, generators == name, photographs, heads))
    return made


def _against_reals(
    labels: np.ndarray, scores: np.ndarray, of: np.ndarray, photographs: np.ndarray, heads: Sequence[str]
) -> dict[str, Any]:
    chosen = (labels == REAL) | ((labels == FAKE) & of)
    both = len(set(labels[chosen].tolist())) == 2
    by_head: dict[str, Any] = {}
    for index, head in enumerate(heads):
        value = auc_of(labels[chosen], scores[chosen, index]) if both else math.nan
        low, high = auc_interval(labels[chosen], scores[chosen, index], photographs[chosen]) if both else NONE
        by_head[head] = {"value": value, "low": low, "high": high}
    return {"fakes": int(((labels == FAKE) & of).sum()), "auc": by_head}
