"""What scikit-learn's own heads say of embeddings, for the tests on the graph and on the server."""

import warnings
from pathlib import Path

import joblib
import numpy as np

from triton_models.weights import Weights


def predicted(golden: Path, x: np.ndarray) -> np.ndarray:
    """Fake (True) or real by the published linear head, 1-NN and one-class SVM: bool [N, 3] of embeddings [N, 192]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fitted by an older scikit-learn
        linear, nearest, svm = (
            joblib.load(path)
            for name in ("linear*.sav", "knn*.sav", "ocsvm*.joblib")
            for path in (golden / "heads").glob(name)
        )
    nearest.n_jobs = 1
    return np.stack([linear.predict(x) == 1, nearest.predict(x) == 1, svm.predict(x) == -1], axis=1)


def tie_distance(weights: Weights, x: np.ndarray) -> np.ndarray:
    """How much farther one kind's nearest neighbour is than the other's, [N], in float64."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    to_real, to_fake = (1 - (unit @ side.T).max(axis=1) for side in weights.bank)
    return np.abs(to_real - to_fake)
