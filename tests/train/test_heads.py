"""The heads against scikit-learn's own predictions, their file and their calibration."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import OneClassSVM

from train.heads import Heads
from train.model import create_encoder, save_encoder
from train.recipe import HeadFit
from triton_models.weights import WeightsError

ROWS = 10_000


def gaussians(count: int, seed: int, shift: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    return (rng.normal(size=(count, 192)) * 1.3 + shift * labels[:, None]).astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted() -> tuple[Heads, np.ndarray, np.ndarray]:
    x, y = gaussians(600, 0)
    return Heads.fit(x, y), x, y


def test_labels_are_scikit_learns_on_ten_thousand_embeddings(fitted: tuple[Heads, np.ndarray, np.ndarray]) -> None:
    """score >= 0.5 is each estimator's own predict, and the linear score its predict_proba; near ties of the 1-NN aside."""
    heads, x, y = fitted
    test, _ = gaussians(ROWS, 1)
    scores, labels = heads.scores(test), heads.labels(test)
    linear = LogisticRegression(C=0.316, max_iter=1500, class_weight="balanced", random_state=42).fit(x, y)
    np.testing.assert_allclose(scores[:, 0], linear.predict_proba(test)[:, 1], rtol=1e-5, atol=1e-7)
    clear = np.abs(linear.decision_function(test)) > 1e-4
    assert np.array_equal(labels[clear, 0], linear.predict(test)[clear])
    knn = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(x, y)
    clear = np.abs(scores[:, 1] - 0.5) > 1e-5
    assert clear.mean() > 0.99
    assert np.array_equal(labels[clear, 1], knn.predict(test)[clear])
    svm = OneClassSVM(nu=0.1, kernel="poly", gamma="auto").fit(x[y == 0])
    np.testing.assert_allclose(scores[:, 2], 1 / (1 + np.exp(svm.decision_function(test))), rtol=1e-6)
    assert np.array_equal(labels[:, 2], (svm.predict(test) == -1).astype(int))


def test_saved_heads_give_the_same_scores(fitted: tuple[Heads, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """What is saved as arrays is read back to the last digit, calibration included."""
    heads, x, _ = fitted
    held_x, held_y = gaussians(200, 2)
    calibrated = heads.calibrate(held_x, held_y)
    save_encoder(create_encoder(), tmp_path)
    calibrated.save(tmp_path)
    loaded = Heads.load(tmp_path)
    assert np.array_equal(loaded.scores(x), heads.scores(x))
    for kind in ("temperature", "isotonic"):
        assert np.array_equal(loaded.scores(x, kind), calibrated.scores(x, kind))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors", ".safetensors"]


def test_calibration_makes_scores_truer() -> None:
    """On shifted data both calibrations lower the Brier score of the linear head on data they did not see."""
    x, y = gaussians(600, 3)
    heads = Heads.fit(x, y)
    shifted_x, shifted_y = gaussians(1500, 4, shift=0.05)
    shifted_x = shifted_x + 0.3
    calibrated = heads.calibrate(shifted_x[:1000], shifted_y[:1000])
    brier = {
        kind: float(np.mean((calibrated.scores(shifted_x[1000:], kind)[:, 0] - shifted_y[1000:]) ** 2)) for kind in (None, "temperature", "isotonic")
    }
    assert brier["temperature"] < brier[None] - 0.01
    assert brier["isotonic"] < brier[None] - 0.01


def test_plain_heads_say_that_they_are_not_calibrated(fitted: tuple[Heads, np.ndarray, np.ndarray]) -> None:
    """Asking for a calibration that was not fitted names the recipe field to change."""
    heads, x, _ = fitted
    with pytest.raises(ValueError, match="calibration_fraction"):
        heads.scores(x, "isotonic")


def test_bank_is_limited_and_one_class_alone_is_refused() -> None:
    """The bank keeps at most bank_limit rows of both classes, and embeddings of one class cannot be fitted."""
    x, y = gaussians(300, 5)
    assert Heads.fit(x, y, HeadFit(bank_limit=100)).arrays["knn.bank"].shape == (100, 192)
    with pytest.raises(ValueError, match="missing"):
        Heads.fit(x[y == 0], y[y == 0])


def test_loading_names_the_missing_file(tmp_path: Path) -> None:
    """A folder without weights is an error that names the file."""
    with pytest.raises(WeightsError, match=r"encoder\.safetensors"):
        Heads.load(tmp_path)


def test_no_embeddings_give_no_scores(fitted: tuple[Heads, np.ndarray, np.ndarray]) -> None:
    """An empty batch has an empty result of the right shape."""
    assert fitted[0].scores(np.zeros((0, 192), np.float32)).shape == (0, 3)
