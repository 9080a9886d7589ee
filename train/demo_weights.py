"""The demo weights from their images, one step after the other: equalise, fit, heads, export, evaluate, model card.

    python -m train.demo_weights --data DIR --work runs/demo --out triton_models/weights/demo

DIR has real/<source>/ and fake/<generator>/. About an hour of two cores; a stopped run goes on where it was. The
encoder sees small equalised cuts, the heads equalised cuts of the size of inference, the card original bytes that
neither has seen.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from train.data.equalise import equalise_folder
from train.data.images import DataError
from train.data.open import open_source
from train.engine import fit
from train.evaluate import Options, evaluate
from train.export import CARD, export
from train.fit_heads import make_weights
from train.heads import Heads
from train.model import code_backbone
from train.recipe import load_recipe
from train.run_folder import CHECKPOINT
from train.terminal import GOES_ON, clear_errors, console
from triton_models import weights
from triton_models.weights import ENCODER_FILE, GROUPS_FILE, HEADS, HEADS_FILE

RECIPE = "demo"
# Never trained on, neither encoder nor heads: of several families, so that the card can say what happens on new
# generators.
UNSEEN = (
    *("bsds500", "kodak24", "selfexsr-urban100"),
    *(
        "cosmos-predict2",
        "f-lite",
        "qwen-image",
        "r3gan",
        "sd-3.5-large",
        "sdxl-albedobase",
        "stylegan2-ada",
        "wan-2.1",
    ),
)
HELD_OUT, VALIDATION = 0.12, 0.08
MOST_PER_GENERATOR = 120
VIEW_SIDE_PX, HEAD_SIDE_PX = (128, 257), (224, 353)
CALIBRATION = (
    "Fitted on cuts of photographs of which the heads saw no cut; the epoch was chosen by a probe held out in the "
    "same way."
)
METRICS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy at 0.5", "tpr_at_1pct_fpr": "TPR at 1 % FPR"}


def make(data: Path, work: Path, out: Path, console: Console) -> dict[str, Any]:
    """Everything from the images in `data` to the weights folder `out`; returns its card. Raises DataError,
    RecipeError, WeightsError.
    """
    images = open_source(data, min_side_px=32, console=console).labelled()
    sides: dict[str, Any] = {
        "held_out_fraction": HELD_OUT,
        "validation_fraction": VALIDATION,
        "max_per_generator": MOST_PER_GENERATOR,
        "unseen": UNSEEN,
    }
    for name, side_px, copies in (("views", VIEW_SIDE_PX, 8), ("heads", HEAD_SIDE_PX, 2)):
        if not (work / name / "equalised.json").exists():
            equalise_folder(images, work / name, side_px=side_px, copies=copies, **sides)
    recipe = load_recipe(
        RECIPE, [f"data.source={work / 'views' / 'train'}", f"data.validation={work / 'views' / 'validation'}"]
    )
    result = fit(recipe, work / "run", resume=(work / "run" / CHECKPOINT).exists(), console=console)
    if result.status == "interrupted":
        raise DataError("stopped and saved; the same command goes on")
    for name in ("weights", "export"):
        shutil.rmtree(work / name, ignore_errors=True)
    fitted = make_weights(
        work / "run" / "best",
        open_source(work / "heads" / "train").labelled(),
        recipe.heads,
        work / "weights",
        say=console.print,
        console=console,
    )
    exported = export(work / "weights", work / "export", half=True)
    heads = {name: fitted[name] for name in ("images", "calibration_auc", "not_calibrated") if name in fitted}
    card: dict[str, Any] = {
        "name": "demo",
        "model_version": exported["model_version"],
        "trained": True,
        "purpose": "trying the system out; not a detector to rely on",
        "encoder": f"vit_tiny_patch16_224, recipe {RECIPE}, {result.step} steps, float16",
        "heads": {
            **heads,
            "linear_c": recipe.heads.linear_c,
            "svm_nu": recipe.heads.svm_nu,
            "calibration": CALIBRATION,
        },
        "fitted_on": fitted["fitted_on"],
        "images": json.loads((work / "views" / "equalised.json").read_text()),
        "sources": _sources(work / "views"),
        "measured": {name: _measure(work, name, console) for name in ("held_out", "unseen")},
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in (ENCODER_FILE, HEADS_FILE, GROUPS_FILE):
        shutil.copyfile(work / "export" / name, out / name)
    (out / CARD).write_text(json.dumps(card, indent=1) + "\n")
    (out / "README.md").write_text(readme(card))
    return card


def _measure(work: Path, part: str, console: Console) -> dict[str, Any]:
    """Metrics with intervals of the exported model on one part of the images, in their original bytes."""
    folder = work / "export"
    about = {"weights": "demo", "model version": weights.load(folder).version, "data": part}
    images = open_source(work / "views" / part).labelled()
    results = evaluate(
        code_backbone(folder),
        Heads.load(folder),
        images,
        work / f"results-{part}",
        Options(robustness=part == "unseen"),
        about=about,
        console=console,
    )
    everything = next(row for row in results["rows"] if row["kind"] == "all")
    return {
        "images": {label: results["images"][label] for label in ("real", "fake")},
        "metrics": {head: {metric: everything["metrics"][head][metric] for metric in METRICS} for head in HEADS},
        "robustness": {
            kind: {strength: round(by_head["linear"]["auc"], 3) for strength, by_head in strengths.items()}
            for kind, strengths in results.get("robustness", {}).items()
            if kind != "none"
        },
    }


def _sources(folder: Path) -> dict[str, dict[str, int]]:
    """Images by part and source, a cut one counted once."""
    counted: dict[str, Counter[str]] = {}
    for part in ("train", "validation", "held_out", "unseen"):
        names = {(path.parent.name, path.name.split("-")[0]) for path in (folder / part).rglob("*") if path.is_file()}
        counted[part] = Counter(source for source, _ in names)
    return {part: dict(sorted(counts.items())) for part, counts in counted.items()}


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _weak_and_strong(sweeps: Mapping[str, Mapping[str, float]]) -> str:
    """The range of each kind of change, and at which strength it is worst."""
    parts = []
    for kind, strengths in sweeps.items():
        worst = min(strengths, key=lambda strength: strengths[strength])
        parts.append(f"- {kind}: {min(strengths.values()):.2f} to {max(strengths.values()):.2f} (worst at {worst})")
    return "\n".join(parts)


def readme(card: Mapping[str, Any]) -> str:
    """The model card for people, from the one for programs."""
    counts, measured = card["images"], card["measured"]
    lines = []
    for part, title in (
        ("held_out", "other images of the same sources"),
        ("unseen", "sources and generators never trained on"),
    ):
        of = measured[part]["images"]
        for head in HEADS:
            cells = " | ".join(_cell(measured[part]["metrics"][head][metric]) for metric in METRICS)
            lines.append(f"| {title}, {of['real']} real, {of['fake']} generated | {head} | {cells} |")
    table = "\n".join(lines)
    trained, chosen = (
        f"{counts[f'{part} real']} real and {counts[f'{part} fake']} generated" for part in ("train", "validation")
    )
    return f"""# Demo weights: for trying the system out, not a detector to rely on

Model version `{card["model_version"]}`: {card["encoder"]}. They exist so that `make demo` runs a
trained model of the real size from a small download. The paper's encoder saw 57 million records; this one saw
{trained} images for an hour on two CPU cores. Replace it before a decision means anything to anyone.

**Data.** {trained} images for training, {chosen} for choosing the best epoch; at most {MOST_PER_GENERATOR} of one
source. Every image became JPEG cuts whose side, quality and shrinking are drawn alike for both classes (`data
equalise`), so that format, size and compression tell little. What is left: subjects (portraits among the generated
images, garments among the real ones) and the size at which a scene was made. `card.json` has the counts by source. No
image is contained in these files, only parameters and embeddings.

**Recipe.** `train/recipes/{RECIPE}.toml`: the loss and views of CoDE with views of 112 px, and a start as spectrum
analyser (`train/spectral.py`) instead of from noise. Heads as released, fitted on equalised cuts of 224 px and more
under T.

**Calibration.** {card["heads"]["calibration"]}

**Measured** on images in their original bytes that nothing was fitted on (value and 95 % interval by bootstrap):

| images | head | {" | ".join(METRICS.values())} |
|---|---|---|---|---|
{table}

Both parts are small and of few sources (the intervals do not cover that). Generated images among them are more often
PNG or WebP than the real ones. The one-class SVM is near chance: it knows real images only, and does not know enough
of them. AUC of the linear head on the unseen sources when all of them are changed alike:

{_weak_and_strong(measured["unseen"]["robustness"])}

Made by `python -m train.demo_weights` ([docs/training.md](../../../docs/training.md)); a new run
differs in the last digits, the files are what counts.
"""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command(
    data: Annotated[Path, typer.Option(help="folder with real/<source>/ and fake/<generator>/")],
    out: Annotated[Path, typer.Option(help="weights folder to write")],
    work: Annotated[Path, typer.Option(help="cuts, run and results; kept, so that a stopped run goes on")] = Path(
        "runs/demo"
    ),
) -> None:
    """The demo weights from their images, one step after the other. Exit 2 and one line for wrong data."""
    with clear_errors(when_stopped=GOES_ON):
        card = make(data, work, out, console)
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    app(prog_name="python -m train.demo_weights")
