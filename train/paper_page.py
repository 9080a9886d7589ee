"""Writes what `train.main paper` makes: a folder a data set with tables (CSV, LaTeX), figures (PNG) and one page."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from train import paper_figures as figures
from train.data.records import Labelled
from train.paper import Model, Run, collect, commands, missing, models_of
from train.paper_tables import Table, tables
from train.recipe import Recipe
from triton_models.weights import FAKE, REAL

PAGE, DPI = "paper.html", 150
_NAMED = "python -m train.main paper ... --data DIR"
_MEASURE = "python -m train.main evaluate --weights DIR --data D3_TEST --out results/NEW"
_TEMPLATE = Path(__file__).with_name("paper.html.j2")


@dataclass(frozen=True)
class Drawn:
    """A figure of the paper; `figure` is None where something is missing, and `need` says what."""

    name: str
    caption: str
    figure: Figure | None
    need: tuple[str, str]


def write_paper(
    roots: Sequence[Path],
    out: Path,
    *,
    images: Sequence[Labelled] | None = None,
    expected: Sequence[str] = (),
    command: str = "python -m train.main paper",
    say: Callable[[str], object] = str,
) -> list[Path]:
    """The pages written, one a data set (in a folder of its own where there are several). Raises DataError."""
    runs, results = collect(roots)
    by_data = models_of(runs, results)
    pages = []
    for data, models in by_data.items():
        folder = out if len(by_data) == 1 else out / (re.sub(r"[^\w.-]+", "-", data).strip("-") or "runs")
        pages.append(_write(models, data, folder, images, expected, command, runs, say))
    return pages


def _write(
    models: Sequence[Model],
    data: str,
    folder: Path,
    images: Sequence[Labelled] | None,
    expected: Sequence[str],
    command: str,
    runs: Sequence[Run],
    say: Callable[[str], object],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Table] = tables(models)
    for table in made:
        table.write(folder, command)
    drawn = draw(models, images, runs[0].recipe if runs else Recipe())
    pictures = {}
    for one in drawn:
        if one.figure is not None:
            path = folder / f"{one.name}.png"
            one.figure.savefig(path, dpi=DPI)
            plt.close(one.figure)
            pictures[one.name] = base64.b64encode(path.read_bytes()).decode()
    lacking = missing(models, data, expected) + [one.need for one in drawn if one.figure is None]
    for what, how in lacking:
        say(f"missing: {what}; {how}")
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text())
    shown = {"tables": made, "drawn": drawn, "pictures": pictures, "missing": lacking}
    page = template.render(data=data, command=command, made_by=commands(models), **shown)
    (folder / PAGE).write_text(page)
    return folder / PAGE


def draw(models: Sequence[Model], images: Sequence[Labelled] | None, recipe: Recipe) -> list[Drawn]:
    """Figures 1 to 5."""
    real = next((image for image in images or () if image.label == REAL), None)
    fake = next((image for image in images or () if image.label == FAKE), None)
    records = figures.records_of(images or ())
    if records:
        real, fake = records[0][0], records[0][-1]
    first = figures.overview(real, fake, recipe) if real is not None and fake is not None else None
    second = figures.samples(images) if images else None
    samples = "a row a record, a column a source" if records else "a column a source; these data have no records"
    return [
        Drawn(
            "figure1",
            f"Crops and views of one record, as the recipe {recipe.name} draws them.",
            first,
            ("Figure 1: images of both classes", _NAMED),
        ),
        Drawn("figure2", f"Samples: {samples}.", second, ("Figure 2: images", _NAMED)),
        Drawn(
            "figure3",
            "t-SNE of the embeddings of untransformed images, a map a model (first seed).",
            figures.maps(models, figures.UNTRANSFORMED),
            ("Figure 3: embeddings of untransformed images", _MEASURE),
        ),
        Drawn(
            "figure4",
            "t-SNE of the embeddings of transformed images (D3's test layout, augm/), a map a model (first seed).",
            figures.maps(models, figures.TRANSFORMED),
            ("Figure 4: embeddings of transformed images (augm/ of D3's test layout)", _MEASURE),
        ),
        Drawn(
            "figure5",
            "Robustness: AUC of the head linear by model, mean and standard deviation over seeds; dotted: chance.",
            figures.robustness(models),
            ("Figure 5: robustness", f"{_MEASURE} --robustness"),
        ),
    ]
