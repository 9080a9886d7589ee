"""The report: one self-contained HTML page with figures (also written as PNG), from an evaluation and the run that it judges.

    python -m train.main report --results results/code --run runs/first --out report

No scripts and nothing fetched from outside, so that the page opens anywhere, also from a mail or on a phone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from train import figures
from train.data.images import DataError
from train.data.inspect import gather, summary
from train.data.records import Labelled
from train.evaluate import EMBEDDINGS, RESULTS
from train.run_folder import read_metrics
from triton_models.weights import SCORES

PAGE = "report.html"
_CAPTIONS = {
    "tsne_label": "Embeddings by label",
    "tsne_generator": "Embeddings by generator",
    "roc": "ROC of the three heads",
    "det": "Detection error trade-off",
    "histograms": "Scores by label",
    "reliability": "Reliability: is a score of 0.8 right in 80 % of cases?",
    "robustness": "Robustness to what happens to images on their way",
    "training": "Training",
    "shortcuts": "Properties of the files by label: what must not give the answer away",
}
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_METRIC_NAMES = {
    "auc": "AUC",
    "average_precision": "AP",
    "balanced_accuracy": "balanced acc.",
    "tpr_at_1pct_fpr": "TPR at 1 % FPR",
    "tpr_at_0.1pct_fpr": "TPR at 0.1 % FPR",
    "ece": "ECE",
}


def write_report(results_folder: Path, out: Path, *, run: Path | None = None, data: Sequence[Labelled] | None = None) -> Path:
    """Write `out`/report.html and its figures; `run` adds curves and recipe, `data` the check for shortcuts.

    Raises DataError if `results_folder` holds no evaluation.
    """
    if not (results_folder / RESULTS).exists():
        raise DataError(f"{results_folder / RESULTS} is not there: run `train.main evaluate --out {results_folder}` first")
    results = json.loads((results_folder / RESULTS).read_text())
    with np.load(results_folder / EMBEDDINGS) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    facts = summary(gather(data)) if data else None
    drawn = _draw(results, stored, read_metrics(run) if run else [], facts)
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}
    for name, figure in drawn.items():
        path = out / f"{name}.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        pictures[name] = base64.b64encode(path.read_bytes()).decode()
    page = (
        Environment(autoescape=True)
        .from_string(_TEMPLATE.read_text())
        .render(
            results=results,
            warnings=facts["warnings"] if facts else [],
            heads=SCORES,
            metrics=_METRIC_NAMES,
            number=lambda value: "-" if value is None else f"{value:.3f}",
            pictures=pictures,
            captions=_CAPTIONS,
            recipe=_read(run, "recipe.toml"),
            environment=_read(run, "environment.json"),
        )
    )
    (out / PAGE).write_text(page)
    return out / PAGE


def _draw(
    results: Mapping[str, Any], stored: Mapping[str, np.ndarray], metrics: list[dict[str, Any]], facts: Mapping[str, Any] | None
) -> dict[str, Figure]:
    labels, scores = stored["labels"], stored["scores"]
    drawn = figures.tsne(stored["embeddings"], labels, stored["generators"])
    if len(set(labels.tolist())) == 2:
        drawn |= {"roc": figures.roc(labels, scores), "det": figures.det(labels, scores), "reliability": figures.reliability(labels, scores)}
    drawn["histograms"] = figures.histograms(labels, scores)
    if "robustness" in results:
        drawn["robustness"] = figures.robustness(results["robustness"])
    if any(line["kind"] == "step" for line in metrics):
        drawn["training"] = figures.training(metrics)
    if facts:
        drawn["shortcuts"] = figures.shortcuts(facts["counts"])
    return drawn


def _read(run: Path | None, name: str) -> str | None:
    return (run / name).read_text() if run is not None and (run / name).exists() else None
