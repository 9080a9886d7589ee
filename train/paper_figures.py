"""The figures of `train.main paper`: crops and views, samples by record, maps side by side, robustness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.manifold import TSNE

from train.data.images import BadImage, decode_image
from train.data.records import Labelled
from train.evaluate import EMBEDDINGS
from train.figures import MARKERS, PALETTE, SHOWN_GENERATORS, TSNE_POINTS
from train.paper import Model, Result
from train.paper_tables import of_tier
from train.recipe import Recipe
from train.transforms.views import make_views, plan_views
from triton_models.weights import FAKE, REAL

UNTRANSFORMED, TRANSFORMED = ("", "no_augm"), ("augm",)
MAPS_BESIDE = 3  # in a row
_SAMPLES = 5  # records shown, and generators of each


def overview(real: Labelled, fake: Labelled, recipe: Recipe) -> Figure:
    """The eight views of a record as the recipe draws them, boxes of the crops on the images."""
    images = {"real": decode_image(real.key.read()), "fake": decode_image(fake.key.read())}
    plans = plan_views(
        images["real"].size,
        images["fake"].size,
        f"{real.id}+{fake.id}",
        recipe.views,
        seed=recipe.training.seed,
        epoch=0,
    )
    views = make_views(images["real"], images["fake"], plans)
    figure, panels = plt.subplots(2, 5, figsize=(11, 5), layout="constrained")
    names = {"": "clean view", "_T": "under T", "_global": "global crop, T", "_local": "local crop, T"}
    for row, (label, image) in zip(panels, images.items(), strict=True):
        row[0].imshow(image)
        row[0].set_title(f"{'generated' if label == 'fake' else 'real'}, {image.width} x {image.height}", fontsize=10)
        for index, ending in enumerate(("_global", "_local")):
            box = plans[label + ending].box
            if box is not None:
                top, left, height, width = box
                style: dict[str, Any] = {"fill": False, "linewidth": 2.5, "edgecolor": PALETTE[index]}
                row[0].add_patch(Rectangle((left, top), width, height, **style))
        for axes, (ending, name) in zip(row[1:], names.items(), strict=True):
            view = views[label + ending]
            axes.imshow(view.permute(1, 2, 0).numpy())
            axes.set_title(f"{name}, {view.shape[-1]} px", fontsize=10)
        for axes in row:
            axes.axis("off")
    return figure


def records_of(images: Sequence[Labelled]) -> list[list[Labelled]]:
    """The images of one record together, real first, most complete first and untransformed before transformed: by the
    record's id in shards, by the file's name in folders. Empty where no real shares its name with a fake.
    """
    found: dict[tuple[str, str], list[Labelled]] = defaultdict(list)
    for image in images:
        stem = image.id.rsplit(".", 1)[0] if image.key.size_bytes is not None else Path(image.key.path).stem
        found[image.group, stem].append(image)
    whole = [sorted(members, key=lambda one: (one.label, one.generator)) for members in found.values()]
    whole = [members for members in whole if {one.label for one in members} == {REAL, FAKE}]
    return sorted(whole, key=lambda members: (-len(members), members[0].group in TRANSFORMED))


def samples(images: Sequence[Labelled]) -> Figure:
    """Rows of records, a column a source; where the data have no records, a column of unrelated images each."""
    records = records_of(images)[:_SAMPLES]
    if records:
        columns = list(dict.fromkeys(one.generator for record in records for one in record))
        cells = [
            [next((one for one in record if one.generator == name), None) for name in columns] for record in records
        ]
    else:
        by_source: dict[str, list[Labelled]] = defaultdict(list)
        for image in images:
            by_source["real" if image.label == REAL else image.generator].append(image)
        columns = ["real", *sorted((name for name in by_source if name != "real"), key=lambda n: -len(by_source[n]))]
        columns = columns[: _SAMPLES + 1]
        rows = range(min(_SAMPLES, max(len(by_source[name]) for name in columns)))
        cells = [[by_source[name][row] if row < len(by_source[name]) else None for name in columns] for row in rows]
    figure, panels = plt.subplots(
        len(cells),
        len(columns),
        figsize=(1.8 * len(columns), 1.75 * len(cells) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for row, of_row in zip(panels, cells, strict=True):
        for axes, cell in zip(row, of_row, strict=True):
            axes.axis("off")
            pixels = _thumbnail(cell) if cell is not None else None
            if pixels is not None:
                axes.imshow(pixels)
    for axes, name in zip(panels[0], columns, strict=True):
        axes.set_title(name, fontsize=10)
    return figure


def _thumbnail(image: Labelled) -> Image.Image | None:
    try:
        pixels = decode_image(image.key.read())
    except (OSError, BadImage):
        return None
    side = min(pixels.size)
    left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
    return pixels.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.LANCZOS)


def maps(models: Sequence[Model], groups: Sequence[str]) -> Figure | None:
    """t-SNE of each model's embeddings (its first seed) of the images of `groups`, side by side, by generator; None
    without any.
    """
    drawn = [(model.name, found) for model in models if (found := _embeddings(model, groups)) is not None]
    if not drawn:
        return None
    wide = len(drawn) if len(drawn) <= MAPS_BESIDE else -(-len(drawn) // (-(-len(drawn) // MAPS_BESIDE)))
    high = -(-len(drawn) // wide)
    figure, panels = plt.subplots(
        high, wide, figsize=(max(5.0, 4.2 * wide), 4.2 * high + 0.7), layout="constrained", squeeze=False
    )
    for axes in list(panels.flat)[len(drawn) :]:
        axes.axis("off")
    names, counts = np.unique(
        np.concatenate([generators[labels == FAKE] for _, (_, labels, generators) in drawn]), return_counts=True
    )
    shown = names[np.argsort(-counts)][:SHOWN_GENERATORS]
    for axes, (title, (points, labels, generators)) in zip(panels.flat, drawn, strict=False):
        axes.scatter(*points[labels == REAL].T, s=9, color="#BBBBBB", label="real")
        for index, name in enumerate(shown):
            here = points[(labels == FAKE) & (generators == name)]
            axes.scatter(*here.T, s=9, color=PALETTE[index], marker=MARKERS[index % len(MARKERS)], label=name)
        others = points[(labels == FAKE) & ~np.isin(generators, shown)]
        if len(others):
            axes.scatter(*others.T, s=12, color=PALETTE[-1], marker="x", label="others")
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    handles = {text: line for axes in panels.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = 5 if panels.shape[1] > 1 else 3  # as many as the figure is wide enough for
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    return figure


def _embeddings(model: Model, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(points [N, 2], labels [N], generators [N]) of the first seed that has at least five images there."""
    for _, result in sorted(model.results.items()):
        path = result.folder / EMBEDDINGS
        if not path.is_file():
            continue
        with np.load(path) as arrays:
            if "groups" not in arrays.files:
                continue  # written before groups were kept: measured again it has them
            chosen = np.flatnonzero(np.isin(arrays["groups"], groups))
            if len(chosen) < 5:
                continue
            chosen = np.random.default_rng(0).permutation(chosen)[:TSNE_POINTS]
            rows, labels, generators = (arrays[name][chosen] for name in ("embeddings", "labels", "generators"))
        perplexity = min(30.0, (len(chosen) - 1) / 3)
        points = TSNE(n_components=2, init="random", random_state=0, perplexity=perplexity).fit_transform(rows)
        return points, labels, generators
    return None


def robustness(models: Sequence[Model]) -> Figure | None:
    """AUC of the head linear by kind and strength, a line a model: mean and standard deviation over seeds."""
    measured = [model for model in models if any("robustness" in one.values for one in model.results.values())]
    if not measured:
        return None
    tree = next(one.values["robustness"] for one in measured[0].results.values() if "robustness" in one.values)
    kinds = [kind for kind in tree if kind != "none"]
    height = -(-len(kinds) // 3)
    figure, panels = plt.subplots(
        height, min(3, len(kinds)), figsize=(10, 2.9 * height), layout="constrained", sharey=True, squeeze=False
    )
    for axes in list(panels.flat)[len(kinds) :]:
        axes.axis("off")
    for kind, axes in zip(kinds, panels.flat, strict=False):
        strengths = list(tree[kind])
        for index, model in enumerate(measured):
            color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            found = [_over_seeds(list(model.results.values()), kind, strength) for strength in strengths]
            value, spread = np.array(found, dtype=float).T
            at = np.arange(len(strengths)) + 0.06 * (index - (len(measured) - 1) / 2)
            axes.errorbar(at, value, spread, color=color, marker=marker, markersize=4, capsize=2, label=model.name)
        slanted = {"rotation": 25, "ha": "right"} if max(map(len, strengths)) > 5 else {}
        axes.set_xticks(np.arange(len(strengths)), strengths, fontsize=8, **slanted)
        axes.set_xlim(-0.5, len(strengths) - 0.5)
        axes.axhline(0.5, color="k", linestyle=":", linewidth=0.8)
        axes.set_title(kind, fontsize=10)
        axes.grid(alpha=0.25)
    figure.supylabel("AUC", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _over_seeds(results: Sequence[Result], kind: str, strength: str) -> tuple[float, float]:
    found = [of_tier(result, kind=kind, strength=strength) for result in results]
    values = [float(value) for value in found if value is not None]
    if not values:
        return float("nan"), float("nan")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
