"""Equalising: a stopped run goes on to the same files."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from train.data import equalise
from train.data.synthetic import write_synthetic_folder
from train.main import app

OPTIONS = ["--held-out", "0.3", "--copies", "2", "--side-px", "32", "48"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped half-way and started again: the files of one run, none made twice; other options are refused, and so is a whole folder."""
    write_synthetic_folder(tmp_path / "set", 6, size=64)
    true_cut, made = equalise.equalise_image, []

    def equalised(out: str, *options: str, stop_after: int = 10**9) -> tuple[int, str]:
        def cut(*arguments: object) -> object:
            if len(made) == stop_after:
                raise KeyboardInterrupt
            made.append(out)
            return true_cut(*arguments)

        monkeypatch.setattr(equalise, "equalise_image", cut)
        result = CliRunner().invoke(app, ["data", "equalise", str(tmp_path / "set"), str(tmp_path / out), *OPTIONS, *options])
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
