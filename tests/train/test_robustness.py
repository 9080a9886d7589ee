"""Chains and profiles are the same for both classes; the table by date reads names as they come."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data.images import DataError
from train.data.records import Key, Labelled
from train.degrade import PROFILES, chain
from train.robustness import CHAINS, LONGEST_CHAIN, tiers, worst_first
from train.temporal import KNOWN, read_releases, release_of, table

pytestmark = pytest.mark.slow

NOISE = Image.effect_noise((300, 240), 60).convert("RGB")


def test_the_chains_of_both_classes_are_drawn_alike() -> None:
    """The i-th real and the i-th fake become the same picture from the same pixels; two reals do not."""
    images = [Labelled(f"{label}-{index}", Key("x"), label, "x") for index in range(3) for label in (0, 1)]
    chains = {strength: degrade for kind, strength, degrade in tiers(images) if kind == CHAINS}
    assert list(chains) == [str(length) for length in range(1, LONGEST_CHAIN + 1)]
    for degrade in chains.values():
        assert isinstance(degrade, dict)
        made = {name: change(NOISE).tobytes() for name, change in degrade.items()}
        assert all(made[f"0-{index}"] == made[f"1-{index}"] for index in range(3))
        assert len(set(made.values())) == 3


def test_a_longer_chain_begins_as_the_shorter_one() -> None:
    """What is added by a step is one distortion, so that lengths can be compared."""
    for draw in range(20):
        steps = [chain(draw, length).keywords["steps"] for length in (1, 3, 5)]
        assert [step.func for step in steps[2][:3]] == [step.func for step in steps[1]]
        assert len({(step.func, step.keywords.get("kind")) for step in steps[2]}) == 5


@pytest.mark.parametrize("size", [(40, 30), (300, 200), (2400, 1800)])
def test_profiles_and_chains_keep_images_usable(size: tuple[int, int]) -> None:
    """An RGB image comes out whatever goes in, no longer than the profile says."""
    image = Image.effect_noise(size, 50).convert("RGB")
    for change in [*PROFILES.values(), *(chain(draw, 5) for draw in range(4))]:
        assert change(image).mode == "RGB" and min(change(image).size) > 0
    assert max(PROFILES["preview"](image).size) <= 400


def test_worst_comes_first() -> None:
    """By the AUC of the head; a tier without one is left out, the worst generator is one with an interval."""

    def entry(value: float | None) -> dict:
        few = {"value": 0.1, "low": None, "high": None, "fakes": 1}
        many = {"value": 0.6, "low": 0.5, "high": 0.7, "fakes": 90}
        return {
            "linear": {"auc": {"value": value, "low": None, "high": None}, "generators": {"few": few, "many": many}}
        }

    found = worst_first({"none": {"": entry(0.9)}, "JPEG": {"95": entry(0.8), "50": entry(None), "30": entry(0.6)}})
    assert [(row["kind"], row["strength"]) for row in found] == [("JPEG", "30"), ("JPEG", "95"), ("none", "")]
    assert found[0]["worst"]["generator"] == "many"


@pytest.mark.parametrize(
    ("name", "released", "era"),
    [
        ("sd-1.4-easydiffusion", "2022-08", "Stable Diffusion 1 and 2"),
        ("sd-3.5-large", "2024-10", "FLUX and after"),
        ("sdxl-juggernaut", "2023-07", "SDXL and its time"),
        ("StyleGAN3", "2021-06", "GAN"),
        ("faces-gan", "", "GAN"),
        ("organic-diffusion", "", "not known"),
        ("nano-banana-pro", "2025-11", "proprietary"),
    ],
)
def test_names_have_a_release(name: str, released: str, era: str) -> None:
    """The longest pattern that the name begins with decides."""
    found = release_of(name, read_releases())
    assert (found.released, found.era) == (released, era)


def test_every_month_says_where_it_was_checked() -> None:
    """By an address, or that none was found; names that are no single model have no month. A number of arXiv begins
    with the month that stands there.
    """
    with KNOWN.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        checked = row["checked"]
        assert (not checked and not row["released"]) or checked == "not found" or checked.startswith("https://")
        if paper := re.fullmatch(r"https://arxiv\.org/abs/(\d\d)(\d\d)\.\d{5}", checked):
            assert row["released"] == f"20{paper[1]}-{paper[2]}", row
    assert sum(row["checked"].startswith("https://") for row in rows) >= 57


def test_the_table_by_date_is_in_order_and_takes_own_dates(tmp_path: Path) -> None:
    """Eras first, then generators by date, what is not known last; a file of one's own goes first, a wrong date is
    named.
    """
    own = tmp_path / "own.csv"
    own.write_text("pattern,released,era\nmine,2026-01,proprietary\n")
    labels = np.array([0] * 40 + [1] * 40)
    generators = np.array(["real"] * 40 + ["mine-2"] * 20 + ["sd-1.5"] * 10 + ["strange"] * 10)
    scores = np.tile(np.linspace(0, 1, 80)[:, None], 3)
    rows = table(labels, scores, generators, np.arange(80), read_releases(own))
    assert [row["name"] for row in rows if row["kind"] == "generator"] == ["sd-1.5", "mine-2", "strange"]
    assert [row["name"] for row in rows if row["kind"] == "era"] == [
        "Stable Diffusion 1 and 2",
        "proprietary",
        "not known",
    ]
    assert all(row["auc"]["linear"]["value"] == 1.0 for row in rows)
    own.write_text("pattern,released,era\nmine,January,proprietary\n")
    with pytest.raises(DataError, match="YYYY-MM"):
        read_releases(own)
