"""The wheel: what an installed package needs at run time is in it, and nothing that is only for the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

hatchling = pytest.importorskip("hatchling.build", reason="hatchling is not installed: make setup-all")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DATA = {
    "train/report.html.j2",
    "train/paper.html.j2",
    "train/generators.csv",
    "train/calibration/page.html.j2",
    *(f"{package}/py.typed" for package in ("worker", "train", "triton_models")),
    "triton_models/python_backend.py",  # copied into the model repository as model.py
    "worker/local/kafka_jars.sha256",
    *(
        str(path.relative_to(ROOT))
        for folder in ("templates", "static")
        for path in (ROOT / "worker" / "console" / folder).iterdir()
    ),
    *(
        str(path.relative_to(ROOT))
        for path in (ROOT / "triton_models" / "detectors").rglob("*.*")
        if path.suffix in (".toml", ".json", ".md", ".safetensors")
    ),
    *(f"train/recipes/{path.name}" for path in (ROOT / "train" / "recipes").glob("*.toml")),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)  # a build backend works in the project's folder (PEP 517)
    try:
        return folder / hatchling.build_wheel(str(folder))
    finally:
        os.chdir(before)


def test_wheel_holds_every_module_and_what_they_read(wheel: Path) -> None:
    """All modules of the three packages, templates, recipes, licences and shipped heads; no tests, backbones or
    deployment files."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT))
        for package in ("worker", "train", "triton_models")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules | DATA <= names
    assert {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    own = {name for name in names if not name.startswith("assay_worker-")}
    assert own == modules | DATA


def test_installed_package_runs_outside_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    """From the wheel alone, in another folder: the commands answer, a recipe is found by name, the report's template is
    there.
    """
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # -S and PYTHONPATH: this environment's libraries without the editable install, so that only the wheel can be meant.
    libraries = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *libraries]), "COLUMNS": "120"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--resume" in run("-m", "train.main", "fit", "--recipe", "smoke", "--help")
    assert "send" in run("-m", "worker", "--help")
    answer = run(
        "-c", "from train import recipe; print(recipe.load_recipe('smoke').training.batch_size, recipe.__file__)"
    )
    assert answer.startswith("32 ") and str(tmp_path / "site") in answer
    code = (
        "from pathlib import Path; from train import report; print(report._TEMPLATE.read_text()[:15], report.__file__)"
    )
    assert run("-c", code).startswith("<!doctype html>")
