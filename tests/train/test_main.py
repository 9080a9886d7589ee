"""The command line: overview, exit codes, and the way from a folder to a served model."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from train import embed
from train.data.inspect import Facts, correlations
from train.data.synthetic import synthetic_image, write_synthetic_folder
from train.embed import Embedded
from train.main import app
from train.model import create_encoder, save_encoder
from train.recipe import RECIPES
from train.terminal import GOES_ON, clear_errors
from triton_models import weights

COMMANDS = [
    "fit",
    "heads",
    "evaluate",
    "report",
    "export",
    "import-release",
    "bench",
    "data inspect",
    "data d3",
    "data folder",
    "data equalise",
]


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


def test_overview_names_the_next_command(runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments: every command and the next one to type, exit 0; with a finished run the next one is for it."""
    monkeypatch.chdir(tmp_path)
    first = runner.invoke(app, [])
    assert first.exit_code == 0 and "Next: python -m train.main data inspect" in first.output
    for command in ("evaluate", "import-release", "bench", "data d3"):
        assert command in first.output
    (tmp_path / "runs" / "a" / "best").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "best" / "encoder.safetensors").touch()
    assert "heads --encoder runs/a/best" in runner.invoke(app, []).output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, runner: CliRunner) -> None:
    """--help exits 0 and shows an example."""
    result = runner.invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and "Example:" in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("fit --recipe none", "known by name"),
        ("fit --recipe smoke --set optimisation.speed=1 --set loss.variant=best", "optimisation.speed"),
        ("fit --recipe smoke --run {tmp}/run --set data.source={tmp}/nowhere", "nowhere"),
        ("fit --recipe smoke --run {tmp}/run --resume", "no run to resume in"),
        ("fit --recipe smoke --run {tmp}/run --set training.seed=-1", "training.seed"),
        pytest.param(
            "fit --recipe smoke --run {tmp}/run --set training.device=cuda",
            "training.device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
        ("heads --encoder {tmp} --data {tmp}/nowhere --out {tmp}/w", "encoder.safetensors"),
        ("evaluate --data {tmp} --out {tmp}/r", "--weights"),
        ("evaluate --data {tmp} --out {tmp}/r --backbone resnet18", "--fit-on"),
        ("evaluate --data {tmp} --out {tmp}/r --weights {tmp}", "encoder.safetensors"),
        ("report --results {tmp}/none --out {tmp}/p", "evaluate"),
        ("export --weights {tmp} --out {tmp}/w", "encoder.safetensors"),
        ("import-release {tmp} {tmp}/w", "model.safetensors"),
        ("data inspect {tmp}/nowhere", "nowhere"),
        ("data d3 {tmp}/none.parquet {tmp}/s", "none.parquet"),
        ("bench --data {tmp}/nowhere", "nowhere"),
        ("fit --unknown", "unknown"),
        ("fit --recipe smoke --set data.source={tmp} --set loss.temperature=-1 --run {tmp}/run", "loss.temperature"),
        ("fit --recipe smoke --set data=3", "data"),
        ("fit --recipe smoke --set optimisation.lr=", "optimisation.lr"),
        ("fit --recipe smoke --set =3", "section.field=value"),
        ("fit --recipe {tmp}", "recipe"),
        ("fit --recipe {tmp}/bad.toml", "bad.toml"),
        ("fit --recipe smoke --set data.source={tmp}/real --run {tmp}/run", "real/"),
        ("fit --recipe smoke --set data.source={tmp}/bad.toml --run {tmp}/run", "no folder"),
        ("fit --recipe smoke --run {tmp}/bad.toml/run --set data.source={tmp}", "bad.toml"),
        ("fit --run {tmp}/run --resume --set training.seed=1", "--set"),
        ("heads --encoder {tmp} --data {tmp} --out {tmp}", "not empty"),
        ("heads --encoder {tmp}/bad.toml --data {tmp} --out {tmp}/w", "encoder.safetensors"),
        ("evaluate --data {tmp}/bad.toml --out {tmp}/r --weights {tmp}", "encoder.safetensors"),
        ("evaluate --data {tmp} --out {tmp}/r --weights {tmp} --backbone timm:resnet18", "either"),
        ("evaluate --data {tmp} --out {tmp}/r --backbone timm:resnet81 --fit-on {tmp}", "resnet18"),
        ("evaluate --data {tmp} --out {tmp}/r --weights {tmp} --calibration best", "best"),
        ("evaluate --data {tmp} --out {tmp}/r --weights {tmp} --resamples -1", "resamples"),
        ("report --results {tmp} --out {tmp}/p", "results.json"),
        ("report --results {tmp}/broken --out {tmp}/p", "results.json"),
        ("report --results {tmp}/broken --out {tmp}/p --run {tmp}/typo", "typo"),
        ("import-release {tmp}/bad.toml {tmp}/w", "model.safetensors"),
        ("data d3 {tmp}/bad.toml {tmp}/s", "bad.toml"),
        ("data d3 {tmp} {tmp}/s", "parquet"),
        ("data d3 {tmp}/bad.toml {tmp}/s --records 0", "records"),
        ("data folder {tmp}/bad.toml", "no folder"),
        ("data inspect {tmp}/tars", "bad.tar"),
        ("data equalise {tmp} {tmp}", "not empty"),
        ("evaluate --data {tmp} --out {tmp}/bad.toml --weights {tmp}", "bad.toml is no folder"),
        ("evaluate --data {tmp} --out {tmp}/bad.toml/r --weights {tmp}", "lies in none"),
        ("data equalise {tmp} {tmp}/e --side-px 300 200", "--side-px 300 200"),
        ("no-such-command", "no-such-command"),
    ],
)
def test_what_the_user_can_put_right_is_exit_2(arguments: str, named: str, runner: CliRunner, tmp_path: Path) -> None:
    """Wrong usage, recipe, paths or weights: exit 2, the thing named, no traceback."""
    (tmp_path / "bad.toml").write_text("name = [")
    for name in ("tars/bad.tar", "broken/results.json", "real/broken.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{")
    result = runner.invoke(app, [part.format(tmp=tmp_path) for part in arguments.split()], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert named in result.output
    assert "Traceback" not in result.output


def test_one_class_alone_is_refused_before_the_work(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """heads and evaluate say which class is missing, in the data set or a group of it, and embed nothing."""
    write_synthetic_folder(tmp_path / "both", 6, size=64)
    save_encoder(create_encoder(), tmp_path / "encoder")
    made = runner.invoke(
        app,
        [
            "heads",
            "--encoder",
            str(tmp_path / "encoder"),
            "--data",
            str(tmp_path / "both"),
            "--out",
            str(tmp_path / "w"),
        ],
    )
    assert made.exit_code == 0, made.output
    shutil.copytree(tmp_path / "both" / "real", tmp_path / "reals" / "real")
    for group in ("augm", "no_augm"):
        shutil.copytree(tmp_path / "both" / "real", tmp_path / "groups" / group / "real")
        shutil.copytree(tmp_path / "both" / "fake" / "upsampled", tmp_path / "groups" / group / "gen_0")
    for path in (tmp_path / "groups" / "augm" / "real").iterdir():
        path.unlink()
    monkeypatch.setattr(embed, "embed_images", None)
    for data, missing in (("reals", "reals: no generated images"), ("groups", "groups/augm: no real images")):
        source = ["--data", str(tmp_path / data)]
        for command in (
            ["heads", "--encoder", str(tmp_path / "encoder"), *source, "--out", str(tmp_path / "w2")],
            ["evaluate", "--weights", str(tmp_path / "w"), *source, "--out", str(tmp_path / "r")],
            [
                "evaluate",
                "--backbone",
                "timm:resnet10t",
                "--no-pretrained",
                "--fit-on",
                str(tmp_path / "both"),
                *source,
                "--out",
                str(tmp_path / "r"),
            ],
        ):
            result = runner.invoke(app, command, env={"COLUMNS": "300"})
            assert result.exit_code == 2 and missing in result.output, result.output


def test_a_job_that_starts_again_goes_on(runner: CliRunner, tmp_path: Path) -> None:
    """With --restartable the same command begins a run and goes on with it, and refuses a folder with a run of another
    recipe.
    """
    write_synthetic_folder(tmp_path / "images", 8, size=64)
    given = [
        f"data.source={tmp_path / 'images'}",
        "data.workers=0",
        "data.validation_fraction=0.4",
        "loss.terms=global_only",
        "training.batch_size=2",
    ]
    given += ["training.steps_per_epoch=1", "optimisation.warmup_epochs=0", "optimisation.epochs=1"]
    command = [
        "fit",
        "--recipe",
        "smoke",
        "--restartable",
        "--run",
        str(tmp_path / "run"),
        *(part for value in given for part in ("--set", value)),
    ]
    for _ in range(2):
        result = runner.invoke(app, command)
        assert result.exit_code == 0 and "finished after 1 steps" in result.output, result.output
    other = runner.invoke(app, [*command, "--set", "training.seed=9"], env={"COLUMNS": "300"})
    assert other.exit_code == 2 and "another recipe" in other.output


def test_a_run_without_validation_images_says_that_it_had_no_probe(runner: CliRunner, tmp_path: Path) -> None:
    """Where no probe was possible `fit` ends with "no probe", not with a number."""
    write_synthetic_folder(tmp_path / "images", 4, size=64)
    given = [
        f"data.source={tmp_path / 'images'}",
        "data.workers=0",
        "data.validation_fraction=0",
        "loss.terms=global_only",
    ]
    given += [
        "training.batch_size=2",
        "training.steps_per_epoch=1",
        "optimisation.warmup_epochs=0",
        "optimisation.epochs=1",
    ]
    command = [
        "fit",
        "--recipe",
        "smoke",
        "--run",
        str(tmp_path / "run"),
        *(part for value in given for part in ("--set", value)),
    ]
    result = runner.invoke(app, command, env={"COLUMNS": "300"})
    assert result.exit_code == 0 and "finished after 1 steps, no probe, 0 records replaced" in result.output, (
        result.output
    )


@pytest.mark.parametrize(
    "results",
    ["{}", "[1]", '{"backbone": "", "images": {}, "intervals": "", "protocol": {}, "rows": [{"kind": "all"}]}'],
)
def test_results_of_another_shape_are_one_line(results: str, runner: CliRunner, tmp_path: Path) -> None:
    """`report` on JSON that evaluate did not write: exit 2 and one line that names the file."""
    (tmp_path / "results.json").write_text(results)
    np.savez(
        tmp_path / "embeddings.npz",
        embeddings=np.zeros((2, 8)),
        labels=[0, 1],
        generators=["real", "a"],
        scores=np.zeros((2, 3)),
    )
    result = runner.invoke(app, ["report", "--results", str(tmp_path), "--out", str(tmp_path / "page")])
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
    assert f"{tmp_path / 'results.json'} is not what" in result.output and not (tmp_path / "page").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_one_line(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C and SIGTERM end a command with 130 and what to do next, after its own clearing up; afterwards SIGTERM is
    what it was.
    """
    before, cleared = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with clear_errors(when_stopped=GOES_ON):
            try:
                signal.raise_signal(number)
            finally:
                cleared.append(True)

    with pytest.raises(typer.Exit) as ended:
        work()
    assert ended.value.exit_code == 130 and cleared
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("command", ["heads", "evaluate"])
def test_a_stopped_embedding_goes_on(
    command: str, runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by SIGTERM while images are embedded, `heads` and `evaluate` keep what they said: the same command
    finishes, with what was embedded.
    """
    write_synthetic_folder(tmp_path / "images", 4, size=64)
    save_encoder(create_encoder(), tmp_path / "encoder")
    made = [
        "heads",
        "--encoder",
        str(tmp_path / "encoder"),
        "--data",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "heads"),
    ]
    if command == "evaluate":
        assert runner.invoke(app, made).exit_code == 0
        made = [
            "evaluate",
            "--weights",
            str(tmp_path / "heads"),
            "--data",
            str(tmp_path / "images"),
            "--out",
            str(tmp_path / "results"),
        ]
    monkeypatch.setattr(embed, "KEPT_AT_ONCE", 3)
    true_embed, embedded = embed.embed_images, []

    def embed_some(*arguments: Any, **options: Any) -> Embedded:
        if len(embedded) == 2:
            embedded.append(0)
            signal.raise_signal(signal.SIGTERM)
        embedded.append(len(arguments[1]))
        return true_embed(*arguments, **options)

    monkeypatch.setattr(embed, "embed_images", embed_some)
    stopped = runner.invoke(app, made)
    assert stopped.exit_code == 130 and GOES_ON in stopped.output
    done = runner.invoke(app, made)
    assert done.exit_code == 0, done.output
    cut_alike = [3, 3, 2] if command == "evaluate" else []  # its second pass over the same images
    assert embedded == [3, 3, 0, 2, *cut_alike]
    assert not list(tmp_path.glob("*/.unfinished-*"))


def test_folder_check_as_json_names_what_is_left_out(runner: CliRunner, tmp_path: Path) -> None:
    """Counts of both classes, and path, kind and reason of every file that is left out."""
    write_synthetic_folder(tmp_path, 2, size=64)
    (tmp_path / "real" / "broken.jpg").write_bytes(b"no image")
    told = json.loads(runner.invoke(app, ["data", "folder", str(tmp_path), "--json"]).stdout)
    assert told["images"] == {"real": 2, "fake": 2}
    assert [(entry["kind"], Path(entry["path"]).name) for entry in told["left_out"]] == [("corrupt", "broken.jpg")]


def test_from_a_folder_to_a_served_model(runner: CliRunner, tmp_path: Path) -> None:
    """inspect, equalise, heads, evaluate, report, export: each command's output is the next one's input."""
    images, encoder = tmp_path / "images", tmp_path / "encoder"
    write_synthetic_folder(images, 14, size=96)
    save_encoder(create_encoder(), encoder)

    def run(*arguments: object) -> str:
        result = runner.invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    facts = json.loads(run("data", "inspect", images, "--sheet", tmp_path / "sheet.png", "--json"))
    assert facts["images"] == {"real": 14, "fake": 14} and facts["contact_sheet"] == 28
    assert facts["warnings"] == []
    run("data", "equalise", images, tmp_path / "equal", "--held-out", "0.2")
    run(
        "heads",
        "--encoder",
        encoder,
        "--data",
        images,
        "--out",
        tmp_path / "weights",
        "--set",
        "heads.calibration_fraction=0.4",
    )
    (images / "real" / "broken.jpg").write_bytes(b"no image")
    run(
        "evaluate",
        "--weights",
        tmp_path / "weights",
        "--data",
        images,
        "--out",
        tmp_path / "results",
        "--resamples",
        "5",
        "--calibration",
        "temperature",
    )
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["images"]["unreadable"] == 1 and "broken.jpg" in results["unreadable"][0]
    about = results["about"]
    assert about["model version"] == weights.load(tmp_path / "weights").version and about["data"] == str(images)
    run("report", "--results", tmp_path / "results", "--out", tmp_path / "report", "--data", images)
    run("export", "--weights", tmp_path / "weights", "--out", tmp_path / "served", "--half")
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    assert (
        json.loads((tmp_path / "served" / "card.json").read_text())["model_version"]
        == weights.load(tmp_path / "served").version
    )


def test_contact_sheet_needs_no_extension(runner: CliRunner, tmp_path: Path) -> None:
    """The sheet is a PNG whatever its name."""
    write_synthetic_folder(tmp_path / "set", 2, size=48)
    result = runner.invoke(
        app, ["data", "inspect", str(tmp_path / "set"), "--sheet", str(tmp_path / "sheet"), "--json"]
    )
    assert result.exit_code == 0 and (tmp_path / "sheet").read_bytes().startswith(b"\x89PNG")


def test_values_stand_in_the_order_of_their_numbers() -> None:
    """Sizes are listed and drawn from small to large, not by the alphabet."""
    counts, _ = correlations([Facts("real", "a", "JPEG", side, side, 10_000) for side in (2000, 1000, 100, 300)])
    assert list(counts["short side"]) == ["0-127", "256-383", "768-1023", "1024+"]
    assert list(counts["size"]) == ["100x100", "300x300", "1000x1000", "2000x2000"]


def test_inspect_warns_of_shortcuts(runner: CliRunner, tmp_path: Path) -> None:
    """A set in which format and size give the label away is called out; after equalising they no longer do."""
    rng = np.random.default_rng(0)
    for index in range(24):
        for name, size, kind in (("real", 300 + 20 * (index % 5), "jpg"), ("fake/a", 640, "png")):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            synthetic_image(fake=name != "real", rng=rng, size=size).save(tmp_path / "set" / name / f"{index}.{kind}")

    def shortcuts(folder: Path) -> dict[str, float]:
        return json.loads(runner.invoke(app, ["data", "inspect", str(folder), "--json"]).stdout)["label_given_away_by"]

    before = shortcuts(tmp_path / "set")
    assert before["format"] > 0.9 and before["short side"] > 0.9
    assert (
        runner.invoke(
            app, ["data", "equalise", str(tmp_path / "set"), str(tmp_path / "equal"), "--held-out", "0.1"]
        ).exit_code
        == 0
    )
    after = shortcuts(tmp_path / "equal" / "train")
    assert after["format"] == after["shape"] == 0 and after["short side"] < 0.3
    assert {path.suffix for path in (tmp_path / "equal" / "train").rglob("*") if path.is_file()} == {".jpg"}


@pytest.mark.slow
def test_bench_prints_rates_and_ratios(runner: CliRunner, tmp_path: Path) -> None:
    """`bench --json` has the rate of either side and their ratio, in each of its scopes."""
    write_synthetic_folder(tmp_path, 3, size=96)
    result = runner.invoke(
        app, ["bench", "--data", str(tmp_path), "--processes", "1", "--records", "2", "--train-steps", "0", "--json"]
    )
    measured = json.loads(result.stdout)
    for scope in ("views", "with_decoding", "whole_input"):
        assert measured["views_per_s_cpu"][scope]["fast"] > 0 and measured["times_reference"][scope] > 0


def test_kept_ablations_are_those_of_the_paper() -> None:
    """Each ablation the paper's readers ask for is a recipe."""
    kept = {path.stem for path in RECIPES.glob("ablation-*.toml")}
    assert kept == {
        f"ablation-{name}"
        for name in ("global-only", "local-global", "local-96", "crop-ratios", "no-transforms", "released-loss")
    }
