"""Evaluation as a paper would: the authors' protocol, metrics per generator with confidence intervals, robustness
sweeps.

    python -m train.main evaluate --weights DIR --data D3_TEST --out results/code
    python -m train.main evaluate --backbone timm:resnet50 --fit-on TRAIN --data D3_TEST --out results/resnet50
    python -m train.main evaluate --detector DIR --data D3_TEST --out results/clip

Writes `results.json`, `scores.csv` (one row an image) and `embeddings.npz` (for the report). Every image format is
read; what cannot be read is named in the results, never dropped in silence. A stopped evaluation goes on where it was.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from train.data.copies import merge_copies
from train.data.equalise import controlled
from train.data.look import Look, look_at
from train.data.records import Labelled, Problem
from train.embed import Embedded, Embedder, Passes
from train.fitted import HASH_DIGITS
from train.heads import Calibration, Scorer
from train.intervals import auc_interval
from train.metrics import accuracies, with_intervals
from train.progress import counting
from train.robustness import sweep
from train.shortcuts import LOUD, probe
from train.temporal import Release, read_releases, table
from triton_models.weights import FAKE, HEADS, REAL

RESULTS, SCORES_FILE, EMBEDDINGS = "results.json", "scores.csv", "embeddings.npz"
UNTRAINED = "untrained backbone"  # in `about`, of a timm backbone without its weights
GAN = re.compile(r"^gan|gan(?![a-z])", re.IGNORECASE)
NOT_KNOWN = "not known"  # whether a generator was trained on


@dataclass(frozen=True)
class Options:
    """`resamples` of the bootstrap; `robustness` runs the sweeps on at most `sweep_images` of each class; `controlled`
    measures the images cut and compressed alike too. `fitted_hashes`, `trained_on` (generators, None: not known) and
    `not_checked` (images that were fitted on and have no hash): what the card of the weights says. `releases`: see
    train/temporal.py.
    """

    calibration: Calibration | None = None
    resamples: int = 1000
    robustness: bool = False
    sweep_images: int = 500
    controlled: bool = True
    fitted_hashes: frozenset[str] = frozenset()
    trained_on: frozenset[str] | None = None
    not_checked: int | str = 0
    releases: tuple[Release, ...] = ()


def family(generator: str, trained_on: Collection[str] | None) -> str:
    """`trained on`, `GAN` (one that was not) or `unseen`; `not known` where nobody noted what was trained on."""
    if trained_on is None:
        return NOT_KNOWN
    if generator in trained_on:
        return "trained on"
    return "GAN" if GAN.search(generator) else "unseen"


def evaluate(
    backbone: Embedder,
    heads: Scorer,
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
    looks = look_at(embedded.images, console)
    photographs = names_of_photographs(embedded.images, looks)
    measured, shown, whose = embedded, scores, photographs
    results: dict[str, Any] = {
        "backbone": backbone.name,
        "heads": list(heads.names),
        "about": dict(about or {}),
        "calibration": options.calibration,
        "not_calibrated": heads.not_calibrated if options.calibration else [],
        **_counted(embedded, left_out),
        "intervals": "95 % by photograph: DeLong's for the AUC, Wilson's for balanced accuracy, else bootstrap; none "
        "where too few photographs stand behind a number",
        "protocol": protocol(embedded, scores, heads.names),
        "rows": rows(embedded, scores, options, photographs, heads.names),
        "shortcuts": shortcuts(looks, embedded.labels, photographs),
        "fitted_on": among(photographs, looks, options.fitted_hashes),
        "not_checked": options.not_checked,
    }
    if options.controlled:
        measured, whose = _alike(passes, embedded, photographs, console)
        shown = heads.scores(measured.embeddings, options.calibration)
        results["controlled"] = rows(measured, shown, options, whose, heads.names)
    made_by = np.array([image.generator for image in measured.images], dtype=np.str_)
    releases = options.releases or read_releases()
    results["temporal"] = table(measured.labels, shown, made_by, whose, releases, heads.names)
    if options.robustness:
        calibration, most = options.calibration, options.sweep_images
        results["robustness"] = sweep(
            passes, heads, embedded.images, photographs, most=most, calibration=calibration, console=console
        )
    (out / RESULTS).write_text(json.dumps(finite(results), indent=2) + "\n")
    _write_scores(out / SCORES_FILE, embedded.images, looks, photographs, scores, heads.names)
    _write_embeddings(out / EMBEDDINGS, embedded, scores)
    passes.finish()
    return results


def _alike(
    passes: Passes, embedded: Embedded, photographs: np.ndarray, console: Console | None
) -> tuple[Embedded, np.ndarray]:
    """The images cut and compressed alike, and their photographs."""
    with counting(console, "images cut and compressed alike", len(embedded.images)) as advance:
        alike = passes.embed("controlled", embedded.images, controlled, advance=advance)
    place = {id(image): index for index, image in enumerate(embedded.images)}
    return alike, photographs[[place[id(image)] for image in alike.images]]


def _counted(embedded: Embedded, left_out: Sequence[Problem]) -> dict[str, Any]:
    """How many images were measured, and which were not: unreadable, or left out before."""
    unreadable = [f"{one.path}: {one.detail}" for one in left_out if one.kind == "corrupt"] + embedded.failed
    others = [str(problem) for problem in left_out if problem.kind != "corrupt"]
    counts = {
        "real": int((embedded.labels == REAL).sum()),
        "fake": int((embedded.labels == FAKE).sum()),
        "unreadable": len(unreadable),
        "left_out": len(others),
    }
    return {"images": counts, "unreadable": unreadable, "left_out": others}


def protocol(embedded: Embedded, scores: np.ndarray, heads: Sequence[str] = HEADS) -> dict[str, Any]:
    """The authors' table: for each group ({augm, no_augm}, or one) and generator the accuracies of each head at 0.5."""
    table: dict[str, Any] = {}
    for group, generator, chosen in _comparisons(embedded):
        flagged = scores[chosen] >= 0.5
        table.setdefault(group or "all", {})[generator] = {
            head: accuracies(embedded.labels[chosen], flagged[:, index]) for index, head in enumerate(heads)
        }
    return table


def names_of_photographs(images: Sequence[Labelled], looks: Sequence[Look | str]) -> np.ndarray:
    """Whose photograph each image is: cuts and copies of one have one name."""
    names = [look.photograph if isinstance(look, Look) else image.id for image, look in zip(images, looks, strict=True)]
    prints = [look.fingerprint if isinstance(look, Look) else 0 for look in looks]
    return np.array(merge_copies(names, prints), dtype=object).astype(str)


def among(photographs: np.ndarray, looks: Sequence[Look | str], hashes: Collection[str]) -> int:
    """How many images are of a photograph that has one of the `hashes`, itself or as a copy in the same data."""
    known = {
        photograph
        for photograph, look in zip(photographs.tolist(), looks, strict=True)
        if isinstance(look, Look) and not {look.photograph[:HASH_DIGITS], look.sha256[:HASH_DIGITS]}.isdisjoint(hashes)
    }
    return sum(name in known or name[:HASH_DIGITS] in hashes for name in photographs.tolist())


def shortcuts(looks: Sequence[Look | str], labels: np.ndarray, photographs: np.ndarray) -> dict[str, float | None]:
    """See train/shortcuts.py."""
    kept = [index for index, look in enumerate(looks) if isinstance(look, Look)]
    infos = [look.info for look in looks if isinstance(look, Look)]
    return probe(infos, labels[kept], photographs[kept])


def rows(
    embedded: Embedded,
    scores: np.ndarray,
    options: Options | None = None,
    photographs: np.ndarray | None = None,
    heads: Sequence[str] = HEADS,
) -> list[dict[str, Any]]:
    """Metrics with intervals: all images, each family, each generator, always against all reals of the same group. All
    images and families have the AUC's interval by source beside it.

    `family` is the row's own for a family, the generator's for a generator, and None for all images.
    """
    options = options or Options()
    made: list[dict[str, Any]] = []
    generators = np.array([image.generator for image in embedded.images], dtype=object)
    families = np.array([family(name, options.trained_on) for name in generators], dtype=object)
    in_group = np.array([image.group for image in embedded.images], dtype=object)
    labels = embedded.labels
    whose = np.arange(len(labels)) if photographs is None else photographs
    sources = np.array([f"{label} {name}" for label, name in zip(labels, generators, strict=True)], dtype=np.str_)
    for group in sorted(set(in_group)):
        inside = in_group == group
        selections = [("all", "all", inside)]
        selections += [
            (name, "family", inside & ((labels == REAL) | (families == name)))
            for name in ("trained on", "unseen", "GAN")
        ]
        names = sorted(set(generators[inside & (labels == FAKE)]))
        selections += [(name, "generator", inside & ((labels == REAL) | (generators == name))) for name in names]
        for name, kind, chosen in selections:
            fakes = int((labels[chosen] == FAKE).sum())
            if not fakes:
                continue
            metrics = {
                head: with_intervals(labels[chosen], scores[chosen, at], whose[chosen], resamples=options.resamples)
                for at, head in enumerate(heads)
            }
            if kind != "generator":
                for index, head in enumerate(heads):
                    ends = auc_interval(labels[chosen], scores[chosen, index], sources[chosen], by_source=True)
                    metrics[head]["auc"] |= {"source_low": ends[0], "source_high": ends[1]}
            of = {"all": None, "family": name, "generator": family(name, options.trained_on)}[kind]
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


def heads_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads that were measured: of a detector some of them. Results of before detectors had all."""
    return tuple(results.get("heads", HEADS))


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def leaks(results: dict[str, Any]) -> list[str]:
    """What the reader has to know before any figure: what the files alone give away, and what was fitted on."""
    told = [
        f"{name} of the files alone tells real from generated with {value:.0%} balanced accuracy"
        for name, value in results.get("shortcuts", {}).items()
        if value is not None and value >= LOUD
    ]
    if results.get("not_checked"):
        told.append(f"not checked against the images of the fit that have no hash: {results['not_checked']}")
    if results.get("fitted_on"):
        told.append(f"{results['fitted_on']} of the images are among those that the weights were fitted on")
    return told


def headline(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of text for the terminal: name, fakes, then AUC and balanced accuracy of each head with its interval; of the
    images cut and compressed alike where these were measured.
    """
    lines: list[tuple[str, ...]] = []
    for row in results.get("controlled", results["rows"]):
        cells = [f"{row['group']}/{row['name']}".lstrip("/"), str(row["fakes"])]
        for head in heads_of(results):
            for metric in ("auc", "balanced_accuracy"):
                entry = row["metrics"][head][metric]
                held = entry["low"] is not None and math.isfinite(entry["low"])
                cells.append(f"{entry['value']:.3f}" + (f" [{entry['low']:.3f}, {entry['high']:.3f}]" if held else ""))
        lines.append(tuple(cells))
    return lines


def finite(value: Any) -> Any:
    """NaN is no JSON: null says that a metric has no value there."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_embeddings(path: Path, embedded: Embedded, scores: np.ndarray) -> None:
    generators, groups = (
        np.array([getattr(image, name) for image in embedded.images], dtype=np.str_) for name in ("generator", "group")
    )
    np.savez_compressed(
        path,
        embeddings=embedded.embeddings,
        labels=embedded.labels,
        generators=generators,
        groups=groups,
        scores=scores,
    )


def _write_scores(
    path: Path,
    images: list[Labelled],
    looks: Sequence[Look | str],
    photographs: np.ndarray,
    scores: np.ndarray,
    heads: Sequence[str],
) -> None:
    """A row an image: what it is, whose photograph (copies have one), what its header says, its scores."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["photograph", "format", "width", "height", "bytes", "jpeg_quality"]
        writer.writerow(["id", "group", "label", "generator", *header, *heads])
        for image, look, photograph, row in zip(images, looks, photographs, scores, strict=True):
            label = "fake" if image.label == FAKE else "real"
            facts: list[Any] = [photograph, look, "", "", "", ""]
            if isinstance(look, Look):
                info = look.info
                facts = [photograph, info.format, info.width, info.height, info.bytes, info.jpeg_quality]
            numbers = [repr(float(score)) for score in row]
            writer.writerow([image.id, image.group, label, image.generator, *facts, *numbers])
