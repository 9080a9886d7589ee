"""Folders of images: layouts, what is left out, pairing and splitting."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from train.data.folder import scan_folder
from train.data.images import BadImage, DataError, decode_image, read_header
from train.data.open import open_source
from train.data.records import limit_per_class
from train.data.synthetic import write_synthetic_folder
from triton_models.weights import FAKE, REAL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_synthetic_folder(tmp_path / "set", 6, size=48)
    return tmp_path / "set"


def test_labels_and_generators_come_from_the_folders(folder: Path) -> None:
    """real/ is 0, fake/<generator>/ is 1 with the generator's name."""
    source, problems = scan_folder(folder)
    assert problems == []
    assert Counter((image.label, image.generator) for image in source.images) == {
        (REAL, "real"): 6,
        (FAKE, "upsampled"): 6,
    }


def test_bad_files_are_named_and_counted(folder: Path) -> None:
    """Corrupt, tiny, duplicate and contradictory files are left out, each with its path and the reason; text beside
    images is not an image.
    """
    (folder / "real" / "garbage.jpg").write_bytes(b"no image")
    (folder / "real" / "empty.png").touch()
    whole = (folder / "real" / "0-00000.png").read_bytes()
    (folder / "real" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (8, 40)).save(folder / "real" / "tiny.png")
    (folder / "real" / "again.png").write_bytes((folder / "real" / "0-00001.png").read_bytes())
    (folder / "fake" / "upsampled" / "stolen.png").write_bytes((folder / "real" / "0-00002.png").read_bytes())
    (folder / "real" / "note.txt").write_text("a caption")
    source, problems = scan_folder(folder, min_side_px=16)
    assert source.problems == {"corrupt": 3, "tiny": 1, "duplicate": 1, "conflict": 2}
    named = {Path(problem.path).name: problem.kind for problem in problems}
    assert named["garbage.jpg"] == named["empty.png"] == named["cut.png"] == "corrupt"
    assert named["tiny.png"] == "tiny" and named["stolen.png"] == "conflict"
    assert "note.txt" not in named
    assert len(source.images) == 6 + 6 - 1


def test_linked_generators_are_read_and_loops_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator's folder may be a link; a link to a folder that it lies in is not followed, whichever way leads
    there.
    """
    write_synthetic_folder(tmp_path / "another_set", 1, seed=1, size=48)
    elsewhere = tmp_path / "elsewhere"
    (folder / "fake" / "upsampled").rename(elsewhere)
    (folder / "fake" / "linked").symlink_to(elsewhere)
    for loop, target in (
        (elsewhere / "up", tmp_path),
        (folder / "real" / "again", folder),
        (folder / "real" / "self", Path("self")),
    ):
        loop.symlink_to(target)
    monkeypatch.chdir(folder)
    for name in (folder, "."):
        source, problems = scan_folder(name)
        assert Counter((image.label, image.generator) for image in source.images) == {
            (REAL, "real"): 6,
            (FAKE, "linked"): 6,
        }
        assert [(Path(problem.path).name, problem.kind) for problem in problems] == [("self", "corrupt")]


def test_what_lies_beside_the_layout_is_named(folder: Path) -> None:
    """Images and folders of images where nothing is looked for are problems; sidecars, empty and hidden folders are
    not.
    """
    for name in ("generated/a.png", "real_2/b.png", "c.png", "captions/a.txt", ".cache/d.png", "readme.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    source, problems = scan_folder(folder)
    assert [(Path(problem.path).name, problem.kind) for problem in problems] == [
        ("c.png", "stray"),
        ("generated", "stray"),
        ("real_2", "stray"),
    ]
    assert source.problems == {"stray": 3} and len(source.images) == 12
    console = Console(record=True, width=300)
    open_source(folder, console=console)
    assert "real_2: beside real and fake, so not looked at (files: 1)" in console.export_text()


def test_what_is_no_regular_file_is_not_opened(folder: Path) -> None:
    """A pipe among the images, which would wait for ever for a writer, is left out by name."""
    os.mkfifo(folder / "real" / "pipe.png")
    os.mkfifo(folder / "pipe.png")
    source, problems = scan_folder(folder)
    assert [(Path(problem.path).relative_to(folder).as_posix(), problem.kind) for problem in problems] == [
        ("pipe.png", "stray"),
        ("real/pipe.png", "stray"),
    ]
    assert len(source.images) == 12


def test_a_group_without_reals_is_named(tmp_path: Path) -> None:
    """Beside a group with real/, one without it and loose files in either are problems."""
    for name in ("augm/real/a.png", "augm/gen_0/b.png", "augm/loose.png", "no_augm/gen_0/c.png", "gen_0/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32 + ord(Path(name).stem[0]))).save(tmp_path / name)
    source, problems = scan_folder(tmp_path)
    assert {str(Path(problem.path).relative_to(tmp_path)): problem.kind for problem in problems} == dict.fromkeys(
        ("no_augm", "gen_0", "augm/loose.png"), "stray"
    )
    assert Counter((image.group, image.generator) for image in source.images) == {
        ("augm", "real"): 1,
        ("augm", "gen_0"): 1,
    }


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "PNG", "JPEG"])
def test_every_format_is_read(kind: str, tmp_path: Path) -> None:
    """No format is dropped, whatever its extension says."""
    for name in ("real", "fake/a"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("P" if kind == "GIF" else "RGB", (40, 30)).save(tmp_path / "real" / "image.dat", kind)
    Image.new("RGB", (41, 30)).save(tmp_path / "fake" / "a" / "x.png")
    assert len(scan_folder(tmp_path)[0].images) == 2


def test_d3_test_layout_keeps_both_groups(tmp_path: Path) -> None:
    """{augm,no_augm}/{real,gen_k}: the same image may be in both groups, and groups are kept apart."""
    for group in ("augm", "no_augm"):
        for index, name in enumerate(("real", "gen_0", "gen_1")):
            (tmp_path / group / name).mkdir(parents=True)
            Image.new("RGB", (32 + index, 32)).save(tmp_path / group / name / "a.png")
    source, problems = scan_folder(tmp_path)
    assert problems == []
    assert Counter((image.group, image.generator, image.label) for image in source.images) == {
        (group, name, int(name != "real")): 1 for group in ("augm", "no_augm") for name in ("real", "gen_0", "gen_1")
    }


def test_every_image_of_the_larger_class_comes_once_an_epoch(tmp_path: Path) -> None:
    """An epoch pairs each image of the larger class once and repeats the smaller one evenly; another epoch has another
    order.
    """
    write_synthetic_folder(tmp_path, 7, size=32)
    for path in sorted((tmp_path / "fake" / "upsampled").iterdir())[3:]:
        path.unlink()
    source, _ = scan_folder(tmp_path)
    order = source.order(0, 42)
    pairs = [order[index] for index in range(len(order))]
    assert len(pairs) == len({pair.real for pair in pairs}) == 7
    assert sorted(Counter(pair.fake for pair in pairs).values()) == [2, 2, 3]
    assert [order[index].id for index in range(7)] == [source.order(0, 42)[index].id for index in range(7)]
    assert [source.order(1, 42)[index].id for index in range(7)] != [pair.id for pair in pairs]


def test_split_depends_on_content_alone(folder: Path) -> None:
    """The held-out part is chosen by content: adding images moves none of the others."""
    before = scan_folder(folder)[0].split(0.4)
    write_synthetic_folder(folder, 6, seed=9, size=48)
    after = scan_folder(folder)[0].split(0.4)
    for old, new in zip(before, after, strict=True):
        assert {image.id for image in old.images} <= {image.id for image in new.images}


def test_limit_per_class_is_stable(folder: Path) -> None:
    """At most so many of each label, the same ones each time."""
    images = scan_folder(folder)[0].images
    limited = limit_per_class(images, 4)
    assert Counter(image.label for image in limited) == {REAL: 4, FAKE: 4}
    assert limited == limit_per_class(images, 4)


@pytest.mark.parametrize("layout", ["missing", "file", "no_real", "empty", "unusable", "unset"])
def test_wrong_places_give_one_clear_line(layout: str, tmp_path: Path) -> None:
    """A path that is nothing of the kind says what is expected."""
    path: object = tmp_path / "set"
    if layout == "file":
        (tmp_path / "set").touch()
    elif layout == "no_real":
        (tmp_path / "set" / "fake").mkdir(parents=True)
    elif layout == "empty":
        (tmp_path / "set" / "real").mkdir(parents=True)
    elif layout == "unusable":
        (tmp_path / "set" / "real").mkdir(parents=True)
        (tmp_path / "set" / "real" / "a.png").write_bytes(b"no image")
    elif layout == "unset":
        path = ""
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_image_say_why() -> None:
    """Empty and foreign bytes are BadImage with a reason, for header and pixels alike."""
    for data in (b"", b"<html></html>", b"\x89PNG\r\n\x1a\n garbage"):
        with pytest.raises(BadImage):
            read_header(data)
        with pytest.raises(BadImage):
            decode_image(data)
