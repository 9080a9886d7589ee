"""Roll-outs that are repeated, interrupted, killed or begun twice: the version to go back to stays. The server is a
stand-in.
"""

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from triton_models import rollout, rollout_steps
from triton_models.files import exchange
from triton_models.repository import MANIFEST, SCHEMA, SHADOW, BuildError, file_hash, read_manifest
from triton_models.rollout import RolloutError


class Client:
    """Serves `code` from the folder, as it stood at the last load; `stop` is raised by the first load after it is set,
    `away` by each unload.
    """

    def __init__(self, live: Path) -> None:
        self.live, self.stop, self.away, self.ready = live, None, None, {"code"}
        self.version = version_of(live)

    def is_model_ready(self, name: str) -> bool:
        return name in self.ready

    def load_model(self, name: str, **_: Any) -> None:
        stop, self.stop = self.stop, None
        if stop is not None:
            raise stop
        self.ready.add(name)
        self.version = version_of(self.live)

    def unload_model(self, name: str) -> None:
        if self.away is not None:
            raise self.away
        self.ready.discard(name)

    def infer(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            as_numpy=lambda _: np.zeros((1, 3)),
            get_response=lambda: SimpleNamespace(model_version=int(self.version, 16)),
        )


def version_of(folder: Path) -> str:
    return str(read_manifest(folder)["model_version"])


def repository(folder: Path, version: str) -> Path:
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "config.pbtxt").write_text(f'name: "code"\n# {version}\n')
    files = {"code/config.pbtxt": file_hash(folder / "code" / "config.pbtxt")}
    manifest = {
        "schema": SCHEMA,
        "model_version": version,
        "version_number": 1,
        "flavour": "null",
        "precision": "fp32",
        "code": "fused",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest | {"plans": None, "files": files}))
    return folder


OLDER, OLD, NEW = "0" * 11 + "1", "0" * 11 + "2", "0" * 11 + "3"


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A folder that serves OLD, with OLDER to go back to."""
    repository(tmp_path / "models.previous", OLDER)
    return repository(tmp_path / "models", OLD)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A candidate."""
    return repository(tmp_path / "candidate", NEW)


def state(live: Path) -> tuple[str, str]:
    assert list(live.parent.glob(f".{live.name}.*")) == []
    return version_of(live), version_of(rollout.previous_of(live))


def test_a_repeated_load_keeps_the_version_before(live: Path, new: Path) -> None:
    """A load retried, by hand or by a Job, may not make the version to go back to the one that serves."""
    client = Client(live)
    for _ in range(2):
        assert rollout.load(client, live, new) == NEW
        assert state(live) == (NEW, OLD)


def test_a_damaged_file_in_live_keeps_no_good_version_out(live: Path, new: Path) -> None:
    """What is to be replaced need not be whole; to go back to it is refused."""
    with (live / "code" / "config.pbtxt").open("a") as file:
        file.write("damage")
    assert rollout.load(Client(live), live, new) == NEW
    assert state(live) == (NEW, OLD)
    with pytest.raises(BuildError, match="damaged or replaced"):
        rollout.back(Client(live), live)


@pytest.mark.parametrize(("name", "says"), [("models", "started on"), ("models.previous", "rollout back")])
def test_the_folders_of_the_roll_out_are_no_candidates(live: Path, name: str, says: str) -> None:
    """`--new LIVE` and `--new LIVE.previous` are refused, nothing is swapped."""
    with pytest.raises(RolloutError, match=says):
        rollout.load(Client(live), live, live.with_name(name))
    assert state(live) == (OLD, OLDER)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device"), SystemExit(143)])
@pytest.mark.parametrize("action", ["load", "back", "shadow"])
def test_an_interruption_puts_everything_back(live: Path, new: Path, action: str, stop: BaseException) -> None:
    """Whatever stops a roll-out after the folders were swapped: folders and server are as before."""
    client = Client(live)
    client.stop = stop
    act: dict[str, Callable[[], object]] = {
        "load": lambda: rollout.load(client, live, new),
        "back": lambda: rollout.back(client, live),
        "shadow": lambda: rollout.shadow(client, live, new),
    }
    with pytest.raises(type(stop)):
        act[action]()
    assert state(live) == (OLD, OLDER)
    assert client.version == OLD and not (live / SHADOW).exists()


@pytest.mark.parametrize("exchanges", [1, 2])
def test_an_interruption_between_the_renames_is_undone(
    live: Path, new: Path, monkeypatch: pytest.MonkeyPatch, exchanges: int
) -> None:
    """Ctrl-C after the first or second rename of a load."""
    calls = []

    def interrupted(one: Path, other: Path) -> None:
        exchange(one, other)
        calls.append(one)
        if len(calls) == exchanges:
            raise KeyboardInterrupt

    for module in (rollout, rollout_steps):
        monkeypatch.setattr(module, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rollout.load(Client(live), live, new)
    assert state(live) == (OLD, OLDER)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_a_killed_load_left_is_put_back(live: Path, new: Path, *, swapped: bool) -> None:
    """SIGKILL during the copy or between the renames: the next roll-out begins from the version that served."""
    work = live.with_name(".models.abcd_123")
    repository(work / "new", NEW)
    (work / rollout.WAS).write_text(str(live.stat().st_ino))
    if swapped:
        exchange(work / "new", live)
    assert rollout.back(Client(live), live) == OLDER
    assert state(live) == (OLDER, OLD)


def test_two_roll_outs_at_once_are_refused(live: Path, new: Path) -> None:
    """The second is told to wait, and changes nothing."""
    with live.with_name("models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RolloutError, match="another roll-out is at work"):
            rollout.load(Client(live), live, new)
    assert state(live) == (OLD, OLDER)


def test_a_shadow_whose_folder_is_gone_is_unloaded(live: Path) -> None:
    """The server still serves it, and is asked; without either there is none."""
    client = Client(live)
    client.ready.add(SHADOW)
    rollout.unshadow(client, live)
    assert client.ready == {"code"}
    with pytest.raises(RolloutError, match="no shadow version"):
        rollout.unshadow(client, live)


def test_a_shadow_from_another_folder_serves_on(live: Path, new: Path) -> None:
    """With a wrong LIVE the shadow that the server has from the right one is neither ended nor taken for the
    new one.
    """
    client = Client(live)
    client.ready.add(SHADOW)
    client.version = NEW  # the same version as the candidate's: its answers cannot tell the two apart
    with pytest.raises(RolloutError, match=r"not in this folder.*started on"):
        rollout.shadow(client, live, new)
    assert SHADOW in client.ready and not (live / SHADOW).exists()


@pytest.mark.parametrize("action", ["load", "back", "shadow"])
def test_a_folder_that_is_no_repository_is_named(live: Path, new: Path, action: str) -> None:
    """A LIVE mistyped: the line names it, the server is not asked, nothing is left beside it."""
    typo, client = live.with_name("typo"), Client(live)
    client.stop = AssertionError("the server was asked")
    before = set(live.parent.iterdir())
    with pytest.raises(RolloutError, match=f"^{typo}: no model repository"):
        rollout.back(client, typo) if action == "back" else getattr(rollout, action)(client, typo, new)
    assert set(live.parent.iterdir()) == before


def test_a_shadow_is_removed_without_a_server(live: Path) -> None:
    """A damaged one may be why none runs: its folder goes, the line says that the server was not told."""
    client = Client(live)
    (live / SHADOW).mkdir()
    client.away = InferenceServerException("failed to connect")
    with pytest.raises(RolloutError, match=r"code_shadow: removed.*failed to connect"):
        rollout.unshadow(client, live)
    assert not (live / SHADOW).exists()
