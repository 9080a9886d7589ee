"""Versions in operation on a real server: in place of the old one under traffic, beside it, and back."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tritonclient import grpc
from typer.testing import CliRunner

from tests.triton_models.conftest import until_serving
from triton_models import build, control, rollout, weights
from triton_models.repository import MANIFEST, SHADOW, BuildError, check, file_hash
from triton_models.rollout import RolloutError
from worker.clients.triton import CONTROL_HEADER

pytestmark = pytest.mark.integration
IMAGES = np.random.default_rng(3).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


@pytest.fixture
def candidate(folder: Path, tmp_path: Path) -> Path:
    """A repository of other weights, with clearly other scores."""
    arrays = load_file(folder / weights.HEADS_FILE)
    arrays["linear.intercept"] += 2
    save_file(arrays, folder / weights.HEADS_FILE)
    build.build(folder, "cpu", tmp_path / "candidate")
    return tmp_path / "candidate"


@pytest.fixture
def live(folder: Path, tmp_path: Path, serve: Callable, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A server on a repository of its own; the parameter says of which kind its `code` is."""
    build.build(folder, "cpu", tmp_path / "live" / "models", build.Options(code=getattr(request, "param", "fused")))
    with serve(tmp_path / "live", tmp_path / "live" / "models") as running:
        yield running


@pytest.fixture
def versions(live: Any, candidate: Path) -> tuple[str, str]:
    """Old and new model version."""
    return check(live.repository)["model_version"], check(candidate)["model_version"]


def served(live: Any, model: str = "code") -> tuple[str, np.ndarray]:
    """Version and scores of one answer."""
    tensor = grpc.InferInput("images", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES)
    answer = live.client.infer(model, [tensor])
    return f"{int(answer.get_response().model_version):012x}", answer.as_numpy("scores")


@pytest.mark.parametrize("live", ["fused", "ensemble"], indirect=True)
def test_a_load_and_a_roll_back_under_traffic_lose_nothing(
    live: Any, candidate: Path, versions: tuple[str, str]
) -> None:
    """While versions change no request fails, and each answer's version is that of its scores."""
    old, new = versions
    expected = {old: served(live)[1]}
    stop, answers, errors = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(served(live))
            except Exception as error:  # noqa: BLE001 - the test says that there is none
                errors.append(error)

    traffic = threading.Thread(target=ask)
    traffic.start()
    try:
        assert rollout.load(live.client, live.repository, candidate) == new
        expected[new] = served(live)[1]
        assert rollout.back(live.client, live.repository) == old
    finally:
        stop.set()
        traffic.join(60)
    assert errors == []
    assert {version for version, _ in answers} >= {old, new}
    assert np.abs(expected[old] - expected[new]).max() > 0.1
    for version, scores in answers:
        np.testing.assert_allclose(scores, expected[version], atol=1e-5)


def test_back_and_forth(
    live: Any, candidate: Path, versions: tuple[str, str], command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands: load, back, back again; status tells serving, folder and previous; the parameter follows."""
    monkeypatch.setenv(control.VARIABLE, live.server.control_key)
    old, new = versions
    where = ("--repository", live.repository, "--server", live.server.address)
    loaded = command("triton_models.rollout", "load", *where, "--new", candidate)
    assert loaded.returncode == 0, loaded.stderr
    assert rollout.versions(live.client, live.repository) == {
        "serving": new,
        "shadow": None,
        "folder": new,
        "previous": old,
    }
    assert command("triton_models.rollout", "back", *where).returncode == 0
    assert rollout.versions(live.client, live.repository) == {
        "serving": old,
        "shadow": None,
        "folder": old,
        "previous": new,
    }
    status = command("triton_models.rollout", "status", *where)
    assert f"serving   {old}" in status.stdout and f"previous  {new}" in status.stdout
    assert command("triton_models.rollout", "load", *where).returncode == 2


def test_a_shadow_stays_with_whichever_version_serves(live: Any, candidate: Path, versions: tuple[str, str]) -> None:
    """Begun after a load, ended after the roll-back: the folder that a restart would serve always says what the server
    does.
    """
    old, new = versions
    rollout.load(live.client, live.repository, candidate)
    rollout.shadow(live.client, live.repository, rollout.previous_of(live.repository))
    rollout.back(live.client, live.repository)
    assert (live.repository / SHADOW).is_dir()
    assert (served(live)[0], served(live, SHADOW)[0]) == (old, old)
    rollout.unshadow(live.client, live.repository)
    rollout.back(live.client, live.repository)
    assert rollout.versions(live.client, live.repository) == {
        "serving": new,
        "shadow": None,
        "folder": new,
        "previous": old,
    }
    assert not (live.repository / SHADOW).exists()


def test_two_versions_side_by_side(live: Any, candidate: Path, versions: tuple[str, str]) -> None:
    """`code_shadow` answers with the new version while `code` keeps the old one, also through a load; then it goes."""
    old, new = versions
    assert rollout.shadow(live.client, live.repository, candidate) == new
    assert (served(live)[0], served(live, SHADOW)[0]) == (old, new)
    rollout.load(live.client, live.repository, candidate)
    assert (served(live)[0], served(live, SHADOW)[0]) == (new, new)
    rollout.unshadow(live.client, live.repository)
    assert rollout.versions(live.client, live.repository)["shadow"] is None
    with pytest.raises(RolloutError, match="no shadow version"):
        rollout.unshadow(live.client, live.repository)


def test_a_damaged_shadow_keeps_no_server_from_starting(live: Any, candidate: Path, versions: tuple[str, str]) -> None:
    """Started anew the server has the shadow again; a damaged one is left out with one line that names the file, and
    can be ended.
    """
    old, new = versions
    rollout.shadow(live.client, live.repository, candidate)
    said: list[str] = []

    def start_anew() -> None:
        live.server.stop(grace_s=15)
        live.server.start()
        until_serving(live.server)
        live.server.complete(said.append)

    start_anew()
    assert (served(live)[0], served(live, SHADOW)[0], said) == (old, new, [])
    graph = next(live.repository.glob("code_shadow/*/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-9])
    start_anew()
    assert served(live)[0] == old and not live.client.is_model_ready(SHADOW)
    (line,) = said
    assert f"{graph}: damaged" in line and "rollout unshadow" in line and "\n" not in line and "At:" not in line
    rollout.unshadow(live.client, live.repository)
    assert not (live.repository / SHADOW).exists()


def test_a_damaged_candidate_is_refused_before_anything_changes(
    live: Any, candidate: Path, versions: tuple[str, str]
) -> None:
    """A file that differs from the candidate's manifest stops the roll-out; folder and server stay."""
    graph = next(candidate.glob("code/*/model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    for action in (rollout.load, rollout.shadow):
        with pytest.raises(BuildError, match=r"model\.onnx: damaged"):
            action(live.client, live.repository, candidate)
    assert rollout.versions(live.client, live.repository) == {
        "serving": versions[0],
        "shadow": None,
        "folder": versions[0],
        "previous": None,
    }


def test_a_candidate_that_the_server_cannot_load_is_taken_back(
    live: Any, candidate: Path, versions: tuple[str, str]
) -> None:
    """A graph with the right hash that does not open: the error names it; folder, version before and shadow are as they
    were.
    """
    graph = next(candidate.glob("code/*/model.onnx"))
    old_hash = file_hash(graph)
    graph.write_bytes(b"not a graph")
    configuration = candidate / "code" / "config.pbtxt"
    configuration.write_text(configuration.read_text().replace(old_hash, file_hash(graph)))
    manifest = json.loads((candidate / MANIFEST).read_text())
    for path in (graph, configuration):
        manifest["files"][path.relative_to(candidate).as_posix()] = file_hash(path)
    (candidate / MANIFEST).write_text(json.dumps(manifest))
    old = versions[0]
    before = build.build(None, "null", live.repository.with_name("null"))["model_version"]
    rollout.load(live.client, live.repository, live.repository.with_name("null"))
    rollout.back(live.client, live.repository)
    with pytest.raises(RolloutError, match=r"model\.onnx.*nothing has changed"):
        rollout.shadow(live.client, live.repository, candidate)
    assert rollout.versions(live.client, live.repository) == {
        "serving": old,
        "shadow": None,
        "folder": old,
        "previous": before,
    }
    rollout.shadow(live.client, live.repository, live.repository.with_name("null"))
    with pytest.raises(RolloutError, match=r"model\.onnx.*the version before is back"):
        rollout.load(live.client, live.repository, candidate)
    with pytest.raises(RolloutError, match=r"model\.onnx.*nothing has changed"):
        rollout.shadow(live.client, live.repository, candidate)
    assert rollout.versions(live.client, live.repository) == {
        "serving": old,
        "shadow": before,
        "folder": old,
        "previous": before,
    }
    assert (served(live)[0], served(live, SHADOW)[0]) == (old, before)
    assert [path.name for path in live.repository.parent.glob(".models*")] == []


def test_a_server_that_is_away_changes_nothing(live: Any, candidate: Path, versions: tuple[str, str]) -> None:
    """Without an answer from the server the folders are put back, and one line says so."""
    live.server.stop(grace_s=15)
    where = ["--repository", str(live.repository), "--server", live.server.address]
    for action, says in (("load", "the folder is as before"), ("shadow", "nothing has changed")):
        done = CliRunner().invoke(rollout.app, [action, *where, "--new", str(candidate)])
        (line,) = done.stderr.strip().splitlines()
        assert done.exit_code == 1 and says in line
    done = CliRunner().invoke(rollout.app, ["status", *where])
    assert done.exit_code == 1 and "is it running" in done.stderr
    assert check(live.repository)["model_version"] == versions[0]
    assert sorted(path.name for path in live.repository.iterdir()) == [
        "MANIFEST.json",
        "code",
        "code_encoder",
        "code_heads",
    ]
    assert not rollout.previous_of(live.repository).exists()


def test_a_server_that_wants_a_key_gets_it(live: Any, candidate: Path, versions: tuple[str, str]) -> None:
    """From the worker's variable, or the file it names; without it nothing changes, and the variable is named."""
    assert control.HEADER == CONTROL_HEADER
    where = ["--repository", str(live.repository), "--server", live.server.address]
    refused = CliRunner().invoke(rollout.app, ["load", *where, "--new", str(candidate)])
    assert refused.exit_code == 1 and f"set {control.VARIABLE}" in refused.stderr
    assert served(live)[0] == check(live.repository)["model_version"] == versions[0]
    by_file = {f"{control.VARIABLE}_FILE": live.server.env[f"{control.VARIABLE}_FILE"]}
    done = CliRunner().invoke(rollout.app, ["load", *where, "--new", str(candidate)], env=by_file)
    assert done.exit_code == 0, done.stderr
    assert served(live)[0] == versions[1]
    itself = {control.VARIABLE: live.server.control_key}
    assert CliRunner().invoke(rollout.app, ["back", *where], env=itself).exit_code == 0
    assert served(live)[0] == versions[0]


def test_nothing_to_go_back_to(live: Any) -> None:
    """Without a version before, `back` says so."""
    with pytest.raises(RolloutError, match="no version before"):
        rollout.back(live.client, live.repository)
