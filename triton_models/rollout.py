"""Another version into a running server, beside the one that serves or in its place, and back again with one command.

    python -m triton_models.rollout status   --repository LIVE --server HOST:PORT
    python -m triton_models.rollout shadow   --repository LIVE --server HOST:PORT --new REPOSITORY    serve it too, as
                                             `code_shadow`
    python -m triton_models.rollout unshadow --repository LIVE --server HOST:PORT
    python -m triton_models.rollout load     --repository LIVE --server HOST:PORT --new REPOSITORY    serve it instead
    python -m triton_models.rollout back     --repository LIVE --server HOST:PORT                     undo the last load
                                             or back

`load` and `back` with `--detector NAME` are of a detector beside `code`, by itself (rollout_detector.py); without it
they leave the detectors as they are.

LIVE is the folder that the server was started on (explicit model control); the version before stays beside it as
LIVE.previous. Triton answers with the old version until the new one is loaded (not from one ensemble to another: a
second or more without answers), and keeps it if loading fails; then the folder is put back too. Every answer carries
its version, so the worker follows. A server that wants a key gets that of ASSAY_TRITON__CONTROL_KEY (or _FILE).
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from triton_models import rollout_detector
from triton_models.command import clear_errors, command_line, fail
from triton_models.configuration import MODELS
from triton_models.control import connect, control_key
from triton_models.files import exchange
from triton_models.plan import PlanError
from triton_models.repository import (
    MANIFEST,
    SHADOW,
    WEIGHTS_FOLDER,
    BuildError,
    check,
    read_manifest,
)
from triton_models.rollout_steps import (
    DEADLINE_S,
    WAS,
    RolloutError,
    alone,
    beside,
    change_places,
    load_model,
    previous_of,
    said,
)
from triton_models.weights import IMAGE_PX

__all__ = ["RolloutError", "previous_of"]


def load(client: Any, live: Path, new: Path) -> str:
    """Serve the repository `new` in place of `live`'s content; returns its model version.

    Raises BuildError or PlanError when `new` is damaged or for another machine, RolloutError when the server does not
    take it; in each case `live` and the server are as before.
    """
    previous = previous_of(live)
    if new.resolve() in (live, previous):
        advice = "it is what the server is started on" if new.resolve() == live else "go back to it with `rollout back`"
        raise RolloutError(f"--new {new}: {advice}; name another repository")
    version = str(check(new)["model_version"])
    with alone(live), beside(live) as work:
        draft, was = work / "new", live.stat().st_ino
        shutil.copytree(new, draft, ignore=shutil.ignore_patterns(SHADOW))
        if _whole(live) == rollout_detector.keep(live, draft):
            # Loaded before: the server is told again, the version to go back to stays.
            return _try(client, live, version, swap=lambda: None, undo=lambda: None)
        (work / WAS).write_text(str(was))

        def swap() -> None:
            change_places(live, draft)
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
                change_places(live, draft)

        return _try(client, live, version, swap=swap, undo=undo)


def back(client: Any, live: Path) -> str:
    """Serve the version before the last `load` (or `back`) again; returns its model version. Raises as `load` does."""
    previous = previous_of(live)
    with alone(live):
        if not (previous / MANIFEST).is_file():
            raise RolloutError(
                f"{previous}: there is no version before this one; name one with `load --new REPOSITORY`"
            )
        version, was = str(check(previous)["model_version"]), live.stat().st_ino
        if read_manifest(previous).get("detectors", {}) != read_manifest(live).get("detectors", {}):
            with beside(live) as work:  # those that are served stay
                draft = work / "previous"
                shutil.copytree(previous, draft)
                rollout_detector.keep(live, draft)
                exchange(draft, previous)

        def undo() -> None:
            if live.stat().st_ino != was:
                change_places(live, previous)

        return _try(client, live, version, swap=lambda: change_places(live, previous), undo=undo)


def shadow(client: Any, live: Path, new: Path) -> str:
    """Serve `new`'s `code` beside the serving one, as `code_shadow`; returns its model version. Raises as
    `load` does.
    """
    manifest = check(new)
    if manifest["code"] != "fused":
        raise BuildError(f"{new}: an ensemble cannot stand beside another one; build it with --code fused")
    place = live / SHADOW
    with alone(live), beside(live) as work:
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
            load_model(client, live, SHADOW)
            return _canary(client, SHADOW, str(manifest["model_version"]))
        except BaseException as error:  # an interruption too
            if had_one and place.stat().st_ino == candidate:
                exchange(draft, place)
            elif not had_one and place.is_dir():
                place.rename(draft)
            _put_back(client, live, had_one=had_one)
            if not isinstance(error, InferenceServerException | RolloutError):
                raise
            raise RolloutError(f"{new}: the server does not serve it ({said(error)}); nothing has changed") from error


def unshadow(client: Any, live: Path) -> None:
    """Stop serving `code_shadow`, and remove it: the folder also where no server answers, as a damaged one may be why.

    Raises RolloutError when there is none, or the server could not be told.
    """
    folder = live / SHADOW
    with alone(live):
        try:
            if not folder.is_dir() and not client.is_model_ready(SHADOW):
                raise RolloutError(f"{live}: no shadow version is there")
            client.unload_model(SHADOW)
        except InferenceServerException as error:
            if not folder.is_dir():
                raise
            shutil.rmtree(folder)
            raise RolloutError(
                f"{folder}: removed, but the server was not told ({said(error)}); if it runs, it serves it on"
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


def _refuse_another_folder(client: Any, live: Path) -> None:
    """Raises RolloutError for a shadow that the server has from elsewhere: to undo would end it."""
    try:
        served = client.is_model_ready(SHADOW)
    except InferenceServerException as error:
        raise RolloutError(f"{live}: the server does not answer ({said(error)}); nothing has changed") from error
    if served and not (live / SHADOW).is_dir():
        advice = "name the folder that the server is started on, or end that shadow first with `rollout unshadow`"
        raise RolloutError(f"{live}: the server serves a {SHADOW} that is not in this folder; {advice}")


def _whole(live: Path) -> dict[str, Any] | None:
    """Its manifest; None where it is damaged, which is no reason to keep it."""
    try:
        return check(live)
    except (BuildError, PlanError):
        return None


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
            state = f"the folder is as before, but the server does not take it back ({said(again)}): start it anew"
            raise RolloutError(f"{live}: the server does not serve {version} ({said(error)}); {state}") from again
        raise RolloutError(
            f"{live}: the server does not serve {version} ({said(error)}); the version before is back"
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
        load_model(client, live, name)


def _put_back(client: Any, live: Path, *, had_one: bool) -> None:
    """The server's shadow as it was; a server that is gone finds it in the folder when it starts."""
    with suppress(InferenceServerException):
        if had_one:
            load_model(client, live, SHADOW)
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


app = command_line(__doc__)
Repository = Annotated[Path, typer.Option(metavar="LIVE", help="the folder that the server serves")]
Server = Annotated[str, typer.Option(metavar="HOST:PORT", help="its gRPC address")]
Detector = Annotated[str | None, typer.Option(metavar="NAME", help="this detector beside `code`, by itself")]
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
def load_command(repository: Repository, server: Server, new: New, detector: Detector = None) -> None:
    """Serve another version instead."""
    if detector is None:
        _roll_out(repository, server, lambda client, live: load(client, live, new))
    else:
        _roll_out(repository, server, lambda client, live: rollout_detector.load(client, live, new, detector))


@app.command("back")
def back_command(repository: Repository, server: Server, detector: Detector = None) -> None:
    """Undo the last load or back."""
    if detector is None:
        _roll_out(repository, server, back)
    else:
        _roll_out(repository, server, lambda client, live: rollout_detector.back(client, live, detector))


def _roll_out(repository: Path, server: str, act: Callable[[Any, Path], object]) -> None:
    """Do it on a client of `server`, then print the versions in place."""
    live = repository.resolve()  # a link stays a link
    try:
        with clear_errors(live), closing(connect(server, control_key())) as client:
            act(client, live)
            places = versions(client, live) | rollout_detector.versions(client, live)
            width = max(10, *(len(place) + 2 for place in places))
            for place, version in places.items():
                print(f"{place:{width}}{version or '-'}")
    except RolloutError as error:
        fail(str(error), cause=error)
    except InferenceServerException as error:
        fail(f"server {server}: {said(error)}; is it running, and on this gRPC address?", cause=error)
    except KeyboardInterrupt as error:
        fail(f"interrupted; {live} is as before, look with `rollout status`", code=130, cause=error)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a Job that is stopped puts the folder back
    app(prog_name="python -m triton_models.rollout")
