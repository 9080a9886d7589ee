"""What was fitted on is known by hash, also from shards, and what is not known is told."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from train.data.folder import scan_folder
from train.data.look import look_at
from train.data.records import Key, Labelled
from train.data.shards import ShardSource, open_shards, write_shard
from train.data.synthetic import synthetic_record, write_synthetic_folder
from train.evaluate import among, leaks, names_of_photographs
from train.fitted import fitted_on, hashes_on, of_training, unlisted_on


def as_of_shards(folder: Path) -> list[Labelled]:
    """Images whose ids are those of records, as shards have them, at a place within a file."""
    images = scan_folder(folder)[0].images
    return [
        Labelled(f"{number}.gen_0", Key(image.key.path, 0, Path(image.key.path).stat().st_size), image.label, "gen_0")
        for number, image in enumerate(images)
    ]


def test_images_of_shards_are_hashed(tmp_path: Path) -> None:
    """The card lists the SHA-256 of their bytes, so that the same images in a folder are found again."""
    write_synthetic_folder(tmp_path, 3)
    facts = fitted_on(as_of_shards(tmp_path))
    assert facts["unlisted"] == 0
    expected = {hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in tmp_path.rglob("*.png")}
    assert set(facts["photographs"]) == expected and len(expected) == 6
    images = scan_folder(tmp_path)[0].images
    looks = look_at(images)
    known = hashes_on({"fitted_on": {"heads": facts}})
    assert among(names_of_photographs(images, looks), looks, known) == 6
    assert among(names_of_photographs(images, looks), looks, {"0" * 16}) == 0


def test_a_copy_of_what_was_fitted_on_is_found_by_its_twin(tmp_path: Path) -> None:
    """Where a photograph lies twice among what is measured, re-encoded, and one of the two is on the card, both
    count.
    """
    from PIL import Image

    real = tmp_path / "real"
    write_synthetic_folder(tmp_path, 4)
    shapes = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(shapes).resize((300, 300), Image.Resampling.BICUBIC)
    picture.save(real / "a.png")
    picture.save(real / "b.jpg", quality=92)
    images = scan_folder(tmp_path)[0].images
    looks = look_at(images)
    photographs = names_of_photographs(images, looks)
    for name in ("a.png", "b.jpg"):
        assert among(photographs, looks, {hashlib.sha256((real / name).read_bytes()).hexdigest()[:16]}) == 2


def test_what_cannot_be_checked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit too large to hash is counted on the card, and the results say so before any figure."""
    write_synthetic_folder(tmp_path, 3)
    monkeypatch.setattr("train.fitted.HASHED", 5)
    facts = fitted_on(as_of_shards(tmp_path))
    assert facts["photographs"] == [] and facts["unlisted"] == 6
    card = {"fitted_on": {"encoder": facts, "heads": {"unlisted": 2}}}
    assert unlisted_on(card) == 8 and unlisted_on({}) == 0
    assert unlisted_on({"fitted_on": {"encoder": {"unlisted": "D3's train split"}}}) == "D3's train split"
    assert leaks({"not_checked": 8}) == ["not checked against the images of the fit that have no hash: 8"]


def test_large_shards_are_counted_without_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At D3's size a list of 11.5 million images would take gigabytes: they are counted, those of the probe hashed."""
    write_shard(tmp_path, 0, [synthetic_record(index) for index in range(3)])
    source, probed = open_shards(tmp_path), open_shards(tmp_path).labelled()[:4]
    whole = of_training(source, probed)
    assert (whole["unlisted"], len(whole["photographs"])) == (0, 15)
    monkeypatch.setattr("train.fitted.HASHED", 14)
    monkeypatch.setattr(ShardSource, "labelled", None)
    facts = of_training(source, probed)
    assert (facts["unlisted"], len(facts["photographs"])) == (15, 4)
    assert facts["generators"] == whole["generators"] == ["gen_0", "gen_1", "gen_2", "gen_3"]
