"""Equalising: a stopped run goes on to the same files, and the cuts of an image stay together."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from train.data import equalise
from train.data.folder import FolderSource, scan_folder
from train.data.records import Labelled
from train.data.synthetic import write_synthetic_folder
from train.embed import Embedded, linear_probe
from train.fit_heads import fit_heads
from train.main import app
from train.recipe import HeadFit

OPTIONS = ["--held-out", "0.3", "--copies", "2", "--side-px", "32", "48"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped half-way and started again: the files of one run, none made twice; other options are refused, and so is a
    whole folder.
    """
    write_synthetic_folder(tmp_path / "set", 6, size=64)
    true_cut, made = equalise.equalise_image, []

    def equalised(out: str, *options: str, stop_after: int = 10**9) -> tuple[int, str]:
        def cut(*arguments: object) -> object:
            if len(made) == stop_after:
                raise KeyboardInterrupt
            made.append(out)
            return true_cut(*arguments)

        monkeypatch.setattr(equalise, "equalise_image", cut)
        result = CliRunner().invoke(
            app, ["data", "equalise", str(tmp_path / "set"), str(tmp_path / out), *OPTIONS, *options]
        )
        return result.exit_code, result.output

    assert equalised("whole")[0] == 0
    cuts = len(made)
    made.clear()
    assert equalised("parts", stop_after=5)[0] == 130
    assert len(files(tmp_path / "parts")) < len(files(tmp_path / "whole"))
    code, output = equalised("parts", "--seed", "1")
    assert code == 2 and "other images or options" in output.replace("\n", " ")
    assert equalised("parts")[0] == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert len(made) == cuts > 5
    code, output = equalised("parts")
    assert code == 2 and "not empty" in output


def known_by_photograph(images: list[Labelled]) -> Embedded:
    """Embeddings that tell the photograph and nothing else: a model that knows one by heart is right about its other
    cuts.
    """
    names = [Path(image.key.path).name.split("-")[0] for image in images]
    return Embedded(images, np.eye(len(set(names)), dtype=np.float32)[np.unique(names, return_inverse=True)[1]], [])


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Four cuts of each of 24 photographs."""
    folder = tmp_path_factory.mktemp("cuts")
    write_synthetic_folder(folder / "set", 12, size=64)
    images = scan_folder(folder / "set")[0].images
    equalise.equalise_folder(
        images, folder / "equal", held_out_fraction=0, max_per_generator=99, copies=4, side_px=(32, 48)
    )
    source = scan_folder(folder / "equal" / "train")[0]
    assert len(source.images) == 4 * 24
    return source


def test_validation_holds_out_photographs(cuts: FolderSource) -> None:
    """All cuts of a photograph are on the same side of the split of `fit`, and both sides have some."""
    sides = [{Path(image.key.path).name.split("-")[0] for image in part.images} for part in cuts.split(0.3)]
    assert all(sides) and not sides[0] & sides[1]
    assert sum(len(part.images) for part in cuts.split(0.3)) == len(cuts.images)


def test_the_probe_holds_out_photographs(cuts: FolderSource) -> None:
    """A probe that can only know photographs by heart is at chance on the half it was not fitted on."""
    assert linear_probe(known_by_photograph(cuts.images)).auc == 0.5


def test_calibration_holds_out_photographs(cuts: FolderSource) -> None:
    """Heads that can only know photographs by heart are at chance on the images held out of their fit, and so none is
    calibrated.
    """

    class Passes:
        def embed(self, _name: str, images: list[Labelled], *_: object, **__: object) -> Embedded:
            return known_by_photograph(images)

    heads, card = fit_heads(Passes(), cuts.images, HeadFit(calibration_fraction=0.3))
    assert card["images"]["calibration"]["real"] and card["images"]["calibration"]["fake"]
    assert card["calibration_auc"] == {"linear": 0.5, "knn": 0.5, "svm": 0.5}
    assert heads.not_calibrated == ["linear", "knn", "svm"] and len(card["not_calibrated"]) == 3
