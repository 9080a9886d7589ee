"""Weights folders: what is read, what is refused and what a version depends on."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import OneClassSVM

from triton_models import weights
from triton_models.weights import ENCODER_FILE, HEADS_FILE, WIDTH, WeightsError
from worker import contract


def change(folder: Path, file: str, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    arrays = load_file(folder / file)
    edit(arrays)
    save_file(arrays, folder / file)


def test_the_heads_are_the_contract_s() -> None:
    """Triton's image has no worker to import them from: same names, same order."""
    assert weights.HEADS == contract.HEADS


def test_demo_weights_load_and_have_the_version_of_their_card() -> None:
    """The committed demo weights are whole, at most 14 MB, and the card names their version."""
    demo = Path(weights.__file__).with_name("weights") / "demo"
    assert sum(path.stat().st_size for path in demo.iterdir()) <= 14_000_000
    assert weights.load(demo).version == json.loads((demo / "card.json").read_text())["model_version"]


def test_version_depends_on_the_numbers_alone(folder: Path) -> None:
    """Storing the same numbers in another format keeps the version; changing one number changes it."""
    version = weights.load(folder).version
    assert len(version) == 12 and int(version, 16) > 0
    change(
        folder,
        ENCODER_FILE,
        lambda arrays: arrays.update({name: array.astype(np.float32) for name, array in arrays.items()}),
    )
    assert weights.load(folder).version == version
    change(folder, HEADS_FILE, lambda arrays: arrays["linear.coef"].__setitem__(0, 9.0))
    assert weights.load(folder).version != version


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F4"])
def test_types_that_numpy_lacks_are_refused(folder: Path, kind: str) -> None:
    """A tensor of eight or four bits: a WeightsError that names the file."""
    header = json.dumps(
        {"linear.coef": {"dtype": kind, "shape": [8], "data_offsets": [0, 4 if kind == "F4" else 8]}}
    ).encode()
    (folder / HEADS_FILE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 if kind == "F4" else 8))
    with pytest.raises(WeightsError, match=rf"{HEADS_FILE}: .*export it again"):
        weights.load(folder)


def test_version_is_the_same_in_another_process_with_other_threads(folder: Path) -> None:
    """Neither the number of threads nor hash seeds nor the processor's instructions in use change the version."""
    code = (
        "import sys; from pathlib import Path; from triton_models import weights; "
        "print(weights.load(Path(sys.argv[1])).version)"
    )
    plain = {
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "3",
    }
    argv = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    other = subprocess.run(
        argv,
        env=os.environ | plain,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert other.stdout.strip() == weights.load(folder).version


@pytest.mark.parametrize(
    ("file", "edit", "says"),
    [
        (
            HEADS_FILE,
            lambda arrays: arrays["knn.bank"].__setitem__((3, 5), np.nan),
            "knn.bank holds 1 values that are NaN",
        ),
        (HEADS_FILE, lambda arrays: arrays["knn.bank"].__setitem__(3, 0), "rows of zeros"),
        (HEADS_FILE, lambda arrays: arrays.pop("svm.dual_coef"), "svm.dual_coef missing"),
        (
            HEADS_FILE,
            lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("linear.")],
            "linear.coef, linear.intercept missing",
        ),
        (HEADS_FILE, lambda arrays: arrays.update({"knn.labels": np.ones(20, np.int64)}), "both 0 (real) and 1 (fake)"),
        (HEADS_FILE, lambda arrays: arrays.update({"knn.labels": np.arange(19) % 2}), "20 rows, knn.labels 19"),
        (HEADS_FILE, lambda arrays: arrays.update({"svm.dual_coef": np.ones(4)}), "5 rows, svm.dual_coef 4"),
        (
            HEADS_FILE,
            lambda arrays: arrays.update({"svm.support_vectors": np.ones((0, WIDTH)), "svm.dual_coef": np.ones(0)}),
            "0 rows",
        ),
        (HEADS_FILE, lambda arrays: arrays.update({"svm.degree": np.array([1e6])}), "svm.degree is 1e+06"),
        (HEADS_FILE, lambda arrays: arrays.update({"svm.gamma": np.array([-0.5])}), "svm.gamma is -0.5"),
        (
            HEADS_FILE,
            lambda arrays: arrays.update({"linear.coef": np.full(WIDTH, 1e300)}),
            "linear.coef holds 192 values that are NaN, infinite or too large",
        ),
        (HEADS_FILE, lambda arrays: arrays.update({"svm.degree": np.array([2.5])}), "svm.degree is 2.5"),
        (
            HEADS_FILE,
            lambda arrays: arrays.update({"linear.coef": np.ones(191)}),
            "linear.coef has shape [191], expected [192]",
        ),
        (HEADS_FILE, lambda arrays: arrays.update({"surprise": np.ones(1)}), "surprise not expected"),
        (
            ENCODER_FILE,
            lambda arrays: arrays["norm.bias"].__setitem__(0, np.inf),
            "norm.bias holds 1 values that are NaN, infinite or too large",
        ),
        (ENCODER_FILE, lambda arrays: arrays.pop("cls_token"), "cls_token missing"),
    ],
)
def test_a_bad_array_is_named(
    folder: Path, file: str, edit: Callable[[dict[str, np.ndarray]], object], says: str
) -> None:
    """NaN, a missing head, a wrong shape: the message names the file and what is wrong with which tensor."""
    change(folder, file, edit)
    with pytest.raises(WeightsError) as caught:
        weights.load(folder)
    assert str(folder / file) in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [ENCODER_FILE, HEADS_FILE])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.999])
def test_a_truncated_file_is_named(folder: Path, file: str, keep: float) -> None:
    """A file cut short anywhere is refused by name, not half read."""
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(WeightsError, match=file):
        weights.load(folder)


def test_a_tensor_named_twice_is_refused(folder: Path) -> None:
    """A header with the same name twice, which the library reads without a word, is refused and the name told."""
    content = (folder / HEADS_FILE).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].decode().rstrip()
    entry = json.dumps({"linear.coef": json.loads(header)["linear.coef"]})[1:-1]
    doubled = f"{header[:-1]},{entry}}}".encode()
    doubled += b" " * (-len(doubled) % 8)
    (folder / HEADS_FILE).write_bytes(struct.pack("<Q", len(doubled)) + doubled + content[8 + length :])
    assert "linear.coef" in load_file(folder / HEADS_FILE)
    with pytest.raises(WeightsError, match=r"heads\.safetensors: .*linear\.coef stands in it twice"):
        weights.load(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    """A folder without the heads says so."""
    (folder / HEADS_FILE).unlink()
    with pytest.raises(WeightsError, match=r"heads\.safetensors: the file is missing"):
        weights.load(folder)


def test_calibration_may_travel_with_the_heads(folder: Path) -> None:
    """Arrays named calibration.* are accepted and do not change the version of the served scores."""
    version = weights.load(folder).version
    change(folder, HEADS_FILE, lambda arrays: arrays.update({"calibration.linear.temperature": np.array([1.3])}))
    assert weights.load(folder).version == version


def test_reference_scores_are_scikit_learns(small_weights: weights.Weights) -> None:
    """On heads fitted by scikit-learn the reference gives its probability, its distances and its decision's sigmoid."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((300, WIDTH)), np.arange(300) % 3 == 0
    linear = LogisticRegression(C=0.316, class_weight="balanced").fit(x, y)
    nearest = {
        side: KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(x[y == side], y[y == side])
        for side in (False, True)
    }
    svm = OneClassSVM(nu=0.1, kernel="poly", gamma="auto").fit(x[~y])
    heads = {
        "linear.coef": linear.coef_[0],
        "linear.intercept": linear.intercept_,
        "knn.bank": x,
        "knn.labels": y.astype(np.int64),
        "svm.support_vectors": svm.support_vectors_,
        "svm.dual_coef": svm.dual_coef_[0],
        "svm.intercept": svm.intercept_,
        "svm.gamma": np.array([1 / WIDTH]),
        "svm.coef0": np.array([0.0]),
        "svm.degree": np.array([3.0]),
    }
    probe = rng.standard_normal((50, WIDTH))
    scores = weights.reference_scores(weights.from_arrays(small_weights.encoder, heads), probe)
    to_real, to_fake = (nearest[side].kneighbors(probe)[0][:, 0] for side in (False, True))
    np.testing.assert_allclose(scores[:, 0], linear.predict_proba(probe)[:, 1], rtol=1e-10)
    np.testing.assert_allclose(scores[:, 1], to_real / (to_real + to_fake), rtol=1e-10)
    np.testing.assert_allclose(scores[:, 2], 1 / (1 + np.exp(svm.decision_function(probe))), rtol=1e-10)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1e-3, 1e3))
def test_reference_scores_stay_in_range(small_weights: weights.Weights, seed: int, size: float) -> None:
    """Whatever the embedding, a score is a probability; the 1-NN does not depend on the embedding's length."""
    x = np.random.default_rng(seed).standard_normal((3, WIDTH))
    scores = weights.reference_scores(small_weights, x * size)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores[:, 1], weights.reference_scores(small_weights, x)[:, 1], rtol=1e-9)
