"""Paired comparisons of evaluations, and the simulation that says whether intervals hold."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from train import coverage, intervals
from train.compare import compare, holm
from train.data.images import DataError
from train.main import app
from train.metrics import Ranked, summarise

pytestmark = pytest.mark.slow


def write(folder: Path, deviates: np.ndarray, labels: np.ndarray, first: int = 0) -> Path:
    """A scores.csv as `evaluate` writes it, of images numbered from `first`."""
    folder.mkdir()
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "group", "label", "generator", "photograph", "linear", "knn", "svm"])
        for index, (value, label) in enumerate(zip(1 / (1 + np.exp(-deviates)), labels, strict=True)):
            source = f"s{index % 100}"
            name = f"image-{first + index}"
            writer.writerow([name, "", "fake" if label else "real", source, name, *([repr(float(value))] * 3)])
    return folder


def auc(labels: np.ndarray, deviates: np.ndarray) -> float:
    return summarise(Ranked.of(labels, 1 / (1 + np.exp(-deviates))))["auc"]


def test_a_worse_model_is_told_apart_on_the_same_images(tmp_path: Path) -> None:
    """The difference is that of the two AUCs on the images of both, its interval lies below zero, and the p-values are
    Holm's; a model compared with itself differs nowhere.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    good = rng.normal(size=600) + 2 * labels - 1
    worse = good + 1.5 * rng.normal(size=600)
    folders = [write(tmp_path / "good", good, labels), write(tmp_path / "worse", worse, labels)]
    folders.append(write(tmp_path / "part", good[100:], labels[100:], first=100))
    rows = [row for row in compare(folders) if row["head"] == "linear"]
    expected = auc(labels, worse) - auc(labels, good)
    assert rows[0]["auc"]["difference"] == pytest.approx(expected) and rows[0]["auc"]["high"] < 0
    assert rows[0]["auc"]["p"] < rows[0]["auc"]["p_holm"] < 0.01 and rows[0]["auc_by_source"]["high"] < 0
    assert rows[0]["balanced_accuracy"]["high"] < 0
    assert rows[1]["images"] == 500 and rows[1]["auc"]["difference"] == 0 and math.isnan(rows[1]["auc"]["low"])
    result = CliRunner().invoke(app, ["compare", str(folders[0]), str(folders[1]), "--json"])
    assert json.loads(result.stdout)[0]["auc"]["difference"] == pytest.approx(expected)
    assert "-0." in CliRunner().invoke(app, ["compare", str(folders[0]), str(folders[1])]).stdout


def test_what_cannot_be_paired_is_named(tmp_path: Path) -> None:
    """Other images, one folder alone, and a folder without scores are refused in a line."""
    labels, rng = np.arange(80) % 2, np.random.default_rng(1)
    one, other = (write(tmp_path / str(at), rng.normal(size=80), labels, at) for at in (0, 1000))
    with pytest.raises(DataError, match="0 images in common"):
        compare([one, other])
    with pytest.raises(DataError, match="two folders"):
        compare([one])
    with pytest.raises(DataError, match=r"scores\.csv is not there"):
        compare([one, tmp_path])


def test_holm_by_hand() -> None:
    """Three tests: the smallest times three, the next times two, never falling; what has no p-value does not count."""
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)


def test_few_sources_have_no_interval() -> None:
    """Nine tenths of the images from one collection are as good as one source, however many names there are."""
    rng = np.random.default_rng(2)
    labels = np.arange(2000) % 2
    scores = rng.normal(size=2000) + labels
    even, lopsided = np.arange(2000) % 60, np.where(rng.random(2000) < 0.9, 0, np.arange(2000) % 60)
    assert np.isfinite(intervals.auc_interval(labels, scores, even, by_source=True)).all()
    assert np.isnan(intervals.auc_interval(labels, scores, lopsided, by_source=True)).all()


@pytest.mark.parametrize("name", ["30 of each class", "copies of photographs", "sources that differ much"])
def test_intervals_hold_in_a_small_simulation(name: str) -> None:
    """150 draws of each are within three deviations of 95 %; `train.main coverage` takes 500 of all populations."""
    population = next(one for one in coverage.POPULATIONS if one.name == name)
    rows = coverage.coverage(population, 150, resamples=100, seed=1)
    assert rows and all(0.9 <= row["covers"] <= 1 for row in rows), rows


def test_the_simulation_finds_intervals_that_are_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts of a photograph counted as draws of their own give intervals that do not hold: it says so."""
    population = next(one for one in coverage.POPULATIONS if one.copies)
    true = intervals._variance
    monkeypatch.setattr(intervals, "_variance", lambda parts, clusters: true(parts, np.arange(len(parts))))
    rows = {row["interval"]: row for row in coverage.coverage(population, 100, resamples=100)}
    assert not coverage.holds(rows["auc"]) and not coverage.holds(rows["difference of auc"])
