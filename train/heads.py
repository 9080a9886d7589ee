"""The three heads on frozen embeddings: logistic regression, 1-NN (cosine) and a one-class SVM on reals, kept as
arrays.

Fitted with scikit-learn and the released hyper-parameters, saved as `heads.safetensors` (no pickle). Scores are P(fake)
as in the contract and come from `triton_models.weights.reference_scores`, the same function that checks the served
graphs. A calibrated variant (temperature and bias, or isotonic, per head, on held-out embeddings) travels in the same
file; a head that the held-out images do not support a calibration of has none, and its calibrated scores are its plain
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

from train.recipe import HeadFit
from triton_models import weights
from triton_models.weights import FAKE, HEADS, HEADS_FILE, OPTIONAL_PREFIX, REAL, WeightsError

Calibration = Literal["temperature", "isotonic"]
SEED = 42  # random_state of the release
CHUNK_ROWS = 512  # a chunk against a bank of 48,000 is 200 MB
_EDGE = 1e-6  # of a score, before taking its logit
# Above 0, so that a calibration never turns the ranking round. A logit is 14 at most (_EDGE): divided by more than 100
# it is lost in the bias, and one of 0.1, multiplied by more than 100, is certain. A fit that wants to leave these
# bounds found no temperature.
TEMPERATURES = (0.01, 100.0)
CALIBRATION = frozenset({"temperature", "bias", "isotonic_x", "isotonic_y"})  # of one head


def lossless(array: npt.ArrayLike) -> np.ndarray:
    """float32 where every value is one exactly (banks, support vectors), else float64: files stay small and scores do
    not move.
    """
    wide = np.atleast_1d(np.asarray(array, dtype=np.float64))
    narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), wide) else wide


class Scorer(Protocol):
    """Heads on embeddings: what an evaluation asks. `names`: in the order of the columns of `scores`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def not_calibrated(self) -> list[str]: ...

    def scores(self, embeddings: np.ndarray, calibration: Calibration | None = None) -> np.ndarray:
        """float64 [N, K], P(fake). Raises ValueError for a calibration that was not fitted."""
        ...


@dataclass(frozen=True)
class Heads:
    """`arrays` under the names of `triton_models.weights.HEAD_SHAPES`; `calibration` under
    `calibration.<head>.<parameter>`; `groups`: of each row of the bank the source or generator it came from, or empty.
    """

    arrays: dict[str, np.ndarray]
    calibration: dict[str, np.ndarray] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return HEADS

    @classmethod
    def fit(
        cls, embeddings: np.ndarray, labels: np.ndarray, recipe: HeadFit | None = None, groups: Sequence[str] = ()
    ) -> Heads:
        """Fit on embeddings [N, D] (not normalised) and labels [N] (1 = fake); `groups`: their sources or generators.
        Raises ValueError unless both classes are there.
        """
        recipe = recipe or HeadFit()
        x, y = np.asarray(embeddings, dtype=np.float32), np.asarray(labels, dtype=np.int64)
        if set(np.unique(y).tolist()) != {REAL, FAKE}:
            raise ValueError("the heads need real (0) and fake (1) embeddings; one of the two is missing")
        linear = LogisticRegression(
            C=recipe.linear_c, max_iter=recipe.linear_max_iter, class_weight="balanced", random_state=SEED
        ).fit(x, y)
        svm = OneClassSVM(nu=recipe.svm_nu, kernel="poly", degree=recipe.svm_degree, gamma="auto").fit(x[y == REAL])
        kept = np.arange(len(x))
        if len(kept) > recipe.bank_limit:
            kept = np.sort(np.random.default_rng(SEED).choice(kept, recipe.bank_limit, replace=False))
        kept = kept[np.linalg.norm(x[kept], axis=1) > 0]
        heads = cls.from_parameters(
            linear_coef=linear.coef_[0],
            linear_intercept=linear.intercept_,
            knn_bank=x[kept],
            knn_labels=y[kept],
            svm_support_vectors=svm.support_vectors_,
            svm_dual_coef=svm.dual_coef_[0],
            svm_intercept=svm.intercept_,
            svm_gamma=svm._gamma,  # noqa: SLF001 - the number that `auto` stood for
            svm_coef0=svm.coef0,
            svm_degree=svm.degree,
        )
        return replace(heads, groups=tuple(weights.group_name(groups[row]) for row in kept) if groups else ())

    @classmethod
    def from_parameters(cls, **parameters: npt.ArrayLike) -> Heads:
        """From arrays named `<head>_<name>`, as `linear_coef`."""
        arrays = {
            name.replace("_", ".", 1): lossless(value) for name, value in parameters.items() if name != "knn_labels"
        }
        return cls({**arrays, "knn.labels": np.asarray(parameters["knn_labels"], dtype=np.int64)})

    @classmethod
    def load(cls, folder: str | Path) -> Heads:
        """The heads of a weights folder, checked. Raises triton_models.weights.WeightsError naming the file."""
        checked = weights.load(Path(folder))
        calibration = {
            name: array
            for name, array in load_file(Path(folder) / HEADS_FILE).items()
            if name.startswith(OPTIONAL_PREFIX)
        }
        _check_calibration(calibration, Path(folder) / HEADS_FILE)
        return cls(checked.heads, calibration, checked.groups)

    def save(self, folder: str | Path) -> None:
        """Write `heads.safetensors`, and `groups.json` where the groups are known, into `folder`, which is made if need
        be.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in {**self.arrays, **self.calibration}.items()},
            folder / HEADS_FILE,
        )
        if self.groups:
            weights.save_groups(folder, self.groups)

    def scores(self, embeddings: np.ndarray, calibration: Calibration | None = None) -> np.ndarray:
        """float64 [N, 3] (linear, knn, svm): P(fake) of embeddings [N, D]. Raises ValueError for a calibration that was
        not fitted.
        """
        whole = weights.Weights({}, self.arrays)
        chunks = [
            weights.reference_scores(whole, embeddings[start : start + CHUNK_ROWS])
            for start in range(0, len(embeddings), CHUNK_ROWS)
        ]
        plain = np.concatenate(chunks) if chunks else np.zeros((0, len(HEADS)))
        return plain if calibration is None else self._calibrated(plain, calibration)

    def labels(self, embeddings: np.ndarray) -> np.ndarray:
        """int64 [N, 3], 1 = fake: scores >= 0.5."""
        return (self.scores(embeddings) >= 0.5).astype(np.int64)

    def calibrate(self, embeddings: np.ndarray, labels: np.ndarray, *, say: Callable[[str], object] = str) -> Heads:
        """The same heads with both calibrations fitted on held-out embeddings [N, D] and labels [N] of both classes.

        A head that these do not support a calibration of (an AUC at or below chance, or no temperature within
        TEMPERATURES) stays without one: `say` gets one line that names it.
        """
        scores, y = self.scores(embeddings), np.asarray(labels)
        fitted: dict[str, np.ndarray] = {}
        for index, head in enumerate(HEADS):
            column = scores[:, index]
            auc = float(roc_auc_score(y, column))
            found = fit_temperature(column, y) if auc > 0.5 else None
            if found is None:
                why = (
                    "no better than chance"
                    if auc <= 0.5
                    else "and no temperature from {:g} to {:g} is the likeliest".format(*TEMPERATURES)
                )
                say(f"{head} is not calibrated: its AUC on the {len(y)} held-out images is {auc:.3f}, {why}")
                continue
            isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(column, y)
            fitted[f"calibration.{head}.temperature"], fitted[f"calibration.{head}.bias"] = (
                np.array([number]) for number in found
            )
            fitted[f"calibration.{head}.isotonic_x"] = isotonic.X_thresholds_
            fitted[f"calibration.{head}.isotonic_y"] = isotonic.y_thresholds_
        return Heads(self.arrays, fitted, self.groups)

    @property
    def not_calibrated(self) -> list[str]:
        """The heads without a calibration."""
        return [head for head in HEADS if not _of_head(self.calibration, head)]

    def _calibrated(self, scores: np.ndarray, calibration: Calibration) -> np.ndarray:
        if not self.calibration:
            raise ValueError(
                "these heads have no calibration: fit them on more images, with a recipe whose "
                "heads.calibration_fraction is above 0 "
                "(`train.main heads` says why a head got none)"
            )
        columns = []
        for index, head in enumerate(HEADS):
            parameters, column = _of_head(self.calibration, head), scores[:, index]
            if not parameters:
                columns.append(column)
            elif calibration == "temperature":
                columns.append(expit(_logit(column) / parameters["temperature"][0] + parameters["bias"][0]))
            else:
                columns.append(np.interp(column, parameters["isotonic_x"], parameters["isotonic_y"]))
        return np.stack(columns, axis=1)


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
    """(temperature, bias) of the highest likelihood of labels [N] (both classes) under sigmoid(logit(score) /
    temperature + bias).

    None where a bound of TEMPERATURES does as well as all between: constant or reversed scores, and classes fully
    apart.
    """
    logits = _logit(scores)

    def bias(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        reach = float(np.abs(scaled).max()) + 40  # beyond it all probabilities are 0 or 1
        return float(brentq(lambda shift: float(expit(scaled + shift).mean() - labels.mean()), -reach, reach))

    def loss(log_temperature: float) -> float:
        tilted = logits / np.exp(log_temperature) + bias(log_temperature)
        return float((np.logaddexp(0, tilted) - labels * tilted).mean())

    bounds = np.log(TEMPERATURES)
    best = minimize_scalar(loss, bounds=tuple(bounds), method="bounded", options={"xatol": 1e-7})
    if min(map(loss, bounds)) <= best.fun + 1e-9:
        return None
    return float(np.exp(best.x)), bias(best.x)


def _of_head(calibration: Mapping[str, np.ndarray], head: str) -> dict[str, np.ndarray]:
    """The parameters of one head by their last names; empty where it has no calibration."""
    start = f"{OPTIONAL_PREFIX}{head}."
    return {name.removeprefix(start): array for name, array in calibration.items() if name.startswith(start)}


def _check_calibration(calibration: Mapping[str, np.ndarray], file: Path) -> None:
    advice = "fit the heads again with `train.main heads`"
    for name, array in calibration.items():
        if not array.size or not np.isfinite(array).all():
            raise WeightsError(f"{file}: {name} is empty or holds values that are no finite numbers; {advice}")
        if name.endswith(".temperature") and array.min() <= 0:
            raise WeightsError(
                f"{file}: {name} is {array.min():g}, which would turn the ranking round: a number above 0 is "
                f"expected; {advice}"
            )
    for head in HEADS:
        if (names := _of_head(calibration, head).keys()) and names != CALIBRATION:
            raise WeightsError(
                f"{file}: the calibration of {head} has {sorted(names)}, expected {sorted(CALIBRATION)}; {advice}"
            )


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    logits: np.ndarray = np.log(clipped / (1 - clipped))
    return logits
