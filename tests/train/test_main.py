"""The command line: overview, exit codes, and the way from a folder to a served model."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from train.data.synthetic import synthetic_image, write_synthetic_folder
from train.main import app
from train.model import create_encoder, save_encoder
from train.recipe import RECIPES
from triton_models import weights

COMMANDS = ["fit", "heads", "evaluate", "report", "export", "import-release", "bench", "data inspect", "data d3", "data folder", "data equalise"]


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
        ("fit --recipe smoke --run {tmp}/run --resume", "recipe"),
        ("heads --encoder {tmp} --data {tmp}/nowhere --out {tmp}/w", "nowhere"),
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
        ("no-such-command", "no-such-command"),
    ],
)
def test_what_the_user_can_put_right_is_exit_2(arguments: str, named: str, runner: CliRunner, tmp_path: Path) -> None:
    """Wrong usage, recipe, paths or weights: exit 2, the thing named, no traceback."""
    result = runner.invoke(app, [part.format(tmp=tmp_path) for part in arguments.split()], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert named in result.output
    assert "Traceback" not in result.output


def test_a_job_that_starts_again_goes_on(runner: CliRunner, tmp_path: Path) -> None:
    """With --restartable the same command begins a run and goes on with it, and refuses a folder with a run of another recipe."""
    write_synthetic_folder(tmp_path / "images", 8, size=64)
    given = [
        f"data.source={tmp_path / 'images'}",
        "data.workers=0",
        "data.validation_fraction=0.4",
        "loss.terms=global_only",
        "training.batch_size=2",
    ]
    given += ["training.steps_per_epoch=1", "optimisation.warmup_epochs=0", "optimisation.epochs=1"]
    command = ["fit", "--recipe", "smoke", "--restartable", "--run", str(tmp_path / "run"), *(part for value in given for part in ("--set", value))]
    for _ in range(2):
        result = runner.invoke(app, command)
        assert result.exit_code == 0 and "finished after 1 steps" in result.output, result.output
    other = runner.invoke(app, [*command, "--set", "training.seed=9"], env={"COLUMNS": "300"})
    assert other.exit_code == 2 and "another recipe" in other.output


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
    run("heads", "--encoder", encoder, "--data", images, "--out", tmp_path / "weights", "--set", "heads.calibration_fraction=0.4")
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
    run("report", "--results", tmp_path / "results", "--out", tmp_path / "report", "--data", images)
    run("export", "--weights", tmp_path / "weights", "--out", tmp_path / "served", "--half")
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    assert json.loads((tmp_path / "served" / "card.json").read_text())["model_version"] == weights.load(tmp_path / "served").version


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
    assert runner.invoke(app, ["data", "equalise", str(tmp_path / "set"), str(tmp_path / "equal"), "--held-out", "0.1"]).exit_code == 0
    after = shortcuts(tmp_path / "equal" / "train")
    assert after["format"] == after["shape"] == 0 and after["short side"] < 0.3
    assert {path.suffix for path in (tmp_path / "equal" / "train").rglob("*") if path.is_file()} == {".jpg"}


@pytest.mark.slow
def test_bench_measures_without_augly(runner: CliRunner, tmp_path: Path) -> None:
    """Where augly is not installed the rest is measured, and the command that installs it is named."""
    write_synthetic_folder(tmp_path, 3, size=96)
    result = runner.invoke(app, ["bench", "--data", str(tmp_path), "--processes", "1", "--records", "2", "--train-steps", "0", "--json"])
    measured = json.loads(result.stdout)
    assert measured["rates"]["fast"]["ops_per_s_cpu"] > 0
    assert ("times_augly" in measured) or "augly==1.0.0" in measured["augly"]


def test_kept_ablations_are_those_of_the_paper() -> None:
    """Each ablation the paper's readers ask for is a recipe."""
    kept = {path.stem for path in RECIPES.glob("ablation-*.toml")}
    assert kept == {f"ablation-{name}" for name in ("global-only", "local-global", "local-96", "crop-ratios", "no-transforms", "released-loss")}
