"""An export of reviews as a sample: one queue, by name, and what cannot stand for uploads is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from train.calibration.reviews import never_decided, of_queue
from train.data.images import DataError
from train.data.records import Key, Labelled


def export(folder: Path, lines: list[dict[str, Any]]) -> list[Labelled]:
    """The images of an export, and one that its manifest does not name."""
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [*(str(line["path"]) for line in lines), "real/stray.jpg"]
    return [Labelled("", Key(str(folder / name)), int(name.startswith("fake")), "x", "") for name in names]


def line(path: str, queue: str, decided: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "queue": queue, "verdict": {"decision": decided}, **more}


def test_one_queue_is_the_sample(tmp_path: Path) -> None:
    """Golden items, other queues and unknown files are counted; what the policy had decided of the rest, too."""
    images = export(
        tmp_path,
        [
            line("real/a.jpg", "random", "real"),
            line("fake/b.jpg", "random", "review"),
            line("real/c.jpg", "contested", "review"),
            line("real/d.jpg", "random", "fake", golden=True),
        ],
    )
    found = of_queue(tmp_path, images, "random")
    assert found is not None
    assert [Path(image.key.path).name for image in found.images] == ["a.jpg", "b.jpg"]
    assert found.left_out == {"other queues": 1, "golden items": 1, "not in the manifest": 1}
    assert found.decided == {"real": 1, "review": 1}
    assert never_decided(found.decided) == ["fake"]


def test_a_queue_has_to_be_named(tmp_path: Path) -> None:
    """Reviewed images are no sample of the uploads, and nobody gets a promise without having said of what."""
    images = export(tmp_path, [line("real/a.jpg", "contested", "review")])
    for queue in (None, "random"):
        with pytest.raises(DataError, match=r"--queue.*contested \(1 images\)"):
            of_queue(tmp_path, images, queue)


def test_a_folder_without_a_manifest_is_none(tmp_path: Path) -> None:
    """It has no queues either."""
    assert of_queue(tmp_path, [], None) is None
    with pytest.raises(DataError, match=r"manifest\.jsonl"):
        of_queue(tmp_path, [], "random")


@pytest.mark.parametrize("text", ["", "[]\n", '{"queue": "a"}\n', "{\n", '{"path": 3}\n'])
def test_a_damaged_manifest_is_told(tmp_path: Path, text: str) -> None:
    """With its line."""
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.jsonl"):
        of_queue(tmp_path, [], "random")
