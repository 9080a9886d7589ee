"""The command line of training: `python -m train.main`. Each command is a few lines that call a module beside this one.

Without arguments it prints an overview with the next command to type. Exit codes: 0 done (also when stopped and saved),
1 unexpected, 2 wrong usage, recipe, data or weights (one line for each problem).
"""
# ruff: noqa: PLC0415 - torch takes seconds to import, and `--help` and wrong usage should not

from __future__ import annotations

import json
import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from train.data.commands import data_app
from train.importing import importing_app
from train.many_runs import add_commands
from train.overview import OVERVIEW
from train.study import study_app
from train.terminal import GOES_ON, clear_errors, console, out_console, require_new, say
from triton_models.weights import ENCODER_NAME

if TYPE_CHECKING:
    from train.engine import FitResult
    from train.recipe import Recipe

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(data_app, name="data")
add_commands(app)
app.add_typer(study_app)
app.add_typer(importing_app)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field of the recipe; may be repeated."),
]
RecipeName = Annotated[str, typer.Option("--recipe", help="A TOML file, or the name of one in train/recipes.")]


class CalibrationKind(StrEnum):
    """Which calibration of the heads to use."""

    TEMPERATURE = "temperature"
    ISOTONIC = "isotonic"


class Head(StrEnum):
    """The heads, as in triton_models/weights.py."""

    LINEAR = "linear"
    KNN = "knn"
    SVM = "svm"


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Reproduces CoDE from D3 and measures it."""
    if context.invoked_subcommand is None:
        recipes = ", ".join(
            sorted(
                path.stem
                for path in (Path(__file__).parent / "recipes").glob("*.toml")
                if not path.stem.startswith("ablation")
            )
        )
        runs = sorted(Path("runs").glob("*/best/encoder.safetensors"))
        step = (
            "python -m train.main data inspect DIR"
            if not runs
            else (
                f"python -m train.main heads --encoder {runs[-1].parent} --data DIR --out {runs[-1].parents[1]}/weights"
            )
        )
        out_console.print(OVERVIEW.format(recipes=recipes, next=step), highlight=False, markup=False, soft_wrap=True)


@app.command()
def fit(
    recipe: RecipeName = "paper",
    run: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/latest"),
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --run, with the recipe it was begun with.")] = False,
    restartable: Annotated[
        bool, typer.Option(help="Continue the run in --run where it stands, else begin it: for jobs that start again.")
    ] = False,
    adapt_ranks: Annotated[bool, typer.Option(help="Continue with another number of processes.")] = False,
    check: Annotated[bool, typer.Option(help="Only say whether the run would get through here.")] = False,
) -> None:
    """Train an encoder; SIGTERM and Ctrl-C save and end. Example: `fit --recipe smoke --set data.source=images/ --run
    runs/first`

    On several GPUs: `torchrun --nproc-per-node 4 -m -- train.main fit ...`
    """
    from train.beginning import preflight
    from train.engine import TrainingDiverged
    from train.engine import fit as train_encoder
    from train.recipe import RecipeError, load_recipe
    from train.run_folder import CHECKPOINT, RunFolder

    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes: it speaks for all
    with clear_errors():
        if resume and overrides:
            raise RecipeError(["--resume continues with the recipe of the run: leave --set out, or start a new run"])
        chosen = RunFolder(run).recipe() if resume else load_recipe(recipe, overrides or [])
        if restartable and (run / CHECKPOINT).exists():
            if RunFolder(run).recipe() != chosen:
                raise RecipeError(
                    [
                        (
                            f"{run} holds a run with another recipe: name another folder with --run, or give the "
                            "recipe it was begun with"
                        )
                    ]
                )
            resume = True
        if check:
            preflight(chosen, run, resume=resume, adapt=adapt_ranks, console=console)
            return
        try:
            result = train_encoder(chosen, run, resume=resume, adapt=adapt_ranks, console=console)
        except TrainingDiverged as error:
            if is_first:
                say(str(error))
            raise typer.Exit(1) from error
    if is_first:
        _tell(result, chosen, run)


def _tell(result: FitResult, chosen: Recipe, run: Path) -> None:
    """How a run ended, and what to type next."""
    probe = f"best probe AUC {result.best_auc:.4f}" if math.isfinite(result.best_auc) else "no probe"
    before = f" ({result.initial_auc:.4f} before training)" if math.isfinite(result.initial_auc) else ""
    say(f"{result.status} after {result.step} steps, {probe}{before}, {result.failed_records} records replaced")
    if not result.has_learnt:
        say(
            f"warning: {run}/best is the initialisation: no probe after training was better. Lower optimisation.lr, "
            "train longer, or look at the data (`data inspect`) before you use it"
        )
    if result.status == "interrupted":
        say(f"continue with: python -m train.main fit --run {run} --resume")
    elif chosen.training.encoder != ENCODER_NAME:
        say(f"next: python -m train.main evaluate --backbone run:{run}/best --fit-on DIR --data DIR --out results/mine")
    else:
        say(f"next: python -m train.main heads --encoder {run}/best --data {chosen.data.source} --out {run}/weights")


@app.command()
def heads(
    data: Annotated[Path, typer.Option(help="Labelled images to fit on: a folder or shards.")],
    out: Annotated[Path, typer.Option(help="The weights folder (with --backbone: the detector's folder) to make.")],
    encoder: Annotated[Path | None, typer.Option(help="Folder with encoder.safetensors, say RUN/best.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Instead: timm:NAME, or onnx:FILE with a detector.toml beside it.")
    ] = None,
    head: Annotated[list[Head] | None, typer.Option(help="With --backbone: only these; may be repeated.")] = None,
    recipe: RecipeName = "paper",
    overrides: Overrides = None,
) -> None:
    """Fit the three heads and their calibration; a stopped run goes on. With --backbone: a detector beside `code`.

    Example: `heads --encoder runs/first/best --data images/ --out runs/first/weights`
    """
    from train.data.open import both_classes, open_source
    from train.data.records import limit_per_class
    from train.embed import UNFINISHED
    from train.fit_heads import make_weights
    from train.model import load_encoder
    from train.recipe import RecipeError, load_recipe

    with clear_errors(when_stopped=GOES_ON):
        chosen = load_recipe(recipe, overrides or [])
        require_new(out, but_for=(UNFINISHED,))
        if (encoder is None) == (backbone is None):
            raise RecipeError(["either --encoder FOLDER or --backbone timm:NAME or onnx:FILE is needed"])
        if encoder is not None:
            load_encoder(encoder)  # a wrong path is told before the data are looked at
        found = both_classes(open_source(data, min_side_px=chosen.data.min_side_px, console=console), data)
        images = limit_per_class(found, chosen.heads.max_images_per_class)
        if len(images) < len(found):
            say(f"fitting on {len(images)} of {len(found)} images (heads.max_images_per_class)")
        if backbone is not None:
            from train.detector import make_detector

            wanted = [one.value for one in head or Head]
            card = make_detector(backbone, images, chosen.heads, out, wanted, say=say, console=console)
            say(f"next: python -m triton_models.build --weights WEIGHTS --detector {out} --out REPOSITORY")
        elif encoder is not None:
            card = make_weights(encoder, images, chosen.heads, out, say=say, console=console)
    out_console.print_json(json.dumps(card))


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="D3's test layout, real/ + fake/GENERATOR/, or shards.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, scores.csv, embeddings.npz.")],
    weights: Annotated[Path | None, typer.Option(help="A weights folder.")] = None,
    detector: Annotated[Path | None, typer.Option(help="A detector's folder (docs/detectors.md).")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="timm:NAME or run:FOLDER, with --fit-on; onnx:FILE, with --detector.")
    ] = None,
    fit_on: Annotated[Path | None, typer.Option(help="Images on which the heads of --backbone are fitted.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Whether the timm backbone comes with its weights.")] = True,
    calibration: Annotated[CalibrationKind | None, typer.Option(help="Use calibrated scores.")] = None,
    robustness: Annotated[bool, typer.Option(help="Also sweeps, chains of distortions and re-sharing.")] = False,
    bias_control: Annotated[
        bool, typer.Option(help="Also measure all images cut and compressed alike: the headline.")
    ] = True,
    release_dates: Annotated[
        Path | None, typer.Option(help="CSV with pattern,released,era for generators of your own.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON only.")] = False,
) -> None:
    """Measure a model; a stopped run goes on where it was.

    Example: `evaluate --weights runs/first/weights --data d3_test/ --out results/first --robustness`
    """
    from train.evaluate import RESULTS, Options, headline, heads_of, leaks
    from train.measure import Subject, measure
    from train.temporal import read_releases

    with clear_errors(when_stopped=GOES_ON):
        subject = Subject(weights, backbone, fit_on, pretrained, detector)
        releases = tuple(read_releases(release_dates))
        options = Options(
            calibration.value if calibration else None,
            resamples,
            robustness,
            controlled=bias_control,
            releases=releases,
        )
        results = measure(subject, data, out, options, say=say, console=console)
    if as_json:
        sys.stdout.write((out / RESULTS).read_text())
        return
    for leak in leaks(results):
        out_console.print(leak, style="red", highlight=False, markup=False)
    columns = [f"{head} {metric}" for head in heads_of(results) for metric in ("AUC", "bal. acc.")]
    title = "cut and compressed alike" if "controlled" in results else "as received"
    table = Table("images", "fakes", *columns, title=f"images {title}")
    for line in headline(results):
        table.add_row(*line)
    out_console.print(table)
    say(f"next: python -m train.main report --results {out} --out {out}/report")


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="The policy to write (TOML); a page is written beside it (.html).")],
    weights: Annotated[Path | None, typer.Option(help="The weights folder that is served.")] = None,
    detector: Annotated[Path | None, typer.Option(help="Instead: the folder of a detector served beside it.")] = None,
    backbone: Annotated[str | None, typer.Option(help="onnx:FILE, where --detector lacks its graph.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your own images: real/ + fake/GENERATOR/, as of reviews.")] = None,
    queue: Annotated[str | None, typer.Option(help="Of an export of reviews: the queue to calibrate on.")] = None,
    results: Annotated[Path | None, typer.Option(help="What evaluate wrote, instead of --data.")] = None,
    target_fpr: Annotated[
        float | None, typer.Option(min=1e-6, max=0.5, help="Real photographs that may be called fake.")
    ] = None,
    target_precision: Annotated[
        float | None, typer.Option(min=0.01, max=0.99999, help="Instead: how much of what is called fake must be so.")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option(min=1e-6, max=0.999, help="Share of generated images, for --target-precision.")
    ] = None,
    target_fnr: Annotated[
        float | None, typer.Option(min=1e-6, max=0.5, help="Generated images that may be called real.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.99999, help="One-sided, of every bound.")] = 0.95,
    head: Annotated[Head, typer.Option(help="The head that decides.")] = Head.LINEAR,
    per: Annotated[str, typer.Option(help="Own thresholds for slices: format,size,jpeg_quality.")] = "",
    name: Annotated[str, typer.Option(help="The policy's name.")] = "calibrated",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON only.")] = False,
) -> None:
    """Thresholds whose error rate is bounded, as a policy. Exit 1 and how many images are needed where these are too
    few.

    Example: `calibrate --weights W --data mine/ --target-fpr 0.01 --out policy.toml`
    """
    from train.calibration.calibrate import Asked
    from train.calibration.calibrate import calibrate as find
    from train.calibration.sample import read_sample
    from train.calibration.slices import parse
    from train.calibration.thresholds import TooFewImages

    with clear_errors():
        asked = Asked(target_fpr, target_precision, prevalence, target_fnr, confidence, head.value)
        asked.check()
        by = parse(per)
        sample = read_sample(weights, data, results, detector=detector, graph=backbone, queue=queue, console=console)
        try:
            found = find(sample, asked, out, by, name)
        except TooFewImages as error:
            say(str(error))
            raise typer.Exit(1) from error
    if absent := found["never_decided"]:
        say(f"no image of the queue {queue} had been decided to be {' or '.join(absent)}: the promise is not for these")
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        out_console.print_json(json.dumps(found))
        say(f"next: python -m worker policy backtest {out}   (what it would have decided)")


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="What evaluate wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and the figures.")],
    run: Annotated[Path | None, typer.Option(help="The run, for curves and recipe.")] = None,
    data: Annotated[Path | None, typer.Option(help="The data, for the check of shortcuts.")] = None,
) -> None:
    """One self-contained HTML page. Example: `report --results results/first --run runs/first --out report/`"""
    from train.data.open import open_source
    from train.report import write_report

    with clear_errors():
        images = open_source(data, console=console).labelled() if data else None
        out_console.print(str(write_report(results, out, run=run, data=images, console=console)), soft_wrap=True)


@app.command()
def export(
    weights: Annotated[Path, typer.Option(help="The weights folder that heads or import-release made.")],
    out: Annotated[Path | None, typer.Option(help="New folder, say triton_models/weights/mine.")] = None,
    detector: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead: a detector's folder, to be served beside `code`.")
    ] = None,
    half: Annotated[bool, typer.Option(help="Store the encoder as float16.")] = False,
    crops: Annotated[
        str, typer.Option(metavar="KIND:N", help="With --detector: several, grid:4 or texture:4 say.")
    ] = "",
    aggregate: Annotated[str, typer.Option(help="Of their scores: mean, median or max.")] = "mean",
) -> None:
    """Encoder and heads as served: arrays, ONNX graphs, version. Example: `export --weights runs/first/weights --out
    triton_models/weights/mine`
    """
    from train.export import export as export_weights
    from train.recipe import RecipeError

    card: dict[str, Any]
    with clear_errors():
        if (out is None) == (detector is None):
            raise RecipeError(["either --out FOLDER or --detector FOLDER is needed"])
        if crops and detector is None:
            raise RecipeError(["--crops: several crops are served beside `code`; name a new folder with --detector"])
        if detector is not None:
            from train.detector import export_detector

            card = export_detector(weights, detector, crops=crops, aggregate=aggregate)
        elif out is not None:
            card = export_weights(weights, out, half=half)
    if detector is not None:
        out_console.print_json(json.dumps(card))
        say(f"next: python -m triton_models.build --weights WEIGHTS --detector {detector} --out REPOSITORY")
        return
    out_console.print_json(json.dumps(card))
    say(f"next: python -m triton_models.build --weights {out} --flavour cpu --out REPOSITORY")


@app.command("import-release")
def import_release(
    source: Annotated[str, typer.Argument(help="Folder with the published files, or hf://aimagelab/CoDE.")],
    destination: Path,
) -> None:
    """The published CoDE weights as arrays. Example: `import-release downloads/CoDE weights/code`"""
    from train.release import import_release as convert

    say(
        "The published heads are pickles, and a pickle can run code when it is loaded. They are read here as "
        "data: nothing in them "
        "runs, and anything beyond the expected estimators is refused. Take them from a source you trust all the same."
    )
    with clear_errors():
        made = convert(source, destination)
    out_console.print((made / "card.json").read_text(), end="", highlight=False, markup=False)
    say(f"next: python -m train.main evaluate --weights {made} --data DIR --out results/code")


if __name__ == "__main__":
    app(prog_name="python -m train.main")
