"""From three small runs of two seeds to all tables and figures, with the numbers of the results files."""

import csv
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.train.small_runs import QUIET, small
from train.data.images import DataError
from train.data.open import open_source
from train.data.synthetic import write_synthetic_folder
from train.degrade import SWEEPS
from train.engine import fit
from train.evaluate import Options
from train.fit_heads import make_weights
from train.main import app
from train.measure import Subject, measure
from train.paper_figures import records_of
from train.paper_page import write_paper
from train.paper_tables import Cell, Table
from train.recipe import HeadFit

pytestmark = pytest.mark.slow

MODELS = {"a-1": ("spectral", 1), "a-2": ("spectral", 2), "b-1": ("timm", 1)}


def d3_layout(folder: Path) -> Path:
    """{augm,no_augm}/{real,gen_0,gen_1}, a record's images with one name."""
    for seed, group in enumerate(("augm", "no_augm")):
        write_synthetic_folder(folder / "made", 10, seed=seed)
        fakes = sorted((folder / "made" / "fake" / "upsampled").iterdir())
        for index, real in enumerate(sorted((folder / "made" / "real").iterdir())):
            for source, path in (("real", real), (f"gen_{index % 2}", fakes[index])):
                target = folder / group / source / f"{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    for path in (folder / "made").rglob("*"):
        assert path.is_dir()
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ and results/ of three models, d3_test/, and a fourth evaluation of an untrained backbone."""
    folder = tmp_path_factory.mktemp("paper")
    write_synthetic_folder(folder / "images", 20, seed=5)
    test = d3_layout(folder / "d3_test")
    patch = pytest.MonkeyPatch()
    patch.setattr("train.robustness.SWEEPS", {"JPEG quality": dict(list(SWEEPS["JPEG quality"].items())[:2])})
    patch.setattr("train.robustness.PROFILES", {})
    patch.setattr("train.robustness.LONGEST_CHAIN", 1)
    options = Options(resamples=0, robustness=True, sweep_images=6)
    for name, (start, seed) in MODELS.items():
        run = folder / "runs" / name
        fit(small(folder / "images", f"training.initialisation={start}", f"training.seed={seed}"), run, console=QUIET)
        images = open_source(folder / "images").labelled()
        make_weights(run / "best", images, HeadFit(transformed=False), run / "weights")
        measure(Subject(weights=run / "weights"), test, folder / "results" / name, options)
    patch.undo()
    other = Subject(backbone="timm:resnet18", fit_on=folder / "images", pretrained=False)
    measure(other, test, folder / "results" / "resnet18", Options(resamples=0))
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a table's CSV by their first column."""
    with path.open(newline="") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def paper(work: Path) -> Path:
    arguments = ["paper", str(work / "runs"), str(work / "results"), "--data", str(work / "d3_test")]
    result = CliRunner().invoke(app, [*arguments, "--expect", "smoke,ablation-local-96", "--out", str(work / "paper")])
    assert result.exit_code == 0, result.output
    return work / "paper"


def test_every_table_and_figure_is_there(paper: Path) -> None:
    """CSV and LaTeX of each table, PNG of each figure, and one page that fetches nothing and names the command."""
    expected = {"training", "protocol-augm", "protocol-no_augm", "metrics", "generators", "eras", "robustness"}
    for ending in (".csv", ".tex"):
        assert {path.stem for path in paper.glob(f"*{ending}")} == expected | {"differences"}
    assert {path.stem for path in paper.glob("*.png")} == {f"figure{number}" for number in range(1, 6)}
    for path in paper.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5
    page = (paper / "paper.html").read_text()
    assert "train.main paper" in page and "train.main evaluate" in page
    assert page.count("data:image/png") == 5 and not re.search(r'(src|href)="(?!data:|#)', page)
    assert all(
        "tabular" in path.read_text() and "% python -m train.main paper" in path.read_text()
        for path in paper.glob("*.tex")
    )


def test_a_column_of_numbers_stays_one_without_any(tmp_path: Path) -> None:
    """Whoever reads the CSV finds mean, deviation and seeds of a metric that nobody could measure, and one column of
    a text.
    """
    table = Table("t", "title", "model", ["TPR", "p"], [("a", [Cell(), Cell(text="0.01")]), ("b", [Cell(), Cell()])])
    table.write(tmp_path, "command")
    header, first, second = csv.reader((tmp_path / "t.csv").read_text().splitlines())
    assert header == ["model", "TPR mean", "TPR sd", "TPR seeds", "p"]
    assert (first, second) == (["a", "", "", "", "0.01"], ["b", "", "", "", ""])


def test_numbers_are_those_of_the_results_files(work: Path, paper: Path) -> None:
    """Means and deviations over seeds, every digit, of the metrics, the protocol, the tiers and the paired tests."""
    results = {name: json.loads((work / "results" / name / "results.json").read_text()) for name in MODELS}

    def auc(name: str, group: str) -> float:
        (row,) = [row for row in results[name]["controlled"] if row["group"] == group and row["kind"] == "all"]
        return row["metrics"]["linear"]["auc"]["value"]

    made = rows(paper / "metrics.csv")
    (line,) = [row for name, row in made.items() if "=spectral" in name and "linear, no_augm" in name]
    both = [auc(name, "no_augm") for name in ("a-1", "a-2")]
    assert (float(line["AUC mean"]), line["AUC seeds"]) == (statistics.fmean(both), "2")
    assert float(line["AUC sd"]) == statistics.stdev(both)
    (line,) = [row for name, row in made.items() if "=timm" in name and "linear, augm" in name]
    assert (float(line["AUC mean"]), line["AUC sd"], line["AUC seeds"]) == (auc("b-1", "augm"), "", "1")

    (line,) = [row for name, row in rows(paper / "protocol-augm.csv").items() if "=spectral" in name and "knn" in name]
    accuracy = [results[name]["protocol"]["augm"]["gen_1"]["knn"]["fake"] for name in ("a-1", "a-2")]
    assert float(line["gen_1 mean"]) == statistics.fmean(accuracy)

    tier = rows(paper / "robustness.csv")["JPEG quality: 85"]
    values = [results[name]["robustness"]["JPEG quality"]["85"]["linear"]["auc"]["value"] for name in ("a-1", "a-2")]
    (column,) = [name for name in tier if "=spectral" in name and name.endswith("mean")]
    assert float(tier[column]) == statistics.fmean(values)

    plain = {
        name: next(
            row["metrics"]["linear"]["auc"]["value"]
            for row in results[name]["rows"]
            if (row["group"], row["kind"]) == ("augm", "all")
        )
        for name in MODELS
    }
    (line,) = [
        row
        for name, row in rows(paper / "differences.csv").items()
        if re.match(r".*=timm.* - .*=spectral", name) and name.endswith(" 1 augm")
    ]
    assert float(line["AUC mean"]) == pytest.approx(plain["b-1"] - plain["a-1"]) != 0

    probes = [json.loads(text) for text in (work / "runs" / "b-1" / "metrics.jsonl").read_text().splitlines()]
    aucs = [entry["auc"] for entry in probes if entry["kind"] == "probe"]
    (line,) = [row for name, row in rows(paper / "training.csv").items() if "=timm" in name]
    assert float(line["best probe AUC mean"]) == max(aucs)
    assert (line["seeds"], line["steps"]) == ("1", "4")
    assert {"95 %", "p (Holm)"} < next(iter(rows(paper / "differences.csv").values())).keys(), "texts have one column"


def test_what_is_missing_is_listed_with_its_command(paper: Path) -> None:
    """The seed that one model lacks, the recipe nobody ran, and the robustness of the evaluation without it."""
    page = (paper / "paper.html").read_text()
    assert "ablation-local-96: no run" in page and "smoke: no run" not in page
    assert re.search(r"initialisation=timm\): no run of seed 2: <code>\S+ -m train\.main fit --recipe \S+", page)
    assert "--set training.seed=2" in page
    assert "--backbone timm:resnet18 --fit-on" in page and " --no-pretrained --data" in page
    assert "timm:resnet18: robustness" in page and "Figure" not in page.split("Table 1")[0].split("Missing")[1]


def test_samples_are_untransformed_records_first(work: Path) -> None:
    """Figures 1 and 2 show images as they are, where both groups of D3's test layout have the record."""
    records = records_of(open_source(work / "d3_test").labelled())
    assert [record[0].group for record in records] == ["no_augm"] * 10 + ["augm"] * 10


def test_without_images_and_results_the_page_says_so(work: Path, tmp_path: Path) -> None:
    """Runs alone give their table; all figures are listed as missing, and every run as not measured. Nothing is
    refused.
    """
    said: list[str] = []
    (page,) = write_paper([work / "runs"], tmp_path / "out", say=said.append)
    assert {path.name for path in page.parent.iterdir()} == {"training.csv", "training.tex", "paper.html"}
    assert sum("Figure" in line for line in said) == 5 and sum("not measured" in line for line in said) == 3
    with pytest.raises(DataError, match="no run"):
        write_paper([tmp_path / "out"], tmp_path / "again")


def test_two_evaluations_of_one_seed_are_refused(work: Path, tmp_path: Path) -> None:
    """They would count as two seeds."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "results.json").write_bytes((work / "results" / "a-1" / "results.json").read_bytes())
    with pytest.raises(DataError, match="same model, seed and data"):
        write_paper([work / "results", copy], tmp_path / "out")
