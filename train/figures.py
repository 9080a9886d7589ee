"""The report's figures, each a function from results to a matplotlib figure. Colours are told apart without hue
(Okabe-Ito).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import norm
from sklearn.manifold import TSNE
from sklearn.metrics import roc_curve

from train.metrics import Ranked, calibration_bins
from triton_models.weights import HEADS

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D")
TSNE_POINTS = 3000
SHOWN_GENERATORS = 7


def _axes(title: str, x: str, y: str, size: tuple[float, float] = (6, 4.5)) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    return figure, axes


def tsne(embeddings: np.ndarray, labels: np.ndarray, generators: np.ndarray) -> dict[str, Figure]:
    """Two maps of at most 3,000 embeddings, by label and by generator (the paper's Figure 1). Empty below 5 images."""
    if len(embeddings) < 5:
        return {}
    chosen = np.random.default_rng(0).permutation(len(embeddings))[:TSNE_POINTS]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(n_components=2, init="random", random_state=0, perplexity=perplexity).fit_transform(
        embeddings[chosen]
    )
    labels, generators = labels[chosen], generators[chosen]
    by_label, axes = _axes("Embeddings by label (t-SNE)", "", "")
    for value, name in ((0, "real"), (1, "generated")):
        axes.scatter(*points[labels == value].T, s=9, color=PALETTE[value], marker=MARKERS[value], label=name)
    _map_legend(by_label, axes)
    by_generator, axes = _axes("Embeddings by generator (t-SNE)", "", "")
    axes.scatter(*points[labels == 0].T, s=9, color="#BBBBBB", label="real")
    names, counts = np.unique(generators[labels == 1], return_counts=True)
    for index, name in enumerate(names[np.argsort(-counts)]):
        here = (labels == 1) & (generators == name)
        last = index >= SHOWN_GENERATORS
        color = PALETTE[-1] if last else PALETTE[index]
        label = "_" if index > SHOWN_GENERATORS else ("others" if last else name)
        axes.scatter(
            *points[here].T, s=9, color=color, marker="x" if last else MARKERS[index % len(MARKERS)], label=label
        )
    _map_legend(by_generator, axes)
    return {"tsne_label": by_label, "tsne_generator": by_generator}


def _map_legend(figure: Figure, axes: Any) -> None:
    axes.set(xticks=[], yticks=[])  # only nearness means something in a t-SNE
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=8,
        markerscale=1.6,
    )


def by_generator(rows: Sequence[Mapping[str, Any]], heads: Sequence[str] = HEADS) -> Figure:
    """AUC with interval of every generator and head, one panel a group: `rows` is what train.evaluate.rows gives."""
    groups = sorted({row["group"] for row in rows})
    chosen = {group: [row for row in rows if row["group"] == group and row["kind"] == "generator"] for group in groups}
    tallest = max(len(entries) for entries in chosen.values())
    figure, panels = plt.subplots(
        1, len(groups), figsize=(10, 1.3 + 0.34 * tallest), layout="constrained", sharex=True, squeeze=False
    )
    for group, axes in zip(groups, panels.flat, strict=True):
        entries = sorted(chosen[group], key=lambda row: row["metrics"][heads[0]]["auc"]["value"] or 0)
        for index, head in enumerate(heads):
            found = [entry["metrics"][head]["auc"] for entry in entries]
            value, low, high = (
                np.array([entry[name] for entry in found], dtype=float) for name in ("value", "low", "high")
            )
            heights = np.arange(len(entries)) + 0.22 * (1 - index)
            axes.hlines(heights, low, high, color=PALETTE[index], linewidth=2, alpha=0.45)
            axes.plot(value, heights, MARKERS[index], color=PALETTE[index], label=head, markersize=5)
        axes.set_yticks(
            np.arange(len(entries)), [f"{entry['name']} ({entry['family']})" for entry in entries], fontsize=9
        )
        axes.axvline(0.5, color="k", linestyle=":", linewidth=0.8)
        axes.set(title=group, xlabel="AUC", xlim=(min(0.4, *axes.get_xlim()), 1.01))
        axes.grid(alpha=0.25, axis="x")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(heads), frameon=False
    )
    return figure


def roc(labels: np.ndarray, scores: np.ndarray, heads: Sequence[str] = HEADS) -> Figure:
    figure, axes = _axes("ROC", "false positive rate", "true positive rate")
    for index, head in enumerate(heads):
        false_positive, true_positive, _ = roc_curve(labels, scores[:, index])
        axes.plot(false_positive, true_positive, color=PALETTE[index], label=head)
    axes.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    axes.legend()
    return figure


def det(labels: np.ndarray, scores: np.ndarray, heads: Sequence[str] = HEADS) -> Figure:
    figure, axes = _axes("DET (normal deviates)", "false positive rate", "miss rate")
    for index, head in enumerate(heads):
        false_positive, true_positive, _ = roc_curve(labels, scores[:, index])
        inside = (false_positive > 0) & (false_positive < 1) & (true_positive > 0) & (true_positive < 1)
        axes.plot(
            norm.ppf(false_positive[inside]), norm.ppf(1 - true_positive[inside]), color=PALETTE[index], label=head
        )
    ticks = np.array([0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95])
    names = [f"{tick:.1%}".replace(".0%", "%") for tick in ticks]
    axes.set_xticks(norm.ppf(ticks), names)
    axes.set_yticks(norm.ppf(ticks), names)
    axes.legend()
    return figure


def histograms(labels: np.ndarray, scores: np.ndarray, heads: Sequence[str] = HEADS) -> Figure:
    figure, grid = plt.subplots(1, len(heads), figsize=(9, 3), layout="constrained", sharey=True, squeeze=False)
    panels = list(grid.flat)
    for index, (head, axes) in enumerate(zip(heads, panels, strict=True)):
        for value, name in ((0, "real"), (1, "generated")):
            chosen = scores[labels == value, index]
            if len(chosen):
                axes.hist(
                    chosen,
                    bins=40,
                    range=(0, 1),
                    weights=np.full(len(chosen), 1 / len(chosen)),
                    alpha=0.6,
                    color=PALETTE[value],
                    label=name,
                )
        axes.set(title=head, xlabel="score = P(fake)")
    panels[0].set_ylabel("share of images")
    panels[0].legend()
    return figure


def reliability(labels: np.ndarray, scores: np.ndarray, heads: Sequence[str] = HEADS) -> Figure:
    figure, axes = _axes("Reliability", "score = P(fake)", "share of generated images")
    for index, head in enumerate(heads):
        total, score, share = calibration_bins(Ranked.of(labels, scores[:, index]))
        axes.plot(score[total > 0], share[total > 0], "o-", color=PALETTE[index], label=head, markersize=4)
    axes.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    axes.legend()
    return figure


def robustness(sweeps: Mapping[str, Any], heads: Sequence[str] = HEADS) -> Figure:
    """AUC with interval by kind and strength of what happened to the images, as train.robustness.sweep gives it."""
    kinds = [kind for kind in sweeps if kind != "none"]
    height = 3 if len(kinds) > 6 else 2
    figure, panels = plt.subplots(
        height, -(-len(kinds) // height), figsize=(10, 3 * height), layout="constrained", sharey=True, squeeze=False
    )
    for axes in list(panels.flat)[len(kinds) :]:
        axes.axis("off")
    for kind, axes in zip(kinds, panels.flat, strict=False):
        for index, head in enumerate(heads):
            plain = sweeps["none"][""][head]["auc"]["value"]
            found = [by_head[head]["auc"] for by_head in sweeps[kind].values()]
            value, low, high = (
                np.array([entry[name] for entry in found], dtype=float) for name in ("value", "low", "high")
            )
            at = np.arange(len(found)) + 0.08 * (index - 1)
            axes.vlines(at, low, high, color=PALETTE[index], linewidth=2, alpha=0.45)
            axes.plot(at, value, f"{MARKERS[index]}-", color=PALETTE[index], label=head, markersize=4)
            if plain is not None:
                axes.axhline(plain, color=PALETTE[index], linestyle=":", linewidth=0.8)
        names = list(sweeps[kind])
        slanted = {"rotation": 25, "ha": "right"} if max(map(len, names)) > 5 else {}
        axes.set_xticks(np.arange(len(names)), names, fontsize=8, **slanted)
        axes.set(title=kind, ylim=(0, 1.02))
        axes.grid(alpha=0.25)
    figure.supylabel("AUC (dotted: as received)", fontsize=10)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(heads), frameon=False
    )
    return figure


def training(metrics: list[dict[str, Any]]) -> Figure:
    figure, axes = _axes("Training", "step", "loss", size=(10, 4.5))
    steps = [line for line in metrics if line["kind"] == "step"]
    width = max(1, len(steps) // 50)
    at = [line["step"] for line in steps]
    for index, name in enumerate(
        name for name in steps[0] if name.startswith(("global_", "multiscale_")) or name == "total"
    ):
        values = np.array([line[name] for line in steps], dtype=float)
        axes.plot(at, values, color=PALETTE[index], linewidth=0.8, alpha=0.25)
        axes.plot(
            at[width - 1 :],
            np.convolve(values, np.full(width, 1 / width), "valid"),
            color=PALETTE[index],
            label=name,
            linewidth=1.6,
        )
    probes = [line for line in metrics if line["kind"] == "probe"]
    handles, names = axes.get_legend_handles_labels()
    if probes:
        right = axes.twinx()
        handles += right.plot(
            [line["step"] for line in probes], [line["auc"] for line in probes], "k^--", label="probe AUC", markersize=4
        )
        names.append("probe AUC")
        right.set(ylabel="AUC of the linear probe", ylim=(0, 1.02))
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def shortcuts(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Figure:
    """Formats and sizes by label: `counts` is what train.data.inspect.correlations gives."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(panels, ("format", "short side"), strict=True):
        values = list(counts[name])
        for offset, label in ((-0.2, "real"), (0.2, "fake")):
            total = max(1, sum(entry.get(label, 0) for entry in counts[name].values()))
            shares = [counts[name][value].get(label, 0) / total for value in values]
            axes.bar(np.arange(len(values)) + offset, shares, 0.4, color=PALETTE[label == "fake"], label=label)
        axes.set_xticks(np.arange(len(values)), values, rotation=30, ha="right", fontsize=8)
        axes.set(title=name, ylabel="share of the class")
    panels[0].legend()
    return figure
