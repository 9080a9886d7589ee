"""The heads against scikit-learn's own predictions, their file and their calibration."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import OneClassSVM

from train.heads import TEMPERATURES, Heads, fit_temperature
from train.model import create_encoder, save_encoder
from train.recipe import HeadFit
from triton_models.weights import HEADS_FILE, WeightsError

ROWS = 10_000


def gaussians(count: int, seed: int, shift: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    return (rng.normal(size=(count, 192)) * 1.3 + shift * labels[:, None]).astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted() -> tuple[Heads, np.ndarray, np.ndarray]:
    x, y = gaussians(600, 0)
    return Heads.fit(x, y), x, y


@pytest.mark.slow
def test_labels_are_scikit_learns_on_ten_thousand_embeddings(fitted: tuple[Heads, np.ndarray, np.ndarray]) -> None:
    """score >= 0.5 is each estimator's own predict, and the linear score its predict_proba; near ties of the 1-NN
    aside.
    """
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
        kind: float(np.mean((calibrated.scores(shifted_x[1000:], kind)[:, 0] - shifted_y[1000:]) ** 2))
        for kind in (None, "temperature", "isotonic")
    }
    assert brier["temperature"] < brier[None] - 0.01
    assert brier["isotonic"] < brier[None] - 0.01


def test_temperature_is_platts() -> None:
    """Where the scores rank the images rightly, temperature and bias are those of a logistic regression on the
    logits.
    """
    rng = np.random.default_rng(7)
    logits = rng.normal(size=4000) * 2
    labels = (rng.random(4000) < 1 / (1 + np.exp(-(0.4 * logits - 0.7)))).astype(int)
    platt = LogisticRegression(C=1e9).fit(logits[:, None], labels)
    found = fit_temperature(1 / (1 + np.exp(-logits)), labels)
    assert found == pytest.approx((1 / platt.coef_[0, 0], platt.intercept_[0]), rel=1e-3)


@pytest.mark.parametrize("held_out", ["constant", "reversed", "apart"])
def test_no_temperature_where_the_data_tell_none(held_out: str) -> None:
    """Constant and reversed scores, and classes fully apart, have no likeliest temperature within the bounds."""
    scores = {
        "constant": np.full(40, 0.5),
        "reversed": np.tile([0.6, 0.7, 0.2, 0.4], 10),
        "apart": np.tile([0.2, 0.3, 0.6, 0.7], 10),
    }[held_out]
    assert fit_temperature(scores, np.tile([0, 0, 1, 1], 10)) is None


@pytest.mark.filterwarnings("error")
def test_a_head_below_chance_is_left_uncalibrated_and_named() -> None:
    """Heads that rank held-out images the wrong way round keep their plain scores and are named; the rankings of all
    stay what they were.
    """
    arrays = Heads.fit(*gaussians(400, 3)).arrays
    reversed_linear = Heads(
        {**arrays, "linear.coef": -arrays["linear.coef"], "linear.intercept": -arrays["linear.intercept"]}
    )
    x, y = gaussians(500, 4)
    told: list[str] = []
    calibrated = reversed_linear.calibrate(x, y, say=told.append)
    assert [line.split(":")[0] for line in told] == ["linear is not calibrated", "svm is not calibrated"]
    assert "0.102, no better than chance" in told[0]
    assert calibrated.not_calibrated == ["linear", "svm"]
    assert TEMPERATURES[0] < calibrated.calibration["calibration.knn.temperature"][0] < TEMPERATURES[1]
    plain = reversed_linear.scores(x)
    for kind in ("temperature", "isotonic"):
        scores = calibrated.scores(x, kind)
        assert np.array_equal(scores[:, [0, 2]], plain[:, [0, 2]]) and not np.allclose(scores[:, 1], plain[:, 1])
        assert roc_auc_score(y, scores[:, 1]) >= roc_auc_score(y, plain[:, 1]) - 1e-9


@pytest.mark.parametrize(
    ("parameter", "number"), [("temperature", -18.8), ("temperature", np.inf), ("isotonic_y", np.nan), ("bias", None)]
)
def test_a_calibration_that_cannot_be_is_refused(
    parameter: str, number: float | None, fitted: tuple[Heads, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """A temperature that is negative or infinite, or a calibration that is not whole, is one line that names file and
    array or head.
    """
    save_encoder(create_encoder(), tmp_path)
    fitted[0].calibrate(*gaussians(200, 2)).save(tmp_path)
    arrays, name = load_file(tmp_path / HEADS_FILE), f"calibration.linear.{parameter}"
    if number is None:
        del arrays[name]
    else:
        arrays[name] = np.array([number])
    save_file(arrays, tmp_path / HEADS_FILE)
    with pytest.raises(WeightsError, match=r"heads\.safetensors: .*linear.*fit the heads again") as caught:
        Heads.load(tmp_path)
    assert "\n" not in str(caught.value)


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
