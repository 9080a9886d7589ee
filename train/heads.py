"""The three heads on frozen embeddings: logistic regression, 1-NN (cosine) and a one-class SVM on reals, kept as arrays.

Fitted with scikit-learn and the released hyper-parameters, saved as `heads.safetensors` (no pickle). Scores are P(fake) as
in the contract and come from `triton_models.weights.reference_scores`, the same function that checks the served graphs.
A calibrated variant (temperature and bias, or isotonic, per head, on held-out embeddings) travels in the same file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.svm import OneClassSVM

from train.recipe import HeadFit
from triton_models import weights
from triton_models.weights import HEADS_FILE, OPTIONAL_PREFIX, SCORES

Calibration = Literal["temperature", "isotonic"]
REAL, FAKE = 0, 1
SEED = 42  # random_state of the release
CHUNK_ROWS = 512  # a chunk against a bank of 48,000 is 200 MB
_EDGE = 1e-6  # of a score, before taking its logit


def lossless(array: npt.ArrayLike) -> np.ndarray:
    """float32 where every value is one exactly (banks, support vectors), else float64: files stay small and scores do not move."""
    wide = np.atleast_1d(np.asarray(array, dtype=np.float64))
    narrow = wide.astype(np.float32)
    return narrow if np.array_equal(narrow.astype(np.float64), wide) else wide


@dataclass(frozen=True)
class Heads:
    """`arrays` under the names of `triton_models.weights.HEAD_SHAPES`; `calibration` under `calibration.<head>.<parameter>`."""

    arrays: dict[str, np.ndarray]
    calibration: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def fit(cls, embeddings: np.ndarray, labels: np.ndarray, recipe: HeadFit | None = None) -> Heads:
        """Fit on embeddings [N, D] (not normalised) and labels [N] (1 = fake). Raises ValueError unless both classes are there."""
        recipe = recipe or HeadFit()
        x, y = np.asarray(embeddings, dtype=np.float32), np.asarray(labels, dtype=np.int64)
        if set(np.unique(y).tolist()) != {REAL, FAKE}:
            raise ValueError("the heads need real (0) and fake (1) embeddings; one of the two is missing")
        linear = LogisticRegression(C=recipe.linear_c, max_iter=recipe.linear_max_iter, class_weight="balanced", random_state=SEED).fit(x, y)
        svm = OneClassSVM(nu=recipe.svm_nu, kernel="poly", degree=recipe.svm_degree, gamma="auto").fit(x[y == REAL])
        kept = np.arange(len(x))
        if len(kept) > recipe.bank_limit:
            kept = np.sort(np.random.default_rng(SEED).choice(kept, recipe.bank_limit, replace=False))
        kept = kept[np.linalg.norm(x[kept], axis=1) > 0]
        return cls.from_parameters(
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

    @classmethod
    def from_parameters(cls, **parameters: npt.ArrayLike) -> Heads:
        """From arrays named `<head>_<name>`, as `linear_coef`."""
        arrays = {name.replace("_", ".", 1): lossless(value) for name, value in parameters.items() if name != "knn_labels"}
        return cls({**arrays, "knn.labels": np.asarray(parameters["knn_labels"], dtype=np.int64)})

    @classmethod
    def load(cls, folder: str | Path) -> Heads:
        """The heads of a weights folder, checked. Raises triton_models.weights.WeightsError naming the file."""
        checked = weights.load(Path(folder)).heads
        calibration = {name: array for name, array in load_file(Path(folder) / HEADS_FILE).items() if name.startswith(OPTIONAL_PREFIX)}
        return cls(checked, calibration)

    def save(self, folder: str | Path) -> None:
        """Write `heads.safetensors` into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in {**self.arrays, **self.calibration}.items()}, folder / HEADS_FILE)

    def scores(self, embeddings: np.ndarray, calibration: Calibration | None = None) -> np.ndarray:
        """float64 [N, 3] (linear, knn, svm): P(fake) of embeddings [N, D]. Raises ValueError for a calibration that was not fitted."""
        whole = weights.Weights({}, self.arrays)
        chunks = [weights.reference_scores(whole, embeddings[start : start + CHUNK_ROWS]) for start in range(0, len(embeddings), CHUNK_ROWS)]
        plain = np.concatenate(chunks) if chunks else np.zeros((0, len(SCORES)))
        return plain if calibration is None else self._calibrated(plain, calibration)

    def labels(self, embeddings: np.ndarray) -> np.ndarray:
        """int64 [N, 3], 1 = fake: scores >= 0.5."""
        return (self.scores(embeddings) >= 0.5).astype(np.int64)

    def calibrate(self, embeddings: np.ndarray, labels: np.ndarray) -> Heads:
        """The same heads with both calibrations fitted on held-out embeddings [N, D] and labels [N]."""
        scores, y = self.scores(embeddings), np.asarray(labels)
        fitted: dict[str, np.ndarray] = {}
        for index, head in enumerate(SCORES):
            column = scores[:, index]
            platt = LogisticRegression(C=1e6, max_iter=1000).fit(_logit(column)[:, None], y)
            isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(column, y)
            fitted[f"calibration.{head}.temperature"] = 1 / platt.coef_[0]
            fitted[f"calibration.{head}.bias"] = platt.intercept_
            fitted[f"calibration.{head}.isotonic_x"] = isotonic.X_thresholds_
            fitted[f"calibration.{head}.isotonic_y"] = isotonic.y_thresholds_
        return Heads(self.arrays, fitted)

    def _calibrated(self, scores: np.ndarray, calibration: Calibration) -> np.ndarray:
        if not self.calibration:
            raise ValueError("these heads have no calibration: fit them with a recipe whose heads.calibration_fraction is above 0")
        columns = []
        for index, head in enumerate(SCORES):
            parameters = {name.rsplit(".", 1)[1]: array for name, array in self.calibration.items() if f".{head}." in name}
            if calibration == "temperature":
                columns.append(1 / (1 + np.exp(-(_logit(scores[:, index]) / parameters["temperature"][0] + parameters["bias"][0]))))
            else:
                columns.append(np.interp(scores[:, index], parameters["isotonic_x"], parameters["isotonic_y"]))
        return np.stack(columns, axis=1)


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.log(clipped / (1 - clipped))
