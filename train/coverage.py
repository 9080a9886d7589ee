"""Do the intervals hold? Draws from populations of known truth, and how often each printed interval has it inside.

    python -m train.main coverage

What `evaluate` and `compare` print is computed here by the same functions (train/metrics.py, train/intervals.py,
train/compare.py): an interval of 95 % is to cover in 93 to 97 % of the draws, or not to be printed. With 500 draws an
exact one is outside of that in one run of twenty by chance; 2,000 draws leave no doubt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from train.intervals import auc_difference, auc_interval, balanced_accuracy_difference
from train.metrics import Ranked, summarise, with_intervals

ALLOWED = (0.93, 0.97)
SELECTED_MOST = 0.985
_POPULATION = 400_000  # images of each class for the truth: its own error is a hundredth of an interval's width


@dataclass(frozen=True)
class Population:
    """Logistic scores of normal deviates, `apart` between the classes. `copies`: a photograph comes one to four times
    with nearly the same score. `sources`: collections (generators) of unequal size, whose means spread by `spread`.
    `digits`: scores are rounded, which makes ties. `skewed`: the fakes' deviates are exponential.
    """

    name: str
    reals: int
    fakes: int
    apart: float
    copies: bool = False
    sources: int = 0
    spread: float = 0.0
    digits: int | None = None
    skewed: bool = False


POPULATIONS = (
    Population("30 of each class", 30, 30, 0.8),
    Population("30 of each class, far apart", 30, 30, 2.0),
    Population("30 of each class, hardly one misplaced", 30, 30, 2.6),
    Population("few reals, far apart", 30, 300, 2.0),
    Population("few fakes", 400, 30, 1.5),
    Population("nearly apart", 100, 100, 3.0),
    Population("as the development images", 300, 150, 1.5),
    Population("copies of photographs", 200, 160, 1.2, copies=True),
    Population("copies of photographs, far apart", 40, 40, 2.2, copies=True),
    Population("ties", 150, 150, 1.0, digits=1),
    Population("skewed", 300, 200, 2.0, skewed=True),
    Population("skewed, far apart", 30, 30, 2.5, skewed=True),
    Population("many reals", 3200, 200, 2.0),
    Population("sources", 600, 600, 1.5, sources=24, spread=0.5),
    Population("sources that differ much", 600, 600, 1.5, sources=24, spread=1.0),
)


@dataclass(frozen=True)
class Sample:
    """One draw: `scores` of a model, `others` of a worse one on the same images, whose photograph and source."""

    labels: np.ndarray
    scores: np.ndarray
    others: np.ndarray
    photographs: np.ndarray
    sources: np.ndarray


def draw(population: Population, rng: np.random.Generator, counts: tuple[int, int] | None = None) -> Sample:
    """A sample of the population; with `counts` (reals, fakes) every image has a photograph and source of its own."""
    labels = np.repeat([0, 1], counts or (population.reals, population.fakes))
    photographs = sources = np.arange(len(labels))
    if counts is None and population.copies:
        times = rng.integers(1, 5, len(labels))
        labels, photographs = labels.repeat(times), photographs.repeat(times)
    shift = np.zeros(len(labels))
    if population.sources:
        if counts is None:
            sizes = rng.lognormal(0, 0.7, population.sources)
            drawn = rng.choice(population.sources, len(labels), p=sizes / sizes.sum())
            sources = drawn + population.sources * labels
            shift = population.spread * rng.normal(size=2 * population.sources)[sources]
        else:
            shift = population.spread * rng.normal(size=len(labels))
    owned = rng.normal(size=photographs.max() + 1)
    if population.skewed:
        owned = np.where(rng.random(len(owned)) < 0.5, owned, rng.exponential(size=len(owned)) - 1)
    deviates = owned[photographs]
    if population.copies:
        deviates = 0.9 * deviates + math.sqrt(1 - 0.81) * rng.normal(size=len(labels))
    deviates = deviates + shift + population.apart * labels
    others = deviates + 0.7 * rng.normal(size=photographs.max() + 1)[photographs]
    scores, others = (1 / (1 + np.exp(population.apart / 2 - values)) for values in (deviates, others))
    if population.digits is not None:
        scores, others = np.round(scores, population.digits), np.round(others, population.digits)
    return Sample(labels, scores, others, photographs, sources)


def truth(population: Population) -> dict[str, float]:
    """What the intervals are to cover, on a sample so large that its own error does not matter."""
    sample = draw(population, np.random.default_rng(2**31), (_POPULATION, _POPULATION))
    weights = np.where(sample.labels == 1, population.fakes / population.reals, 1.0)
    found, other = (summarise(Ranked.of(sample.labels, scores), weights) for scores in (sample.scores, sample.others))
    gain = other["auc"] - found["auc"]
    return found | {
        "auc, by source": found["auc"],
        "difference of auc": gain,
        "difference of auc, by source": gain,
        "difference of balanced_accuracy": other["balanced_accuracy"] - found["balanced_accuracy"],
    }


def intervals_of(sample: Sample, *, by_source: bool, resamples: int) -> dict[str, tuple[float, float]]:
    """Every interval that would be printed for the sample, by name."""
    labels, scores, others, photographs = sample.labels, sample.scores, sample.others, sample.photographs
    if by_source:
        made = {
            "auc, by source": auc_interval(labels, scores, sample.sources, by_source=True),
            "difference of auc, by source": auc_difference(labels, scores, others, sample.sources, by_source=True)[1],
        }
    else:
        metrics = with_intervals(labels, scores, photographs, resamples=resamples)
        made = {name: (entry["low"], entry["high"]) for name, entry in metrics.items() if "low" in entry}
        made["difference of auc"] = auc_difference(labels, scores, others, photographs)[1]
        called = scores >= 0.5, others >= 0.5
        made["difference of balanced_accuracy"] = balanced_accuracy_difference(labels, *called, photographs)[1]
    return {name: ends for name, ends in made.items() if math.isfinite(ends[0])}


def coverage(population: Population, draws: int, *, resamples: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """For each interval that at least half of `draws` samples have: how many (`printed`), and which share of these
    covers the truth (`covers`). (Where hardly a sample has one, those that do are the odd ones.)
    """
    right = truth(population)
    printed: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    for number in range(draws):
        sample = draw(population, np.random.default_rng([seed, number]))
        made = intervals_of(sample, by_source=population.sources > 0, resamples=resamples)
        printed.update(made.keys())
        covered.update(name for name, (low, high) in made.items() if low <= right[name] <= high)
    return [
        {
            "population": population.name,
            "interval": name,
            "draws": draws,
            "printed": count,
            "covers": round(covered[name] / count, 4),
        }
        for name, count in printed.items()
        if count >= draws / 2
    ]


def holds(row: Mapping[str, Any]) -> bool:
    """Whether its share is within ALLOWED; where some draws have no interval (most of which would have missed), up to
    98.5 %.
    """
    least, most = ALLOWED
    return bool(least <= row["covers"] <= (most if row["printed"] == row["draws"] else SELECTED_MOST))


def simulate(draws: int, processes: int, advance: Callable[[int], object] = int) -> list[dict[str, Any]]:
    """The rows of `coverage` for all POPULATIONS."""
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for found in pool.map(coverage, POPULATIONS, [draws] * len(POPULATIONS)):
            rows += found
            advance(1)
    return rows
