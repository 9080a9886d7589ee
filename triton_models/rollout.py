"""Another version into a running server, beside the one that serves or in its place, and back again with one command.

    python -m triton_models.rollout status   --repository LIVE --server HOST:PORT
    python -m triton_models.rollout shadow   --repository LIVE --server HOST:PORT --new REPOSITORY    serve it too, as
                                             `code_shadow`
    python -m triton_models.rollout unshadow --repository LIVE --server HOST:PORT
    python -m triton_models.rollout load     --repository LIVE --server HOST:PORT --new REPOSITORY    serve it instead
    python -m triton_models.rollout back     --repository LIVE --server HOST:PORT                     undo the last load
                                             or back

LIVE is the folder that the server was started on (explicit model control); the version before stays beside it as
LIVE.previous. Triton answers with the old version until the new one is loaded (not from one ensemble to another: a
second or more without answers), and keeps it if loading fails; then the folder is put back too. Every answer carries
its version, so the worker follows. A server that wants a key gets that of ASSAY_TRITON__CONTROL_KEY (or _FILE).
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from triton_models.command import clear_errors, command_line, fail
from triton_models.configuration import MODELS
from triton_models.control import VARIABLE, connect, control_key
from triton_models.files import exchange
from triton_models.plan import PlanError
from triton_models.repository import (
    MANIFEST,
    SHADOW,
    WEIGHTS_FOLDER,
    BuildError,
    check,
    read_manifest,
    refuse_mount_point,
)
from triton_models.weights import IMAGE_PX

WAS = "was"  # in the folder of a load at work: the inode of the version that served when it began
DEADLINE_S = 300.0  # a TensorRT plan with a large bank loads slowly from a network disk


class RolloutError(Exception):
    """A version that did not come to serve; the message says why, and the one before serves on."""


def load(client: Any, live: Path, new: Path) -> str:
    """Serve the repository `new` in place of `live`'s content; returns its model version.

    Raises BuildError or PlanError when `new` is damaged or for another machine, RolloutError when the server does not
    take it; in each case `live` and the server are as before.
    """
    previous = previous_of(live)
    if new.resolve() in (live, previous):
        advice = "it is what the server is started on" if new.resolve() == live else "go back to it with `rollout back`"
        raise RolloutError(f"--new {new}: {advice}; name another repository")
    manifest = check(new)
    version = str(manifest["model_version"])
    with _alone(live), _beside(live) as work:
        if _whole(live) == manifest:  # loaded before: the server is told again, the version to go back to stays
            return _try(client, live, version, swap=lambda: None, undo=lambda: None)
        draft, was = work / "new", live.stat().st_ino
        shutil.copytree(new, draft, ignore=shutil.ignore_patterns(SHADOW))
        (work / WAS).write_text(str(was))

        def swap() -> None:
            _change_places(live, draft)
            if previous.exists():
                exchange(draft, previous)
            else:
                draft.rename(previous)  # before the server is told: after a kill, `back` finds the version before

        def undo() -> None:
            if previous.is_dir() and previous.stat().st_ino == was:
                if draft.exists():
                    exchange(draft, previous)
                else:
                    previous.rename(draft)
            if live.stat().st_ino != was:
                _change_places(live, draft)

        return _try(client, live, version, swap=swap, undo=undo)


def back(client: Any, live: Path) -> str:
    """Serve the version before the last `load` (or `back`) again; returns its model version. Raises as `load` does."""
    previous = previous_of(live)
    with _alone(live):
        if not (previous / MANIFEST).is_file():
            raise RolloutError(
                f"{previous}: there is no version before this one; name one with `load --new REPOSITORY`"
            )
        version, was = str(check(previous)["model_version"]), live.stat().st_ino

        def undo() -> None:
            if live.stat().st_ino != was:
                _change_places(live, previous)

        return _try(client, live, version, swap=lambda: _change_places(live, previous), undo=undo)


def shadow(client: Any, live: Path, new: Path) -> str:
    """Serve `new`'s `code` beside the serving one, as `code_shadow`; returns its model version. Raises as
    `load` does.
    """
    manifest = check(new)
    if manifest["code"] != "fused":
        raise BuildError(f"{new}: an ensemble cannot stand beside another one; build it with --code fused")
    place = live / SHADOW
    with _alone(live), _beside(live) as work:
        _refuse_another_folder(client, live)
        draft = work / SHADOW
        shutil.copytree(new / "code", draft, ignore=shutil.ignore_patterns(WEIGHTS_FOLDER))
        configuration = draft / "config.pbtxt"
        configuration.write_text(configuration.read_text().replace('name: "code"', f'name: "{SHADOW}"', 1))
        had_one, candidate = place.is_dir(), draft.stat().st_ino
        try:
            if had_one:
                exchange(draft, place)
            else:
                draft.rename(place)
            _load_model(client, live, SHADOW)
            return _canary(client, SHADOW, str(manifest["model_version"]))
        except BaseException as error:  # an interruption too
            if had_one and place.stat().st_ino == candidate:
                exchange(draft, place)
            elif not had_one and place.is_dir():
                place.rename(draft)
            _put_back(client, live, had_one=had_one)
            if not isinstance(error, InferenceServerException | RolloutError):
                raise
            raise RolloutError(f"{new}: the server does not serve it ({_text(error)}); nothing has changed") from error


def unshadow(client: Any, live: Path) -> None:
    """Stop serving `code_shadow`, and remove it: the folder also where no server answers, as a damaged one may be why.

    Raises RolloutError when there is none, or the server could not be told.
    """
    folder = live / SHADOW
    with _alone(live):
        try:
            if not folder.is_dir() and not client.is_model_ready(SHADOW):
                raise RolloutError(f"{live}: no shadow version is there")
            client.unload_model(SHADOW)
        except InferenceServerException as error:
            if not folder.is_dir():
                raise
            shutil.rmtree(folder)
            raise RolloutError(
                f"{folder}: removed, but the server was not told ({_text(error)}); if it runs, it serves it on"
            ) from error
        if folder.is_dir():
            shutil.rmtree(folder)


def versions(client: Any, live: Path) -> dict[str, str | None]:
    """Model versions by place: `serving`, `shadow`, `folder` (what a restart would serve) and `previous`; None where
    nothing is.
    """
    found: dict[str, str | None] = {
        "serving": _served_version(client, "code"),
        "shadow": _served_version(client, SHADOW),
    }
    for place, folder in (("folder", live), ("previous", previous_of(live))):
        found[place] = str(read_manifest(folder)["model_version"]) if (folder / MANIFEST).is_file() else None
    return found


def previous_of(live: Path) -> Path:
    """Where the version before stands."""
    return live.with_name(f"{live.name}.previous")


def _refuse_another_folder(client: Any, live: Path) -> None:
    """Raises RolloutError for a shadow that the server has from elsewhere: to undo would end it."""
    try:
        served = client.is_model_ready(SHADOW)
    except InferenceServerException as error:
        raise RolloutError(f"{live}: the server does not answer ({_text(error)}); nothing has changed") from error
    if served and not (live / SHADOW).is_dir():
        advice = "name the folder that the server is started on, or end that shadow first with `rollout unshadow`"
        raise RolloutError(f"{live}: the server serves a {SHADOW} that is not in this folder; {advice}")


def _whole(live: Path) -> dict[str, Any] | None:
    """Its manifest; None where it is damaged, which is no reason to keep it."""
    try:
        return check(live)
    except (BuildError, PlanError):
        return None


@contextmanager
def _alone(live: Path) -> Iterator[None]:
    """One roll-out at a time; what a killed one left is put back first.

    Raises RolloutError while another is at work, and for no repository, BuildError for a mount point.
    """
    refuse_mount_point(live)
    if not (live / MANIFEST).is_file():
        raise RolloutError(
            f"{live}: no model repository is there (no {MANIFEST}); name the folder that the server is started on"
        )
    with live.with_name(f"{live.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RolloutError(
                f"{live}: another roll-out is at work on it; wait for its end, then look with `rollout status`"
            ) from error
        for work in live.parent.glob(f".{glob.escape(live.name)}.????????"):
            draft, was = work / "new", work / WAS
            if draft.is_dir() and was.is_file() and was.read_text() == str(draft.stat().st_ino):
                _change_places(live, draft)  # killed between two renames, before the server was told
            shutil.rmtree(work, ignore_errors=True)
        yield


@contextmanager
def _beside(live: Path) -> Iterator[Path]:
    """A folder on the same file system as `live`, gone at the end with what is in it."""
    with tempfile.TemporaryDirectory(prefix=f".{live.name}.", dir=live.parent) as work:
        yield Path(work)


def _change_places(live: Path, previous: Path) -> None:
    """The version before for the one that serves; a shadow stays beside whichever serves."""
    exchange(live, previous)
    if (previous / SHADOW).is_dir():
        (previous / SHADOW).rename(live / SHADOW)


def _try(client: Any, live: Path, version: str, *, swap: Callable[[], None], undo: Callable[[], None]) -> str:
    """Swap the folders and tell the server; `undo` puts back whatever part of the swap was done."""
    try:
        swap()
        _load_ready(client, live)
        return _canary(client, "code", version)
    except (InferenceServerException, RolloutError) as error:
        undo()
        try:
            _load_ready(client, live)
        except InferenceServerException as again:
            state = f"the folder is as before, but the server does not take it back ({_text(again)}): start it anew"
            raise RolloutError(f"{live}: the server does not serve {version} ({_text(error)}); {state}") from again
        raise RolloutError(
            f"{live}: the server does not serve {version} ({_text(error)}); the version before is back"
        ) from error
    except BaseException:  # Ctrl-C, SIGTERM, a full disk
        undo()
        with suppress(InferenceServerException, OSError):
            _load_ready(client, live)
        raise


def _load_ready(client: Any, live: Path) -> None:
    """Load `code` anew, and whichever of its parts the server has loaded: parts first where `code` is an ensemble of
    them.

    One graph goes first: the `code` before may be an ensemble, which answers only as long as the server has its parts'
    version.
    """
    parts = [name for name in MODELS if name != "code" and client.is_model_ready(name)]
    one_graph = any((live / "code").glob("*/model.*"))
    for name in ("code", *parts) if one_graph else (*parts, "code"):
        _load_model(client, live, name)


def _load_model(client: Any, live: Path, name: str) -> None:
    """Triton takes a model for unchanged, and answers success, unless something in its folder is newer than at the last
    load.
    """
    for path in (live / name).rglob("*"):
        os.utime(path)
    client.load_model(name, client_timeout=DEADLINE_S)


def _put_back(client: Any, live: Path, *, had_one: bool) -> None:
    """The server's shadow as it was; a server that is gone finds it in the folder when it starts."""
    with suppress(InferenceServerException):
        if had_one:
            _load_model(client, live, SHADOW)
        else:
            client.unload_model(SHADOW)


def _canary(client: Any, name: str, version: str) -> str:
    """One grey image through the model; its answer must have numbers and come from `version`."""
    tensor = grpc.InferInput("images", [1, IMAGE_PX, IMAGE_PX, 3], "UINT8")
    tensor.set_data_from_numpy(np.full((1, IMAGE_PX, IMAGE_PX, 3), 128, np.uint8))
    answer = client.infer(name, [tensor], client_timeout=DEADLINE_S)
    scores = answer.as_numpy("scores")
    served = f"{int(answer.get_response().model_version):012x}"
    if scores is None or scores.shape != (1, 3) or not np.isfinite(scores).all():
        raise RolloutError("its answer has no scores")
    if served != version:
        raise RolloutError(f"version {served} answers")
    return version


def _served_version(client: Any, name: str) -> str | None:
    if not client.is_model_ready(name):
        return None
    return str(client.get_model_config(name).config.parameters["model_version"].string_value)


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{text}: set {VARIABLE} to the server's key" if "protocol is restricted" in text else text


app = command_line(__doc__)
Repository = Annotated[Path, typer.Option(metavar="LIVE", help="the folder that the server serves")]
Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="its gRPC address")]
New = Annotated[Path, typer.Option(metavar="REPOSITORY", help="written by python -m triton_models.build")]


@app.command("status")
def status_command(repository: Repository, server: Server) -> None:
    """The versions in place: serving, shadow, in the folder, and the one before."""
    _roll_out(repository, server, lambda _client, _live: None)


@app.command("shadow")
def shadow_command(repository: Repository, server: Server, new: New) -> None:
    """Serve another version too, as `code_shadow`."""
    _roll_out(repository, server, lambda client, live: shadow(client, live, new))


@app.command("unshadow")
def unshadow_command(repository: Repository, server: Server) -> None:
    """Stop serving the shadow, and remove it."""
    _roll_out(repository, server, unshadow)


@app.command("load")
def load_command(repository: Repository, server: Server, new: New) -> None:
    """Serve another version instead."""
    _roll_out(repository, server, lambda client, live: load(client, live, new))


@app.command("back")
def back_command(repository: Repository, server: Server) -> None:
    """Undo the last load or back."""
    _roll_out(repository, server, back)


def _roll_out(repository: Path, server: str, act: Callable[[Any, Path], object]) -> None:
    """Do it on a client of `server`, then print the versions in place."""
    live = repository.resolve()  # a link stays a link
    try:
        with clear_errors(live), closing(connect(server, control_key())) as client:
            act(client, live)
            for place, version in versions(client, live).items():
                print(f"{place:10}{version or '-'}")
    except RolloutError as error:
        fail(str(error), cause=error)
    except InferenceServerException as error:
        fail(f"server {server}: {_text(error)}; is it running, and on this gRPC address?", cause=error)
    except KeyboardInterrupt as error:
        fail(f"interrupted; {live} is as before, look with `rollout status`", code=130, cause=error)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a Job that is stopped puts the folder back
    app(prog_name="python -m triton_models.rollout")
