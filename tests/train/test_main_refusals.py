"""What the user can put right is told in one line, and a command that is stopped or starts again goes on."""

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
from train.data.synthetic import write_synthetic_folder
from train.embed import Embedded
from train.main import app
from train.model import create_encoder, save_encoder
from train.terminal import GOES_ON, clear_errors


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
        ("fit --recipe smoke --run {tmp}/bad.toml/run --set data.source={tmp}", "another folder with --run"),
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
