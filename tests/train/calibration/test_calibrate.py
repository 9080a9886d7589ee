"""Calibrate: from photographs counted once to a policy that the worker reads, or a refusal that says what is
missing.
"""

import hashlib
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from train.calibration.calibrate import Asked, calibrate
from train.calibration.sample import Sample, from_results
from train.calibration.slices import By, parse, slice_of
from train.calibration.thresholds import Target, TooFewImages, choose
from train.calibration.write import sample_version
from train.data.copies import merge_copies, perceptual_hash
from train.data.images import DataError
from train.main import app
from worker.backtest import calibrated_on
from worker.contract import ImageInfo
from worker.policy import load_policy

DEMO = Path(__file__).parents[3] / "triton_models" / "weights" / "demo"


def info(number: int) -> ImageInfo:
    """JPEGs and PNGs in turn, small and large."""
    jpeg, side = number % 2 == 0, 128 if number % 4 < 2 else 640
    return ImageInfo(
        format="jpeg" if jpeg else "png", width=side, height=side, bytes=9, jpeg_quality=90 if jpeg else None
    )


def sample(real: int, fake: int, *, seed: int = 0) -> Sample:
    """Photographs whose linear scores overlap a little; PNGs score higher, real or not."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [real, fake])
    infos = [info(number) for number in range(real + fake)]
    shift = np.where(labels == 1, 2.0, -2.0) + np.array([0.0 if one.format == "jpeg" else 1.5 for one in infos])
    scores = 1 / (1 + np.exp(-rng.normal(shift, 1)))
    names = [f"{number:016x}" for number in range(real + fake)]
    columns = np.stack([scores] * 3, axis=1)
    return Sample("0123456789ab", labels, columns, infos, real + fake, {"fitted on": 3}, names)


def test_a_policy_is_written_that_the_worker_reads(tmp_path: Path) -> None:
    """Thresholds, bounds, what was left out and the reference distribution are in it, and the page shows them."""
    out = tmp_path / "policy.toml"
    found = calibrate(sample(2000, 1500), Asked(0.01), out)
    policy = load_policy(out)
    calibration = tomllib.loads(out.read_text())["calibration"]
    assert policy.calibration is not None and policy.calibration.model_version == "0123456789ab"
    assert calibration["target_fpr"] == 0.01 and calibration["confidence"] == 0.95
    assert (calibration["images_real"], calibration["images_fake"]) == (2000, 1500)
    assert set(calibration["reference"]) == {"jpeg", "png"} and calibration["left_out"] == {"fitted on": 3}
    chosen = found["slices"]["all others"]
    assert chosen["fpr"] < chosen["fpr_upper"] <= 0.01 and chosen["tpr_lower"] < chosen["tpr"]
    page = (tmp_path / "policy.html").read_text()
    assert "fitted on" in page and "0123456789ab" in page and str(chosen["fake_from"]) in page


def test_the_card_names_the_photographs_by_hash(tmp_path: Path) -> None:
    """Both kinds, tied to the policy by its version and to the sample by that of the sample; another sample, another
    version. A back-test on these photographs says so.
    """
    out = tmp_path / "policy.toml"
    first = sample(400, 20)
    card = json.loads(Path(calibrate(first, Asked(0.05), out)["card"]).read_text())
    policy = load_policy(out)
    assert card["policy"] == policy.ref.model_dump()
    assert policy.calibration is not None and policy.calibration.model_dump()["sample"] == card["sample"]
    assert (len(card["photographs"]["real"]), len(card["photographs"]["fake"])) == (400, 20)
    other = replace(first, photographs=[*first.photographs[:-1], "f" * 16])
    assert sample_version(other) != sample_version(first)
    labels = {first.photographs[0] + "0" * 48: False, "e" * 64: True}
    assert calibrated_on(out, labels) == 1
    out.with_suffix(".card.json").unlink()
    assert calibrated_on(out, labels) == 0


def test_slices_have_thresholds_of_their_own_and_hold_together(tmp_path: Path) -> None:
    """Where PNGs score higher, only slices keep the rate down in each format; each holds at the raised confidence."""
    whole, by = sample(4000, 3000), [By.FORMAT]
    png = np.array([one.format == "png" for one in whole.infos])
    (together,) = choose(whole, Target(0.02, 0.02))
    assert together.fake_from is not None
    real_png = whole.scores[png & (whole.labels == 0), 0]
    assert (real_png >= together.fake_from).mean() > 0.02
    apart = choose(whole, Target(0.02, 0.02), by)
    assert [entry.where.name for entry in apart] == ["jpeg", "png", "all others"]
    assert apart[0].confidence == pytest.approx(1 - 0.05 / 3)
    for entry in apart[:2]:
        assert entry.fpr_upper <= 0.02 and entry.fake_from is not None
    assert apart[0].fake_from < apart[1].fake_from
    calibrate(whole, Asked(0.02), tmp_path / "policy.toml", by)
    rules = tomllib.loads((tmp_path / "policy.toml").read_text())["rules"][2:]  # behind what precedes scores
    assert rules[0]["when"].startswith('image.format == "jpeg" && scores.linear >= ')
    load_policy(tmp_path / "policy.toml")


def test_slices_that_the_sample_does_not_carry_are_taken_together() -> None:
    """A slice with too few photographs has no threshold of its own."""
    few = sample(700, 600)
    few.infos[:5] = [ImageInfo(format="webp", width=300, height=300, bytes=9)] * 5
    names = [entry.where.name for entry in choose(few, Target(0.02, None), [By.FORMAT])]
    assert names == ["png", "jpeg", "all others"]


@pytest.mark.parametrize(
    ("real", "asked", "says"),
    [
        (120, Asked(0.01), "299 real photographs .* here are 120, 179 too few"),
        (2994, Asked(0.001), "2995 real photographs"),
        (2000, Asked(0.01, fnr=0.01), "299 generated images"),
        (2000, Asked(None, precision=0.999, prevalence=1e-4), "cannot be promised"),
    ],
)
def test_a_sample_that_cannot_support_it_is_refused(real: int, asked: Asked, says: str, tmp_path: Path) -> None:
    """The message says how many images are needed, and no file is written."""
    with pytest.raises(TooFewImages, match=says):
        calibrate(sample(real, 100), asked, tmp_path / "policy.toml")
    assert list(tmp_path.iterdir()) == []


def test_a_precision_at_a_prevalence_is_kept(tmp_path: Path) -> None:
    """Of what is called fake, where 5 % of the images are generated, nine of ten are, by the bounds alone."""
    found = calibrate(sample(20_000, 5000), Asked(None, precision=0.9, prevalence=0.05), tmp_path / "policy.toml")[
        "slices"
    ]["all others"]
    caught, wrong = 0.05 * found["tpr_lower"], 0.95 * found["fpr_upper"]
    assert caught / (caught + wrong) >= 0.9


def test_contradicting_targets_and_unknown_slices_are_told() -> None:
    """One line each, and exit 2 by the command line."""
    for asked in (Asked(0.01, precision=0.9), Asked(None), Asked(None, precision=0.9)):
        with pytest.raises(DataError, match="target-"):
            asked.check()
    with pytest.raises(DataError, match="there are format, size, jpeg_quality"):
        parse("format,colour")


def test_slices_are_conditions_of_the_policy() -> None:
    """Name and condition of an image's slice, with the quality that rules see where there is none."""
    jpeg = ImageInfo(format="jpeg", width=300, height=2000, bytes=9, jpeg_quality=70)
    found = slice_of(jpeg, [By.FORMAT, By.SIZE, By.JPEG_QUALITY])
    assert found.name == "jpeg, shorter side 256 to 511 px, JPEG quality 60 to 84"
    assert 'image.format == "jpeg" && min(image.width, image.height) >= 256' in found.condition
    png = ImageInfo(format="png", width=2000, height=2000, bytes=9)
    assert slice_of(png, [By.JPEG_QUALITY]).condition == "image.jpeg_quality >= 85"


def picture(rng: np.random.Generator) -> Image.Image:
    """A picture of large soft shapes and fine grain."""
    shapes = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (240, 320, 3))
    return Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8))


def test_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    """Encoded again, scaled, in another format: one photograph; two hundred pictures are two hundred."""
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(200)]
    names, prints = [str(number) for number in range(200)], [perceptual_hash(one) for one in pictures]
    assert merge_copies(names, prints) == names
    for number, one in enumerate(pictures[:20]):
        one.save(tmp_path / "copy.jpg", quality=60)
        with Image.open(tmp_path / "copy.jpg") as saved:
            again = saved.convert("RGB").resize((200, 150), Image.Resampling.LANCZOS)
        assert merge_copies([*names, "copy"], [*prints, perceptual_hash(again)])[-1] == str(number)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo weights, with a card of our own."""
    return shutil.copytree(DEMO, tmp_path_factory.mktemp("weights") / "demo")


@pytest.mark.slow
def test_the_command_leaves_out_what_was_fitted_on(weights: Path, tmp_path: Path) -> None:
    """From a folder, and from an evaluation of it, the same policy: images on the card are left out and counted, copies
    count once.
    """
    rng = np.random.default_rng(1)
    for label, count in (("real", 66), ("fake/x", 8)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(count):
            picture(rng).save(tmp_path / "data" / label / f"{number:03d}.png")
    reals = sorted((tmp_path / "data" / "real").iterdir())
    with Image.open(reals[9]) as again:
        again.save(tmp_path / "data" / "real" / "copy.jpg", quality=80)
    known = [hashlib.sha256(path.read_bytes()).hexdigest() for path in reals[:5]]
    (weights / "card.json").write_text(json.dumps({"fitted_on": {"heads": {"photographs": [h[:16] for h in known]}}}))
    arguments = ["calibrate", "--weights", str(weights), "--target-fpr", "0.05", "--json"]
    of_data = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "policy.toml")]
    done = CliRunner().invoke(app, [*arguments, *of_data])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["left_out"] == {"fitted on": 5} and found["images_real"] == 61 and found["images"] == 70
    assert load_policy(tmp_path / "policy.toml").calibration is not None
    refused = CliRunner().invoke(app, [*arguments[:-2], "0.01", *of_data[:2], "--out", str(tmp_path / "none.toml")])
    assert refused.exit_code == 1 and "238 too few" in refused.stderr and not (tmp_path / "none.toml").exists()
    evaluate = ["evaluate", "--weights", str(weights), "--data", str(tmp_path / "data"), "--resamples", "2"]
    measured = CliRunner().invoke(app, [*evaluate, "--out", str(tmp_path / "results")])
    assert measured.exit_code == 0, measured.stderr
    again = from_results(tmp_path / "results", weights)
    assert (again.of(0), again.left_out) == (61, {"fitted on": 5})
