"""The table `[calibration]` of a policy: on which model and images its thresholds were found, and how scores lay then.

`train.main calibrate` writes it, the worker compares the served model with it and measures drift against its reference
distribution. It decides nothing, so it is no part of the policy's version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from worker.contract import VersionHex
from worker.policy.rules import Otherwise, Rule

OTHER_FORMATS = "other"
MIN_REFERENCE_REAL = 200  # real images that a format needs for a distribution of its own
_BINS = 20
_MIN_IN_BIN = 10


class ScoreDistribution(BaseModel):
    """Images by score: `real[i]` and `fake[i]` of them lie from `edges[i - 1]` on and below `edges[i]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edges: tuple[float, ...] = Field(min_length=1, description="inner edges, rising")
    real: tuple[int, ...]
    fake: tuple[int, ...]

    @model_validator(mode="after")
    def _fits(self) -> ScoreDistribution:
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must rise")
        if not len(self.real) == len(self.fake) == len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts each of real and fake")
        if min(*self.real, *self.fake) < 0 or not sum(self.real):
            raise ValueError("counts must not be negative, and some images must be real")
        return self


Reference = dict[str, dict[str, ScoreDistribution]]
"""Format (`jpeg`, …, or `other`) -> head -> distribution."""


class Calibration(BaseModel):
    """What is read here has a field; what else the writer tells (slices, bounds, sources) is kept as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model_version: VersionHex | None = None  # of `code`, whose scores the thresholds read
    detectors: dict[str, VersionHex] = {}  # the versions of those beside `code` whose scores the thresholds read
    target_fpr: float | None = Field(default=None, gt=0, lt=1)
    confidence: float | None = Field(default=None, gt=0, lt=1)
    images_real: int | None = Field(default=None, ge=0)
    images_fake: int | None = Field(default=None, ge=0)
    reference: Reference = {}

    @model_validator(mode="after")
    def _is_of_something(self) -> Calibration:
        if self.model_version is None and not self.detectors:
            raise ValueError("model_version is missing, and no detectors are named: whose scores are they of?")
        return self

    @property
    def models(self) -> str:
        """Whose scores the thresholds read, in words."""
        named = [f"{name} {version}" for name, version in self.detectors.items()]
        return ", ".join([*([f"model {self.model_version}"] if self.model_version else []), *named])


def reference_distribution(
    scores: Mapping[str, npt.NDArray[np.floating[Any]]], is_fake: npt.NDArray[np.bool_], formats: Sequence[str]
) -> Reference:
    """How `scores` (head -> [N]) lie, by format: those with enough real images by themselves, the rest together."""
    names = np.asarray(formats, dtype=object)
    real_by_format = {name: int((~is_fake & (names == name)).sum()) for name in dict.fromkeys(formats)}
    own = sorted(name for name, count in real_by_format.items() if count >= MIN_REFERENCE_REAL)
    groups = {name: names == name for name in own}
    rest = ~np.isin(names.astype(str), own)
    if (rest & ~is_fake).sum() >= MIN_REFERENCE_REAL:
        groups[OTHER_FORMATS] = rest
    found: Reference = {}
    for name, members in groups.items():
        by_head = {head: _distribution(values[members], is_fake[members]) for head, values in scores.items()}
        found[name] = {head: distribution for head, distribution in by_head.items() if distribution is not None}
    return {name: by_head for name, by_head in found.items() if by_head}


def _distribution(scores: npt.NDArray[np.floating[Any]], is_fake: npt.NDArray[np.bool_]) -> ScoreDistribution | None:
    """Bins that are equally full of real images; None where all scores are the same."""
    real, fake = scores[~is_fake], scores[is_fake]
    bins = max(2, min(_BINS, len(real) // _MIN_IN_BIN))
    # Half of the edges by the real images, half by the fakes: a shift of either has somewhere to show.
    quantiles = [np.quantile(real, np.linspace(0, 1, bins + 1)[1:-1])]
    if len(fake) >= 2 * _MIN_IN_BIN:
        quantiles.append(np.quantile(fake, np.linspace(0, 1, bins // 2 + 1)[1:-1]))
    edges = np.unique(np.round(np.concatenate(quantiles), 6))
    edges = edges[(edges > scores.min()) & (edges <= scores.max())]
    edges = _with_enough(edges, scores)
    if not len(edges):
        return None
    return ScoreDistribution(
        edges=tuple(map(float, edges)), real=tuple(_counts(real, edges)), fake=tuple(_counts(fake, edges))
    )


def _with_enough(edges: npt.NDArray[Any], scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the edges that would leave a bin with too few images for a test."""
    kept: list[float] = []
    below = 0
    for edge in edges:
        count = int((scores < edge).sum())
        if count - below >= _MIN_IN_BIN and len(scores) - count >= _MIN_IN_BIN:
            kept.append(float(edge))
            below = count
    return np.asarray(kept)


def _counts(scores: npt.NDArray[Any], edges: npt.NDArray[Any]) -> list[int]:
    return [int(count) for count in np.bincount(np.searchsorted(edges, scores, side="right"), minlength=len(edges) + 1)]


def policy_toml(
    name: str, rules: Sequence[Rule], otherwise: Otherwise, calibration: Calibration, comment: str = ""
) -> str:
    """A policy in its long form, as text that `load_policy` reads; `comment` goes on top of it."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [f"name = {_toml(name)}"]
    for rule in rules:
        lines += ["", "[[rules]]", *_entries(rule.model_dump(exclude_none=True))]
    lines += ["", "[otherwise]", *_entries(otherwise.model_dump(exclude_none=True))]
    lines += _table("calibration", calibration.model_dump(exclude_none=True, mode="json"))
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in values.items() if key not in inner}
    lines = ["", f"[{name}]", *_entries(plain)] if plain or not inner else []
    for key, value in inner.items():
        lines += _table(f"{name}.{_key(key)}", value)
    return lines


def _entries(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]


def _key(name: str) -> str:
    return name if name.replace("-", "_").isidentifier() and name.isascii() else _toml(name)


def _toml(value: Any) -> str:
    """JSON's texts, numbers and arrays are TOML's too, but for DEL and for tables inside arrays."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(_entries(value)).join("  ") + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str) and "'" not in value and '"' in value and value.isprintable():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
