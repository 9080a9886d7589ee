"""The command line: overview, exit codes, and the way from a folder to a served model."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from train.data.inspect import Facts, correlations
from train.data.synthetic import synthetic_image, write_synthetic_folder
from train.main import app
from train.model import create_encoder, save_encoder
from train.recipe import RECIPES
from triton_models import weights

pytestmark = pytest.mark.slow

COMMANDS = [
    "fit",
    "heads",
    "evaluate",
    "report",
    "export",
    "import-release",
    "bench",
    "simulate",
    "sweep",
    "data inspect",
    "data d3",
    "data folder",
    "data equalise",
]


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
