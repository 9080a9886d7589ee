"""Evaluation as a paper would: the authors' protocol, metrics per generator with confidence intervals, robustness
sweeps.

    python -m train.main evaluate --weights DIR --data D3_TEST --out results/code
    python -m train.main evaluate --backbone timm:resnet50 --fit-on TRAIN --data D3_TEST --out results/resnet50

Writes `results.json`, `scores.csv` (one row an image) and `embeddings.npz` (for the report). Every image format is
read; what cannot be read is named in the results, never dropped in silence. A stopped evaluation goes on where it was.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from train.data.copies import merge_copies
from train.data.look import Look, look_at
from train.data.records import Labelled, Problem, limit_per_class
from train.degrade import SWEEPS
from train.embed import Embedded, Passes
from train.heads import Calibration, Heads
from train.metrics import Ranked, accuracies, summarise, with_intervals
from train.model import Backbone
from train.progress import counting
from triton_models.weights import FAKE, HEADS, REAL

RESULTS, SCORES_FILE, EMBEDDINGS = "results.json", "scores.csv", "embeddings.npz"
# D3's four generators, under its own names and those of the folders that images elsewhere carry.
TRAINED_ON = re.compile(
    r"^(gen_[0-3]|d3[-_].*|deepfloyd.*|if-i+-.*|(sd|stable-diffusion)[-_ "
    r"]?(v?1[.-]4|2[.-]1.*)|(sdxl|stable-diffusion-xl)([-_ ]1[.-]0|-base.*)?)$",
    re.IGNORECASE,
)
GAN = re.compile(r"^gan|gan(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Options:
    """`resamples` of the bootstrap; `robustness` runs the sweeps on at most `sweep_images` of each class."""

    calibration: Calibration | None = None
    resamples: int = 1000
    robustness: bool = False
    sweep_images: int = 500


def family(generator: str) -> str:
    """`trained on` (D3's generators), `GAN`, or `unseen`."""
    if TRAINED_ON.match(generator):
        return "trained on"
    return "GAN" if GAN.search(generator) else "unseen"


def evaluate(
    backbone: Backbone,
    heads: Heads,
    images: list[Labelled],
    out: Path,
    options: Options | None = None,
    *,
    left_out: Sequence[Problem] = (),
    about: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure `heads` on embeddings of `images` and write the results below `out`; returns what results.json holds.

    `left_out` is what the look at the data left out (`Source.left_out`): named and counted with what cannot be read
    now. `about` (model version, data, …) is kept with the results. Raises ValueError for a calibration that the heads
    do not have.
    """
    options = options or Options()
    passes = Passes(backbone, images, out)
    with counting(console, "images", len(images)) as advance:
        embedded = passes.embed("as received", images, advance=advance)
    for line in embedded.failed:
        _say(console, f"cannot be read: {line}")
    scores = heads.scores(embedded.embeddings, options.calibration)
    unreadable = [
        f"{problem.path}: {problem.detail}" for problem in left_out if problem.kind == "corrupt"
    ] + embedded.failed
    others = [str(problem) for problem in left_out if problem.kind != "corrupt"]
    results: dict[str, Any] = {
        "backbone": backbone.name,
        "about": dict(about or {}),
        "calibration": options.calibration,
        "not_calibrated": heads.not_calibrated if options.calibration else [],
        "images": {
            "real": int((embedded.labels == REAL).sum()),
            "fake": int((embedded.labels == FAKE).sum()),
            "unreadable": len(unreadable),
            "left_out": len(others),
        },
        "unreadable": unreadable,
        "left_out": others,
        "intervals": f"95 %, percentile bootstrap, {options.resamples} resamples within each class",
        "protocol": protocol(embedded, scores),
        "rows": rows(embedded, scores, options.resamples),
    }
    if options.robustness:
        results["robustness"] = sweep(passes, heads, embedded.images, options, console=console)
    (out / RESULTS).write_text(json.dumps(_finite(results), indent=2) + "\n")
    _write_scores(out / SCORES_FILE, embedded.images, look_at(embedded.images, console), scores)
    generators = np.array([image.generator for image in embedded.images], dtype=np.str_)
    np.savez_compressed(
        out / EMBEDDINGS, embeddings=embedded.embeddings, labels=embedded.labels, generators=generators, scores=scores
    )
    passes.finish()
    return results


def protocol(embedded: Embedded, scores: np.ndarray) -> dict[str, Any]:
    """The authors' table: for each group ({augm, no_augm}, or one) and generator the accuracies of each head at 0.5."""
    table: dict[str, Any] = {}
    for group, generator, chosen in _comparisons(embedded):
        flagged = scores[chosen] >= 0.5
        table.setdefault(group or "all", {})[generator] = {
            head: accuracies(embedded.labels[chosen], flagged[:, index]) for index, head in enumerate(HEADS)
        }
    return table


def rows(embedded: Embedded, scores: np.ndarray, resamples: int) -> list[dict[str, Any]]:
    """Metrics with intervals: all images, each family, each generator, always against all reals of the same group.

    `family` is the row's own for a family, the generator's for a generator, and None for all images.
    """
    made: list[dict[str, Any]] = []
    groups = sorted({image.group for image in embedded.images})
    generators = np.array([image.generator for image in embedded.images], dtype=object)
    families = np.array([family(name) for name in generators], dtype=object)
    in_group = np.array([image.group for image in embedded.images], dtype=object)
    labels = embedded.labels
    for group in groups:
        inside = in_group == group
        selections = [("all", "all", inside)]
        selections += [
            (name, "family", inside & ((labels == REAL) | (families == name)))
            for name in ("trained on", "unseen", "GAN")
        ]
        names = sorted(
            {name for name, label, here in zip(generators, labels, inside, strict=True) if here and label == FAKE}
        )
        selections += [(name, "generator", inside & ((labels == REAL) | (generators == name))) for name in names]
        for name, kind, chosen in selections:
            fakes = int((labels[chosen] == FAKE).sum())
            if not fakes:
                continue
            metrics = {
                head: with_intervals(labels[chosen], scores[chosen, index], resamples=resamples)
                for index, head in enumerate(HEADS)
            }
            of = {"all": None, "family": name, "generator": family(name)}[kind]
            made.append({"group": group, "name": name, "kind": kind, "family": of, "fakes": fakes, "metrics": metrics})
    return made


def _comparisons(embedded: Embedded) -> list[tuple[str, str, np.ndarray]]:
    labels = embedded.labels
    found: list[tuple[str, str, np.ndarray]] = []
    for group in sorted({image.group for image in embedded.images}):
        inside = np.array([image.group == group for image in embedded.images], dtype=bool)
        names = sorted({image.generator for image in embedded.images if image.group == group and image.label == FAKE})
        for name in names:
            of_generator = np.array([image.generator == name for image in embedded.images], dtype=bool)
            found.append((group, name, inside & ((labels == REAL) | of_generator)))
    return found


def sweep(
    passes: Passes, heads: Heads, images: list[Labelled], options: Options, *, console: Console | None = None
) -> dict[str, Any]:
    """Per kind and strength of degradation the metrics of each head, on the same images every time."""
    chosen = limit_per_class(images, options.sweep_images)
    result: dict[str, Any] = {}
    for kind, strengths in {"none": {"": None}, **SWEEPS}.items():
        for strength, degrade in strengths.items():
            with counting(console, f"{kind} {strength}", len(chosen)) as advance:
                embedded = passes.embed(f"{kind} {strength}", chosen, degrade, advance=advance)
            for line in embedded.failed:
                _say(console, f"{kind} {strength}: left out: {line}")
            scores = heads.scores(embedded.embeddings, options.calibration)
            by_head = {
                head: summarise(Ranked.of(embedded.labels, scores[:, index])) for index, head in enumerate(HEADS)
            }
            result.setdefault(kind, {})[strength] = by_head
            _say(console, f"robustness: {kind} {strength}: linear AUC {by_head['linear']['auc']:.3f}")
    return result


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def headline(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text for the terminal: name, fakes, then AUC and balanced accuracy of each head with its interval."""
    lines: list[tuple[str, ...]] = []
    for row in results["rows"]:
        cells = [f"{row['group']}/{row['name']}".lstrip("/"), str(row["fakes"])]
        for head in HEADS:
            for metric in ("auc", "balanced_accuracy"):
                entry = row["metrics"][head][metric]
                cells.append(f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]")
        lines.append(tuple(cells))
    return lines


def _finite(value: Any) -> Any:
    """NaN is no JSON: null says that a metric has no value there."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_scores(path: Path, images: list[Labelled], looks: Sequence[Look | str], scores: np.ndarray) -> None:
    """A row an image: what it is, whose photograph (copies have one), what its header says, its scores."""
    seen = [look for look in looks if isinstance(look, Look)]
    names = iter(merge_copies([look.photograph for look in seen], [look.fingerprint for look in seen]))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["photograph", "format", "width", "height", "bytes", "jpeg_quality"]
        writer.writerow(["id", "group", "label", "generator", *header, *HEADS])
        for image, look, row in zip(images, looks, scores, strict=True):
            label = "fake" if image.label == FAKE else "real"
            if isinstance(look, Look):
                info = look.info
                facts = [next(names), info.format, info.width, info.height, info.bytes, info.jpeg_quality]
            else:
                facts = [image.id, look, "", "", "", ""]
            numbers = [repr(float(score)) for score in row]
            writer.writerow([image.id, image.group, label, image.generator, *facts, *numbers])
