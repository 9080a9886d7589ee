"""The training Job against the real thing: torchrun's and train.main's own parsers take its arguments, and its pods go
on where the last one was.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser
from typer.main import get_command

from tests.deploy import chart, tools
from tests.integration.harness import wait_until
from train.data.synthetic import write_synthetic_folder
from train.main import app
from train.recipe import Recipe, load_recipe
from train.run_folder import read_metrics
from worker.local import paths

pytestmark = pytest.mark.usefixtures("helm")
TRAINING = [name for name in chart.NAMES if "train.main" in chart.manifest(name)]
DEFAULTS = {"training": {"enabled": True, "dataClaimName": "d"}}


def _container(text: str) -> chart.Object:
    return next(
        pod for where, pod in chart.pod_specs(chart.objects(text)) if where.split("/")[0] in ("Job", "CronJob")
    )["containers"][0]


def _parse(arguments: list[str]) -> tuple[Any, dict[str, Any], Recipe]:
    """What torchrun, `train.main fit` and the recipe make of a container's arguments, none of which may refuse
    a part.
    """
    launcher = get_args_parser().parse_args(arguments)
    assert launcher.module and launcher.training_script == "train.main"
    command, *rest = launcher.training_script_args
    given = get_command(app).commands[command].make_context(command, rest).params
    return launcher, given, load_recipe(given["recipe"], given["overrides"] or [])


@pytest.mark.parametrize("name", TRAINING)
def test_training_takes_the_jobs_arguments(name: str) -> None:
    """torchrun, the command line and the recipe accept the arguments of every values file; the run can start again and
    lies on the claim.
    """
    launcher, given, recipe = _parse(_container(chart.manifest(name))["args"])
    assert given["restartable"] and str(given["run"]).startswith("/data/") and recipe.data.source.startswith("/data/")
    assert launcher.nnodes == ("2" if name == "training" else "1")


def test_training_takes_the_default_arguments() -> None:
    """What values.yaml gives is a run of the paper's recipe, in a folder named by its Job."""
    container = _container(chart.template(values=DEFAULTS))
    _, given, recipe = _parse(container["args"])
    assert str(given["run"]) == "/data/runs/$(JOB_NAME)" and recipe.name == "paper"
    assert "JOB_NAME" in [entry["name"] for entry in container["env"]]


def _job(*arguments: str, **values: Any) -> chart.Object:
    return chart.of_kind(chart.objects(chart.template(*arguments, values={**DEFAULTS, **values})), "Job")[0]


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"commonLabels": {"team": "t"}}, True),
        ({"serviceAccount": {"name": "other"}}, True),
        ({"gpu": {"resource": "nvidia.com/gpu.shared"}}, True),
        ({"training": {**DEFAULTS["training"], "image": {"tag": "2"}}}, True),
        ({"training": {**DEFAULTS["training"], "backoffLimit": 9}}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_job_cannot_change_is_in_its_name(change: dict[str, Any], another: bool) -> None:
    """A changed value that reaches the pods makes a Job of another name, one that a Job takes keeps its name: no
    upgrade is refused as immutable.
    """
    before, after = _job(), _job(**change)
    assert (before["spec"]["template"] != after["spec"]["template"]) == another
    assert (before["metadata"]["name"] != after["metadata"]["name"]) == another


def test_another_chart_version_is_no_other_run(tmp_path: Path) -> None:
    """The chart's version alone changes nothing of the Job but its own labels."""
    copy = tmp_path / "assay"
    shutil.copytree(chart.CHART, copy)
    meta = copy / "Chart.yaml"
    meta.write_text(re.sub(r"^version: .*$", "version: 9.9.9", meta.read_text(), flags=re.MULTILINE))
    command = [
        str(tools.helm()),
        "template",
        "assay",
        str(copy),
        "--kube-version",
        "1.36.3",
        "--set=training.enabled=true,training.dataClaimName=d",
    ]
    after = chart.of_kind(
        chart.objects(subprocess.run(command, capture_output=True, text=True, check=True).stdout), "Job"
    )[0]
    before = _job()
    assert after["metadata"]["labels"]["helm.sh/chart"] == "assay-9.9.9"
    assert (after["metadata"]["name"], after["spec"]) == (before["metadata"]["name"], before["spec"])


@pytest.mark.parametrize(
    ("argument", "refusal"),
    [("--out=/data/runs/paper", "No such option: --out"), ("--set=data.sauce=/data", "data.sauce")],
)
def test_a_wrong_argument_is_found(argument: str, refusal: str) -> None:
    """The parsers above do refuse: an option that `fit` has not, a field that the recipe has not."""
    values = {"training": {**DEFAULTS["training"], "args": ["fit", "--recipe=paper", argument]}}
    with pytest.raises(Exception, match=refusal):
        _parse(_container(chart.template(values=values))["args"])


def _has_stepped(run: Path) -> bool:
    return any(line["kind"] == "step" for line in read_metrics(run))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drained_pod_fails_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """The Job's own command: SIGTERM saves and is no success (the Job would be over), and the same command then
    finishes the run.
    """
    write_synthetic_folder(tmp_path / "images", 8, size=64)
    short = [
        "data.source=images",
        "data.workers=0",
        "data.validation_fraction=0.4",
        "loss.terms=global_only",
        "training.device=cpu",
    ]
    short += [
        "training.batch_size=2",
        "training.steps_per_epoch=2",
        "optimisation.warmup_epochs=0",
        "optimisation.epochs=3",
        # Six steps do not leave the plateau of the loss, and the untrained encoder's embeddings are close.
        "validation.max_collapsed=9",
    ]
    arguments = [
        "fit",
        "--recipe=smoke",
        "--restartable",
        "--run=runs/$(JOB_NAME)",
        *(f"--set={value}" for value in short),
    ]
    values = {"training": {**DEFAULTS["training"], "args": arguments, "gpusPerNode": 0}}
    container = _container(chart.template(values=values))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(part.replace("$(JOB_NAME)", "job") for part in container["args"]),
    ]
    # The fixed port of the rendezvous belongs to the pod; here any free one will do.
    command = [":0".join(part.rsplit(":29400", 1)) for part in command]
    environment = os.environ | {"PYTHONPATH": str(paths.CHECKOUT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = tmp_path / "runs" / "job"
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: _has_stepped(run) or first.poll() is not None, "the first step", 400)
            first.send_signal(signal.SIGTERM)
            assert first.wait(120) not in (0, None), (tmp_path / "log").read_text()[-2000:]
        finally:
            # torchrun puts its processes into sessions of their own and ends them itself, unless it is killed.
            first.terminate()
            first.wait(120)
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, timeout=400, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert "continue with: python -m train.main fit" in (tmp_path / "log").read_text()
