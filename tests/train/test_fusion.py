"""Fusion of detectors' scores: written where it is better than the best alone, refused with the figures where not."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from train.compare import read_scores
from train.data.images import DataError
from train.fusion import Curve, Fusion, fuse
from train.intervals import auc_interval, auc_of
from train.main import app
from train.metrics import paired_gain
from worker.contract import DetectorScores, Evidence, ImageInfo, Scores
from worker.policy import load_policy
from worker.policy.facts import Facts

pytestmark = pytest.mark.slow

VERSIONS = {"code": "0123456789ab", "clip": "ba9876543210"}


def write(folder: Path, name: str, odds: np.ndarray, labels: np.ndarray, *, sources: int = 40) -> Path:
    """What `evaluate` writes of a model whose log odds are `odds`; photographs are named by hashes."""
    folder.mkdir(parents=True)
    about: dict[str, Any] = {"model version": VERSIONS[name], "weights": str(folder)}
    if name != "code":
        about = {"detector": name, "model version": VERSIONS[name], "folder": str(folder)}
    (folder / "results.json").write_text(json.dumps({"about": about}))
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "label", "generator", "photograph", "linear"])
        for index, (value, label) in enumerate(zip(1 / (1 + np.exp(-odds)), labels, strict=True)):
            row = [f"image-{index}", "", "fake" if label else "real", f"s{index % sources}", f"{index:016x}"]
            writer.writerow([*row, repr(float(value))])
    return folder


def two(tmp_path: Path, *, second: float, count: int = 800, sources: int = 40) -> tuple[list[Path], np.ndarray]:
    """Evaluations of `code`, and of `clip`, which knows `second` as much by itself and errs elsewhere."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) // 2 % 2
    side = 2 * labels - 1
    code = 1.0 * side + rng.normal(size=count)
    clip = 0.4 * (second * side + rng.normal(size=count)) + 2  # of another scale: calibration has to mend it
    folders = [write(tmp_path / "code", "code", code, labels, sources=sources)]
    return [*folders, write(tmp_path / "clip", "clip", clip, labels, sources=sources)], labels


def test_what_two_know_together_becomes_a_policy(tmp_path: Path) -> None:
    """The fused AUC is near what theory has for the sum, the interval lies above zero, and the worker's CEL decides as
    the fusion does, image by image; not asked about, none is judged.
    """
    folders, labels = two(tmp_path, second=1.0)
    out = tmp_path / "policy.toml"
    found = fuse(folders, out)
    assert found["kept_together"] == "sources" and found["written"] == str(out)
    assert found["auc"]["fused"] == pytest.approx(0.977, abs=0.012)  # Phi(2): both deviates are worth d' = 2 sqrt(2)
    assert found["gain"]["low"] > 0.02 and found["gain"]["value"] == pytest.approx(
        found["auc"]["fused"] - max(found["auc"]["scores.linear"], found["auc"]["detectors.clip.linear"])
    )
    policy = load_policy(out)
    assert policy.calibration is not None
    assert policy.calibration.model_version == VERSIONS["code"]
    assert policy.calibration.detectors == {"clip": VERSIONS["clip"]}
    scores = np.stack([read_scores(folder).of("linear") for folder in folders], axis=1)
    odds = Fusion.fit(["scores.linear", "detectors.clip.linear"], scores, labels).odds(scores)
    edge = math.log(9)
    expected = np.where(odds >= edge, "fake", np.where(odds < -edge, "real", "review"))
    decided = [policy.decide(facts(*row)).decision for row in scores]
    assert set(decided) == {"fake", "real", "review"} and decided == expected.tolist()
    assert policy.decide(facts(0.99, None)).decision == "review"


def facts(code: float, clip: float | None) -> Facts:
    image = ImageInfo(format="jpeg", width=640, height=640, bytes=9)
    others = {} if clip is None else {"clip": DetectorScores(version=VERSIONS["clip"], scores={"linear": clip})}
    return Facts(Scores(linear=code, knn=0.5, svm=0.5), image, Evidence(), others)


def test_a_second_that_knows_nothing_is_refused_with_the_figures(tmp_path: Path) -> None:
    """Exit 1, no file, and the line has gain and interval, which does not lie above zero."""
    folders, _ = two(tmp_path, second=0.0)
    out = tmp_path / "policy.toml"
    result = CliRunner().invoke(app, ["fuse", *map(str, folders), "--out", str(out), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and not out.exists() and found["written"] is None
    assert found["gain"]["low"] <= 0 and found["best_alone"] == "scores.linear"
    assert "not written" in result.stderr and f"{found['gain']['low']:+.4f}" in result.stderr


def test_the_same_detector_twice_gains_nothing(tmp_path: Path) -> None:
    """Copies of one score are no second opinion."""
    rng = np.random.default_rng(3)
    labels = np.arange(400) // 2 % 2
    odds = 2 * labels - 1 + rng.normal(size=400)
    folders = [write(tmp_path / name, name, odds, labels) for name in ("code", "clip")]
    assert fuse(folders, tmp_path / "policy.toml")["written"] is None


def test_images_that_were_fitted_on_are_left_out(tmp_path: Path) -> None:
    """By the card of either model; few sources mean that photographs are kept together, and that is said."""
    folders, _ = two(tmp_path, second=1.0, sources=3)
    (folders[1] / "card.json").write_text(json.dumps({"fitted_on": {"heads": {"photographs": [f"{7:016x}"]}}}))
    told: list[str] = []
    found = fuse(folders, tmp_path / "policy.toml", say=told.append)
    assert found["images"] == {"real": 400, "fake": 399, "fitted_on": 1}
    assert found["kept_together"] == "photographs" and "sources are too few" in told[0]


def test_cel_computes_the_curve(tmp_path: Path) -> None:
    """Below, between and beyond its points; and a curve through one point is level."""
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 2
    curve = Curve.fit(1 / (1 + np.exp(-(rng.normal(size=300) + labels))), labels)
    assert list(curve.at) == sorted(curve.at) and np.all(np.diff(curve.odds) > 0)
    from worker.policy.expression import activation, compile_expression

    for score in (0.0, 0.2, 0.41, 0.777, 1.0):
        value = float(curve(np.array([score]))[0])
        close = (
            f"{curve.cel('scores.linear')} > {value - 1e-3:.6f} && {curve.cel('scores.linear')} < {value + 1e-3:.6f}"
        )
        close = close.replace("> -", "> 0.0 - ").replace("< -", "< 0.0 - ")
        assert compile_expression(close).holds(activation({"scores": {"linear": score}}))
    assert Curve((0.5,), (1.0,)).cel("s") == "(s < 0.5 ? 1.0 : (1.0))"


def test_the_bootstrap_agrees_with_delong(tmp_path: Path) -> None:
    """Against scores that tell nothing the gain is the AUC less a half, and its interval about as wide as the AUC's."""
    rng = np.random.default_rng(2)
    labels = np.arange(600) % 2
    scores = rng.normal(size=600) + labels
    value, low, high = paired_gain(labels, np.zeros(600), scores, np.arange(600))
    ends = auc_interval(labels, scores, np.arange(600))
    assert value == pytest.approx(auc_of(labels, scores) - 0.5)
    assert (low + 0.5, high + 0.5) == pytest.approx(ends, abs=0.01)


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (["code"], {}, "two evaluations or more"),
        (["code", "code"], {}, "of one detector"),
        (["code", "clip"], {"head": "svm"}, "no scores of head svm"),
        (["code", "clip"], {"fake_from": 0.05}, "--fake-from"),
    ],
)
def test_what_cannot_be_fused_is_named(names: list[str], options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """Too few folders, one detector twice, another head, thresholds the wrong way round."""
    two(tmp_path, second=1.0, count=200)
    with pytest.raises(DataError, match=problem):
        fuse([tmp_path / name for name in names], tmp_path / "policy.toml", **options)


def test_too_few_images_are_told(tmp_path: Path) -> None:
    folders, _ = two(tmp_path, second=1.0, count=60)
    with pytest.raises(DataError, match="at least 50 of each"):
        fuse(folders, tmp_path / "policy.toml")
