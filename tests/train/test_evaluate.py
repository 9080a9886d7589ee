"""Evaluation, export and report on a small set with known answers."""

import csv
import io
import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from train import embed
from train.data.folder import scan_folder
from train.data.open import open_source
from train.data.synthetic import write_synthetic_folder
from train.degrade import SWEEPS
from train.embed import embed_images
from train.evaluate import Options, evaluate, family, headline, leaks
from train.export import export
from train.heads import Heads
from train.model import Backbone, create_encoder, load_encoder, save_encoder, timm_backbone
from train.report import write_report
from train.robustness import CHAINS, RESHARED, worst_first
from triton_models import weights
from triton_models.weights import WeightsError

pytestmark = pytest.mark.slow


class Means(nn.Module):
    """A stand-in backbone: the differences between neighbouring pixels, which is where the synthetic fakes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        even, odd = (
            (images[..., 1::2, :] - images[..., ::2, :]).abs().mean((1, 2, 3)),
            (images[..., 2::2, :] - images[..., 1:-1:2, :]).abs().mean((1, 2, 3)),
        )
        return torch.stack([10 * even, 10 * odd, torch.ones_like(even)], 1)


BACKBONE = Backbone("means", Means(), 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """D3's test layout with two generators in each group, a GIF, and one broken file in a place of its own."""
    folder = tmp_path_factory.mktemp("d3_test")
    for seed, group in enumerate(("augm", "no_augm")):
        write_synthetic_folder(folder / "made", 12, seed=seed)
        for index, path in enumerate(sorted((folder / "made" / "fake" / "upsampled").iterdir())):
            target = folder / group / f"gen_{index % 2}"
            target.mkdir(parents=True, exist_ok=True)
            path.rename(target / path.name)
        (folder / "made" / "real").rename(folder / group / "real")
    Image.open(next((folder / "augm" / "real").iterdir())).convert("P").save(folder / "augm" / "real" / "palette.gif")
    return folder


@pytest.fixture(scope="module")
def heads(folder: Path) -> Heads:
    images = scan_folder(folder)[0].images
    embedded = embed_images(BACKBONE, images)
    return Heads.fit(embedded.embeddings, embedded.labels)


def test_evaluation_gives_protocol_rows_and_files(folder: Path, heads: Heads, tmp_path: Path) -> None:
    """Accuracies by group and generator, metrics with intervals, and one CSV row for each image, GIF included."""
    images = scan_folder(folder)[0].images
    options = Options(resamples=50, trained_on=frozenset({"gen_0", "gen_1"}))
    results = evaluate(BACKBONE, heads, images, tmp_path, options)
    assert set(results["protocol"]) == {"augm", "no_augm"}
    assert set(results["protocol"]["augm"]) == {"gen_0", "gen_1"}
    assert results["protocol"]["augm"]["gen_0"]["knn"] == {"real": 1.0, "fake": 1.0, "all": 1.0}
    names = {(row["group"], row["kind"], row["name"]) for row in results["rows"]}
    assert {("augm", "all", "all"), ("augm", "family", "trained on"), ("no_augm", "generator", "gen_1")} <= names
    assert {(row["name"], row["family"]) for row in results["rows"]} == {
        ("all", None),
        ("trained on", "trained on"),
        ("gen_0", "trained on"),
        ("gen_1", "trained on"),
    }
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == len(images) == 49
    assert json.loads((tmp_path / "results.json").read_text())["images"] == {
        "real": 25,
        "fake": 24,
        "unreadable": 0,
        "left_out": 0,
    }
    assert np.load(tmp_path / "embeddings.npz")["scores"].shape == (49, 3)
    assert len(headline(results)) == len(results["rows"])


def test_results_name_the_heads_without_a_calibration(folder: Path, heads: Heads, tmp_path: Path) -> None:
    """Where a head has no calibration, results and page say whose scores are plain."""
    made = {
        f"calibration.linear.{name}": np.array([1.0]) for name in ("temperature", "bias", "isotonic_x", "isotonic_y")
    }
    images = scan_folder(folder)[0].images
    results = evaluate(
        BACKBONE, Heads(heads.arrays, made), images, tmp_path / "results", Options("temperature", resamples=5)
    )
    assert results["not_calibrated"] == ["knn", "svm"]
    assert (
        "calibrated (temperature, but for knn and svm)"
        in write_report(tmp_path / "results", tmp_path / "report").read_text()
    )


def test_unreadable_images_are_named_not_dropped(folder: Path, heads: Heads, tmp_path: Path) -> None:
    """An image that cannot be read stands in the results with its reason."""
    images = scan_folder(folder)[0].images
    from dataclasses import replace

    from train.data.records import Key

    broken = replace(images[0], key=Key(str(tmp_path / "gone.png")))
    console = Console(record=True, file=io.StringIO())
    results = evaluate(BACKBONE, heads, [*images[1:], broken], tmp_path, Options(resamples=5), console=console)
    assert results["images"]["unreadable"] == 1
    assert "gone.png" in results["unreadable"][0] and "gone.png" in console.export_text()


def test_what_the_look_at_the_data_left_out_is_in_results_and_report(heads: Heads, tmp_path: Path) -> None:
    """A corrupt file counts as unreadable, a duplicate as left out: each is named with its reason, also on the page."""
    write_synthetic_folder(tmp_path / "set", 6)
    real = tmp_path / "set" / "real"
    (real / "broken.jpg").write_bytes(b"no image")
    (real / "twin.png").write_bytes((real / "0-00000.png").read_bytes())
    source = open_source(tmp_path / "set")
    results = evaluate(
        BACKBONE, heads, source.labelled(), tmp_path / "out", Options(resamples=5), left_out=source.left_out
    )
    assert results["images"] == {"real": 6, "fake": 6, "unreadable": 1, "left_out": 1}
    assert "broken.jpg" in results["unreadable"][0] and "twin.png: duplicate" in results["left_out"][0]
    page = write_report(tmp_path / "out", tmp_path / "report").read_text()
    assert "broken.jpg" in page and "twin.png: duplicate" in page


def test_a_stopped_evaluation_goes_on_where_it_was(
    folder: Path, heads: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within a sweep and started again: no image of a finished part is decoded again, the results are those of
    one go, nothing is left over.
    """
    images = scan_folder(folder)[0].images
    options = Options(resamples=5, robustness=True, sweep_images=8)
    monkeypatch.setattr(embed, "KEPT_AT_ONCE", 5)
    monkeypatch.setattr("train.robustness.SWEEPS", {"JPEG quality": SWEEPS["JPEG quality"]})
    whole = evaluate(BACKBONE, heads, images, tmp_path / "whole", options)
    true_embed, embedded = embed.embed_images, []

    def counted(
        backbone: Backbone, chunk: list, *rest: object, stop_after: int | None = None, **named: object
    ) -> object:
        if stop_after is not None and len(embedded) == stop_after:
            raise KeyboardInterrupt
        embedded.append(len(chunk))
        return true_embed(backbone, chunk, *rest, **named)

    monkeypatch.setattr(embed, "embed_images", counted)
    evaluate(BACKBONE, heads, images, tmp_path / "counted", options)
    chunks = len(embedded)
    embedded.clear()
    monkeypatch.setattr(embed, "embed_images", partial(counted, stop_after=chunks // 2))
    with pytest.raises(KeyboardInterrupt):
        evaluate(BACKBONE, heads, images, tmp_path / "parts", options)
    monkeypatch.setattr(embed, "embed_images", counted)
    # Another model in between neither uses what was kept nor takes it away.
    other = Backbone("other", Means(), 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    monkeypatch.setattr(embed, "embed_images", partial(counted, stop_after=len(embedded) + 1))
    with pytest.raises(KeyboardInterrupt):
        evaluate(other, heads, images, tmp_path / "parts", options)
    monkeypatch.setattr(embed, "embed_images", counted)
    assert evaluate(BACKBONE, heads, images, tmp_path / "parts", options) == whole
    assert len(embedded) == chunks + 1
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"results.json", "scores.csv", "embeddings.npz"}


def test_robustness_sweeps_every_kind(folder: Path, heads: Heads, tmp_path: Path) -> None:
    """Each kind and strength of degradation has metrics, and blur takes away what told the classes apart."""
    images = scan_folder(folder)[0].images
    results = evaluate(BACKBONE, heads, images, tmp_path, Options(resamples=5, robustness=True, sweep_images=8))
    assert set(results["robustness"]) == {"none", *SWEEPS, CHAINS, RESHARED}
    assert all(set(results["robustness"][kind]) == set(strengths) for kind, strengths in SWEEPS.items())
    assert results["robustness"]["none"][""]["knn"]["auc"]["value"] == 1.0
    blurred = results["robustness"]["blur radius, px"]["2.0"]["linear"]
    assert (
        blurred["auc"]["value"] < 1.0
        and blurred["lost"]["value"] < 0
        and set(blurred["generators"]) <= {"gen_0", "gen_1"}
    )
    assert worst_first(results["robustness"])[0]["auc"]["value"] <= blurred["auc"]["value"]


@pytest.mark.parametrize("size", [(40, 30), (300, 200), (1200, 900)])
def test_degradations_keep_images_usable(size: tuple[int, int]) -> None:
    """Every degradation gives an RGB image of the size that its name says."""
    image = Image.effect_noise(size, 50).convert("RGB")
    for kind, strengths in SWEEPS.items():
        for strength, degrade in strengths.items():
            made = degrade(image)
            assert made.mode == "RGB"
            if kind == "shorter side, px":
                assert min(made.size) == int(strength)


@pytest.mark.parametrize(
    ("name", "trained_on", "expected"),
    [
        ("sd-1.4", {"sd-1.4", "gen_0"}, "trained on"),
        ("sd-3.5-large", {"sd-1.4"}, "unseen"),
        ("stylegan3", {"sd-1.4"}, "GAN"),
        ("stylegan3", {"stylegan3"}, "trained on"),
        ("organic-diffusion", set(), "unseen"),
        ("sd-1.4", None, "not known"),
    ],
)
def test_generators_fall_into_families(name: str, trained_on: set[str] | None, expected: str) -> None:
    """By what the weights' card says was trained on, never by a list of names kept here."""
    assert family(name, trained_on) == expected


def test_what_leaks_is_told_before_what_detects(heads: Heads, tmp_path: Path) -> None:
    """Fakes as PNG and reals as JPEG: the probe of the files alone tells them apart, images on the card are counted,
    and the headline is of images cut and compressed alike.
    """
    rng = np.random.default_rng(0)
    for index in range(30):
        for label, ending in (("real", "jpg"), ("fake/x", "png")):
            path = tmp_path / "data" / label / f"{index}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shapes = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            shapes.resize((260, 250), Image.Resampling.BICUBIC).save(path)
    images = scan_folder(tmp_path / "data")[0].images
    known = frozenset(image.id[:16] for image in images[:4])
    results = evaluate(BACKBONE, heads, images, tmp_path / "out", Options(resamples=0, fitted_hashes=known))
    assert results["shortcuts"]["format"] == 1.0 and results["fitted_on"] == 4
    told = leaks(results)
    assert told[0].startswith("format of the files alone") and "4 of the images" in told[-1]
    assert headline(results)[0][:2] == ("all", "30") and "controlled" in results
    page = write_report(tmp_path / "out", tmp_path / "report").read_text()
    assert page.index(told[0]) < page.index("</b> AUC") and "cut to squares and compressed alike" in page


def test_any_timm_backbone_embeds() -> None:
    """Another architecture comes with its own size and normalisation; an unknown one is named."""
    backbone = timm_backbone("resnet18", pretrained=False)
    assert backbone.embed(torch.zeros(1, 3, backbone.size_px, backbone.size_px, dtype=torch.uint8)).shape == (1, 512)
    with pytest.raises(WeightsError, match="no_such_model"):
        timm_backbone("no_such_model")


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    save_encoder(create_encoder(), folder)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 80)
    x = (rng.normal(size=(80, 192)) + y[:, None]).astype(np.float32)
    Heads.fit(x, y).calibrate(x + rng.normal(size=x.shape) * 6, y).save(
        folder
    )  # far enough from the fit that the heads err
    return folder


@pytest.mark.parametrize("half", [False, True])
def test_export_is_served_as_it_was_trained(half: bool, weights_folder: Path, tmp_path: Path) -> None:
    """The exported folder has graphs that compute what PyTorch computes, the version hash, and the calibration."""
    card = export(weights_folder, tmp_path / "out", half=half)
    assert card["model_version"] == weights.load(tmp_path / "out").version
    assert (card["model_version"] == weights.load(weights_folder).version) is not half
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == {
        "code.onnx",
        "code_encoder.onnx",
        "code_heads.onnx",
    }
    assert Heads.load(tmp_path / "out").calibration
    load_encoder(tmp_path / "out")
    with pytest.raises(WeightsError, match="not empty"):
        export(weights_folder, tmp_path / "out")


class Page(HTMLParser):
    """Collects what a page would fetch or run, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.scripts, self.images, self.tags = 0, 0, []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith(("data:", "#")):
                self.outside.append(value)
            self.images += name == "src" and bool(value) and value.startswith("data:image/png")


def test_report_is_one_page_that_needs_nothing_else(folder: Path, heads: Heads, tmp_path: Path) -> None:
    """The page has every figure inside, fetches nothing, runs nothing, fits a phone, and escapes what it shows; the
    figures are also files.
    """
    images = scan_folder(folder)[0].images
    evaluate(BACKBONE, heads, images, tmp_path / "results", Options(resamples=5, robustness=True, sweep_images=4))
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text('name = "<script>alert(1)</script>"\n')
    lines = [{"kind": "step", "step": step, "total": 8 - step / 10, "lr": 1e-3} for step in range(1, 20)]
    lines += [{"kind": "probe", "step": 10, "auc": 0.7}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page_path = write_report(tmp_path / "results", tmp_path / "report", run=run, data=scan_folder(folder)[0].images)
    text = page_path.read_text()
    page = Page()
    page.feed(text)
    assert page.outside == [] and page.scripts == 0
    assert "&lt;script&gt;" in text
    figures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert figures >= {
        "tsne_label",
        "tsne_generator",
        "roc",
        "det",
        "histograms",
        "reliability",
        "robustness",
        "training",
        "shortcuts",
    }
    assert page.images == len(figures)
    assert 'name="viewport"' in text  # how it looks on a phone: tests/browser
