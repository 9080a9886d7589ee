"""A detector beside `code` is rolled out and back by itself on a real server, and `code` answers as before."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tritonclient import grpc

from tests.triton_models.test_detector import SIDE, write_folder
from triton_models import build, control, detector, rollout, rollout_detector
from triton_models.repository import MANIFEST, BuildError, check, read_manifest
from triton_models.rollout import RolloutError

pytestmark = pytest.mark.integration
VIEWS = np.random.default_rng(4).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
IMAGES = np.random.default_rng(3).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


def other_version(folder: Path, by: float) -> detector.Detector:
    """The same detector with another linear head."""
    arrays = load_file(folder / "heads.safetensors")
    arrays["linear.intercept"] = arrays["linear.intercept"] + by
    save_file(arrays, folder / "heads.safetensors")
    return detector.load(folder)


@pytest.fixture
def live(folder: Path, tmp_path: Path, serve: Callable[..., Any]) -> Iterator[Any]:
    """A server with `code` and `small`; `next` has another version of the detector, `plain` and `later` of `code`."""
    made = write_folder(tmp_path / "small")
    build.build(folder, "cpu", tmp_path / "live" / "models", detectors=[made])
    build.build(folder, "cpu", tmp_path / "next", detectors=[other_version(tmp_path / "small", 1.0)])
    for name, by in (("plain", 1.0), ("later", 2.0)):  # of another `code`
        arrays = load_file(folder / "heads.safetensors")
        save_file(arrays | {"linear.intercept": arrays["linear.intercept"] + by}, folder / "heads.safetensors")
        beside = [other_version(tmp_path / "small", -2.0)] if name == "later" else []
        build.build(folder, "cpu", tmp_path / name, detectors=beside)
    with serve(tmp_path / "live", tmp_path / "live" / "models") as running:
        running.client.load_model("small")
        yield running


def served(live: Any, model: str, images: np.ndarray) -> tuple[str, np.ndarray]:
    tensor = grpc.InferInput("images", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    answer = live.client.infer(model, [tensor])
    return f"{int(answer.get_response().model_version):012x}", answer.as_numpy("scores")


def places(live: Any) -> list[str | None]:
    found = rollout_detector.versions(live.client, live.repository)
    return [found[place] for place in ("small", "small folder", "small previous")]


def test_out_and_back_while_code_answers(
    live: Any, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands: neither `code` nor the detector misses an answer, each answer is of one version, and the folder
    says what a restart would serve.
    """
    monkeypatch.setenv(control.VARIABLE, live.server.control_key)
    old = read_manifest(live.repository)["detectors"]["small"]
    new = read_manifest(tmp_path / "next")["detectors"]["small"]
    code = served(live, "code", IMAGES)
    scores = {old: served(live, "small", VIEWS)[1]}
    stop, answers, errors = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(served(live, "small", VIEWS))
                version, found = served(live, "code", IMAGES)
                assert version == code[0] and np.array_equal(found, code[1])
            except Exception as error:  # noqa: BLE001 - the test says that there is none
                errors.append(error)

    traffic = threading.Thread(target=ask)
    traffic.start()
    where = ("--repository", live.repository, "--server", live.server.address, "--detector", "small")
    try:
        loaded = command("triton_models.rollout", "load", *where, "--new", tmp_path / "next")
        assert loaded.returncode == 0, loaded.stderr
        scores[new] = served(live, "small", VIEWS)[1]
        assert places(live) == [new, new, old]
        assert f"small           {new}" in loaded.stdout
        again = command("triton_models.rollout", "back", *where)
        assert again.returncode == 0, again.stderr
        assert places(live) == [old, old, new]
    finally:
        stop.set()
        traffic.join(60)
    assert errors == []
    assert np.abs(scores[old] - scores[new]).max() > 0.05
    for version, found in answers:
        np.testing.assert_allclose(found, scores[version], atol=1e-5)
    assert check(live.repository)["detectors"] == {"small": old}
    assert rollout_detector.back(live.client, live.repository, "small") == new


def test_a_roll_out_of_code_leaves_the_detector(live: Any, tmp_path: Path) -> None:
    """A repository without it, or with another version of it, takes nothing away; nor does the way back."""
    old = read_manifest(live.repository)["detectors"]["small"]
    for name in ("plain", "later"):
        rollout.load(live.client, live.repository, tmp_path / name)
        assert check(live.repository)["detectors"] == {"small": old}
        assert served(live, "small", VIEWS)[0] == f"{int(old, 16):012x}"
    new = rollout_detector.load(live.client, live.repository, tmp_path / "next", "small")
    rollout.back(live.client, live.repository)
    assert check(live.repository)["detectors"] == {"small": new}
    assert check(rollout.previous_of(live.repository))["detectors"] is not None
    assert places(live) == [new, new, old]


def test_what_the_server_refuses_leaves_all_as_it_was(live: Any, tmp_path: Path) -> None:
    """A graph that cannot be loaded; a detector that is not there; no version before."""
    old = read_manifest(live.repository)["detectors"]["small"]
    before = (live.repository / MANIFEST).read_text()
    broken = tmp_path / "next"
    (config,) = broken.glob("small/config.pbtxt")
    config.write_text(config.read_text().replace("TYPE_UINT8", "TYPE_FP16"))
    manifest = read_manifest(broken)
    manifest["files"]["small/config.pbtxt"] = build.file_hash(config)
    (broken / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RolloutError, match="the version before is back"):
        rollout_detector.load(live.client, live.repository, broken, "small")
    assert (live.repository / MANIFEST).read_text() == before
    assert served(live, "small", VIEWS)[0] == f"{int(old, 16):012x}"
    with pytest.raises(RolloutError, match="there are small"):
        rollout_detector.load(live.client, live.repository, tmp_path / "later", "other")
    with pytest.raises(RolloutError, match="without --detector"):
        rollout_detector.load(live.client, live.repository, tmp_path / "plain", "small")
    with pytest.raises(RolloutError, match="no version of small before"):
        rollout_detector.back(live.client, live.repository, "small")
    (live.repository / "else").mkdir()
    build.build(None, "null", tmp_path / "with-else", detectors=[write_folder(tmp_path / "another", "else")])
    with pytest.raises(RolloutError, match="no detector of ours"):
        rollout_detector.load(live.client, live.repository, tmp_path / "with-else", "else")


def test_a_killed_roll_out_is_put_right_by_the_next(live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the folder and the manifest: the manifest follows."""
    new = read_manifest(tmp_path / "next")["detectors"]["small"]

    class Killed(BaseException):
        """Nothing is put back."""

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(rollout_detector, "write_manifest", killed)
    monkeypatch.setattr(rollout_detector.Path, "unlink", killed)
    monkeypatch.setattr("tempfile.TemporaryDirectory.cleanup", lambda _self: None)
    with pytest.raises(Killed):
        rollout_detector.load(live.client, live.repository, tmp_path / "next", "small")
    monkeypatch.undo()
    with pytest.raises(BuildError, match=r"missing|damaged"):
        check(live.repository)
    assert rollout_detector.load(live.client, live.repository, tmp_path / "next", "small") == new
    assert check(live.repository)["detectors"] == {"small": new}
