"""One decision from several detectors' scores: each calibrated, then a logistic regression over them, and only if it is
better than the best of them alone.

    python -m train.main fuse results/code results/clip --out policy.toml

What `evaluate` wrote of the same images is read; images that a card lists as fitted on are left out. Of five parts each
is scored by a fit on the other four; sources (a generator, a collection of photographs) stay in one part where a class
has enough of them, photographs always. The gain is the AUC of these scores minus that of the best detector alone, its
interval by a paired bootstrap over photographs. Only where that lies above zero is a policy written.

Calibration and sum are what CEL can compute, so that what is measured is what decides: a score becomes log odds by
straight lines between a few points of the calibration curve, and a rule compares their weighted sum with a number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from train.compare import Scores, in_common, read_scores
from train.data.images import DataError
from train.evaluate import RESULTS
from train.fitted import HASH_DIGITS, hashes_on, read_card
from train.heads import fit_temperature
from train.intervals import auc_difference, auc_of
from train.metrics import paired_gain
from triton_models.files import replacing
from triton_models.weights import FAKE, REAL
from worker.policy import Otherwise, Rule, parse_policy
from worker.policy.builtin import BEFORE_SCORES
from worker.policy.calibration import Calibration, policy_toml

CODE = "code"
PARTS = 5
POINTS = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)  # quantiles of the scores: where the lines meet
LEAST = 50  # photographs of each class
_EDGE = 1e-4  # of a score, before taking its logit


@dataclass(frozen=True)
class Curve:
    """A score to log odds: straight lines between `at` (rising) and `odds`, level beyond both ends."""

    at: tuple[float, ...]
    odds: tuple[float, ...]

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> Curve:
        """Of scores [N] and labels [N]: temperature and bias of the highest likelihood, where there is one."""
        temperature, bias = fit_temperature(scores, labels) or (1.0, 0.0)
        at = np.unique(np.round(np.quantile(scores, POINTS), 6))
        clipped = np.clip(at, _EDGE, 1 - _EDGE)
        odds = np.round(np.log(clipped / (1 - clipped)) / temperature + bias, 5)
        return cls(tuple(at.tolist()), tuple(odds.tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.interp(scores, self.at, self.odds)
        return found

    def cel(self, score: str) -> str:
        """The same as an expression over `score`."""
        text = _number(self.odds[-1])
        for index in reversed(range(len(self.at) - 1)):
            slope = (self.odds[index + 1] - self.odds[index]) / (self.at[index + 1] - self.at[index])
            line = f"{_number(self.odds[index])} + {_number(slope)} * ({score} - {_number(self.at[index])})"
            text = f"{score} < {_number(self.at[index + 1])} ? {line} : ({text})"
        return f"({score} < {_number(self.at[0])} ? {_number(self.odds[0])} : ({text}))"


@dataclass(frozen=True)
class Fusion:
    """The log odds of fake: `bias` and the weighted sum of the calibrated scores of `columns` (as CEL names them)."""

    columns: tuple[str, ...]
    curves: tuple[Curve, ...]
    weights: tuple[float, ...]
    bias: float

    @classmethod
    def fit(cls, columns: Sequence[str], scores: np.ndarray, labels: np.ndarray) -> Fusion:
        """Of scores [N, K] and labels [N] of both classes."""
        curves = tuple(Curve.fit(scores[:, index], labels) for index in range(len(columns)))
        odds = np.stack([curve(scores[:, index]) for index, curve in enumerate(curves)], axis=1)
        fitted = LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced").fit(odds, labels)
        weights = tuple(round(float(weight), 5) for weight in fitted.coef_[0])
        return cls(tuple(columns), curves, weights, round(float(fitted.intercept_[0]), 5))

    @property
    def version(self) -> str:
        """12 hex digits over what decides its value."""
        meaning = [self.columns, [(curve.at, curve.odds) for curve in self.curves], self.weights, self.bias]
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]

    def odds(self, scores: np.ndarray) -> np.ndarray:
        """Log odds [N] of scores [N, K]."""
        total = np.full(len(scores), self.bias)
        for index, (curve, weight) in enumerate(zip(self.curves, self.weights, strict=True)):
            total += weight * curve(scores[:, index])
        return total

    def cel(self) -> str:
        """The same as an expression of a policy."""
        terms = [
            f"{_number(weight)} * {curve.cel(column)}"
            for column, curve, weight in zip(self.columns, self.curves, self.weights, strict=True)
        ]
        return " + ".join([_number(self.bias), *terms])


@dataclass(frozen=True)
class Model:
    """What one evaluation measured: `detector` is its name (`code`: CoDE), `version` its version."""

    folder: Path
    detector: str
    version: str
    known: frozenset[str]
    scores: Scores

    def column(self, head: str) -> str:
        """As CEL names the score."""
        return f"scores.{head}" if self.detector == CODE else f"detectors.{self.detector}.{head}"


def read_model(folder: Path) -> Model:
    """Raises DataError for a folder without results of a model that is served."""
    scores = read_scores(folder)
    try:
        about = json.loads((folder / RESULTS).read_text())["about"]
        version, name = str(about["model version"]), str(about.get("detector", CODE))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / RESULTS}: no results of --weights or --detector ({error}): only what is served can be fused"
        ) from error
    card_in = Path(str(about.get("folder") or about.get("weights") or ""))
    return Model(folder, name, version, frozenset(hashes_on(read_card(card_in))), scores)


def fuse(
    folders: Sequence[Path],
    out: Path,
    *,
    head: str = "linear",
    fake_from: float = 0.9,
    real_below: float = 0.1,
    draws: int = 1000,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Fit, measure, and write the policy `out` if the fusion is better than the best detector alone; returns the
    figures, `written` among them.

    `fake_from`, `real_below`: probabilities at which the policy decides, at equal shares of both classes. Raises
    DataError.
    """
    if not 0 < real_below < fake_from < 1:
        raise DataError("--real-below and --fake-from are probabilities between 0 and 1, the first below the second")
    models = _models(folders, head)
    scores, labels, photographs, sources, fitted_on = _held_out(models, head)
    _enough(labels, photographs)
    columns = [model.column(head) for model in models]
    groups, by_source = _groups(labels, photographs, sources)
    if not by_source:
        say("sources are too few to keep each in one part: photographs are; images from elsewhere may gain less")
    odds = np.zeros(len(labels))
    for fit, apart in StratifiedGroupKFold(PARTS, shuffle=True, random_state=0).split(scores, labels, groups):
        if len({*labels[fit].tolist()}) < 2:
            raise DataError("a class has too few sources to leave some out: more images, of more sources, are needed")
        odds[apart] = Fusion.fit(columns, scores[fit], labels[fit]).odds(scores[apart])
    alone = {column: auc_of(labels, scores[:, index]) for index, column in enumerate(columns)}
    best = max(alone, key=lambda column: alone[column])
    single = scores[:, columns.index(best)]
    gain, low, high = paired_gain(labels, single, odds, photographs, draws=draws)
    elsewhere = auc_difference(labels, single, odds, sources, by_source=True)[1]
    found: dict[str, Any] = {
        "images": {"real": int((labels == REAL).sum()), "fake": int((labels == FAKE).sum()), "fitted_on": fitted_on},
        "kept_together": "sources" if by_source else "photographs",
        "auc": {**alone, "fused": auc_of(labels, odds)},
        "best_alone": best,
        "gain": {"value": gain, "low": low, "high": high},
        "gain_by_source": {"low": elsewhere[0], "high": elsewhere[1]},
        "at_thresholds": _at(labels, odds, fake_from, real_below),
        "written": None,
    }
    if not low > 0:
        return found
    fusion = Fusion.fit(columns, scores, labels)
    text = _policy(fusion, models, found, fake_from, real_below)
    with replacing(out) as partial:
        partial.write_text(text)
    weights = dict(zip(columns, fusion.weights, strict=True))
    return found | {"written": str(out), "version": fusion.version, "weights": weights}


def _models(folders: Sequence[Path], head: str) -> list[Model]:
    if len(folders) < 2:
        raise DataError("a fusion needs two evaluations or more: name their folders")
    models = [read_model(folder) for folder in folders]
    for model in models:
        if head not in model.scores.heads:
            raise DataError(f"{model.folder}: no scores of head {head}; there are {', '.join(model.scores.heads)}")
    if len({model.detector for model in models}) < len(models):
        raise DataError("two of the folders are of one detector: one evaluation of each is expected")
    return models


def _held_out(models: Sequence[Model], head: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Scores [N, K], labels, photographs and sources [N] of the images that all models measured and none was fitted on;
    and how many were left out for that.
    """
    first = models[0].scores
    for model in models[1:]:
        first, _ = in_common(first, model.scores)
    columns = [in_common(first, model.scores)[1].of(head) for model in models]
    known = frozenset().union(*(model.known for model in models))
    kept = np.array([name[:HASH_DIGITS] not in known for name in first.photographs.tolist()], dtype=bool)
    scores = np.stack(columns, axis=1)[kept]
    return scores, first.labels[kept], first.photographs[kept], first.sources[kept], int((~kept).sum())


def _enough(labels: np.ndarray, photographs: np.ndarray) -> None:
    for label, name in ((REAL, "real photographs"), (FAKE, "generated images")):
        if (count := len(np.unique(photographs[labels == label]))) < LEAST:
            raise DataError(f"{count} {name} that nothing was fitted on; at least {LEAST} of each are needed")


def _groups(labels: np.ndarray, photographs: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, bool]:
    """What stays in one part [N], and whether that is the source in both classes.

    A photograph with copies in several sources draws these together.
    """
    enough = {label: len(np.unique(sources[labels == label])) >= 2 * PARTS for label in (REAL, FAKE)}
    first: dict[str, str] = {}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    own = [
        f"s {source}" if enough[label] else f"p {photograph}"
        for label, photograph, source in zip(labels.tolist(), photographs.tolist(), sources.tolist(), strict=True)
    ]
    for name, photograph in zip(own, photographs.tolist(), strict=True):
        parent[root(name)] = root(first.setdefault(photograph, name))
    return np.array([root(name) for name in own], dtype=np.str_), all(enough.values())


def _at(labels: np.ndarray, odds: np.ndarray, fake_from: float, real_below: float) -> dict[str, float]:
    """What the thresholds do on images that the fit had not seen."""
    chance = expit(odds)
    real, fake = chance[labels == REAL], chance[labels == FAKE]
    return {
        "real_called_fake": float((real >= fake_from).mean()),
        "fake_called_fake": float((fake >= fake_from).mean()),
        "fake_called_real": float((fake < real_below).mean()),
        "real_called_real": float((real < real_below).mean()),
    }


def _policy(
    fusion: Fusion, models: Sequence[Model], found: Mapping[str, Any], fake_from: float, real_below: float
) -> str:
    """The policy as TOML, checked as the worker checks it."""
    asked = [f"has(detectors.{model.detector})" for model in models if model.detector != CODE]
    condition = "".join(f"{one} && " for one in asked)
    total = fusion.cel()
    rules = [
        Rule(when=f"{condition}{total} {sign} {_number(math.log(chance / (1 - chance)))}", decision=decision)
        for sign, chance, decision in ((">=", fake_from, "fake"), ("<", real_below, "real"))
    ]
    code = next((model.version for model in models if model.detector == CODE), None)
    facts: dict[str, Any] = {
        "fusion": {
            "version": fusion.version,
            "weights": dict(zip(fusion.columns, fusion.weights, strict=True)),
            "bias": fusion.bias,
            "curves": {
                column: {"at": curve.at, "odds": curve.odds}
                for column, curve in zip(fusion.columns, fusion.curves, strict=True)
            },
            "measured": {key: found[key] for key in ("auc", "gain", "at_thresholds", "kept_together")},
        }
    }
    calibration = Calibration(
        model_version=code,
        detectors={model.detector: model.version for model in models if model.detector != CODE},
        images_real=found["images"]["real"],
        images_fake=found["images"]["fake"],
        **facts,
    )
    gain = found["gain"]
    comment = (
        f"By `train.main fuse`: of {' and '.join(fusion.columns)}, fusion {fusion.version}. On images that the "
        f"fit had not seen its AUC is\n{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] against the best "
        "alone. Its thresholds promise no error rate."
    )
    text = policy_toml("fused", [*BEFORE_SCORES, *rules], Otherwise(), calibration, comment)
    parse_policy(text, "the policy that was made")
    return text


def _number(value: float) -> str:
    """As CEL reads a double: never without a point."""
    text = np.format_float_positional(round(value, 6), trim="0")
    return f"({text})" if text.startswith("-") else text
