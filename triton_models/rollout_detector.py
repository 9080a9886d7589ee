"""A detector beside `code` into a running server by itself, and back again; `code` is not touched.

Its folder in LIVE changes places with the new one, and the manifest with it; the version before stays as a small
repository beside LIVE, `LIVE.previous-NAME`. A roll-out of `code` leaves the detectors as they are (`keep`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from triton_models.files import exchange
from triton_models.repository import MANIFEST, BuildError, check, read_manifest
from triton_models.rollout_steps import (
    CHANGES,
    DEADLINE_S,
    RolloutError,
    alone,
    beside,
    load_model,
    said,
    write_manifest,
)


def load(client: Any, live: Path, new: Path, name: str) -> str:
    """Serve the detector `name` of the repository `new` in `live`, in place of the one there; returns its version.

    Raises BuildError or PlanError when `new` is damaged or for another machine, RolloutError when it has no such
    detector or the server does not take it; in each case `live` and the server are as before.
    """
    version = _version(new, check(new), name)
    with alone(live), beside(live) as work:
        before = read_manifest(live)
        if before.get("detectors", {}).get(name) == version and _is_whole(live, before, name):
            load_model(client, live, name)  # loaded before: the server is told again
            return _canary(client, name, version)
        if (live / name).is_dir() and name not in before.get("detectors", {}):
            raise RolloutError(
                f"{live / name}: a model by this name is no detector of ours; name the detector differently"
            )
        draft, place = work / name, live / name
        shutil.copytree(new / name, draft)
        wanted = _merged(before, read_manifest(new), [name])
        had_one, candidate = place.is_dir(), draft.stat().st_ino
        (work / CHANGES).write_text(json.dumps({"name": name, "inode": candidate, "manifest": wanted}))
        try:
            if had_one:
                exchange(draft, place)
            else:
                draft.rename(place)
            write_manifest(live, wanted)
            load_model(client, live, name)
            _canary(client, name, version)
        except BaseException as error:  # an interruption too
            (work / CHANGES).unlink()
            if place.is_dir() and place.stat().st_ino == candidate:
                if had_one:
                    exchange(draft, place)
                else:
                    place.rename(draft)
            write_manifest(live, before)
            with suppress(InferenceServerException):
                load_model(client, live, name) if had_one else client.unload_model(name)
            if not isinstance(error, InferenceServerException | RolloutError):
                raise
            raise RolloutError(
                f"{new}: the server does not serve {name} {version} ({said(error)}); the version before is back"
            ) from error
        (work / CHANGES).unlink()
        if had_one:
            _remember(draft, before, name, previous_of(live, name), work / "previous")
    return version


def back(client: Any, live: Path, name: str) -> str:
    """Serve the version of the detector before the last `load` (or `back`) again; returns it. Raises as `load` does."""
    previous = previous_of(live, name)
    if not (previous / MANIFEST).is_file():
        raise RolloutError(f"{previous}: there is no version of {name} before this one; name one with `load --new`")
    return load(client, live, previous, name)


def keep(live: Path, draft: Path) -> dict[str, Any]:
    """The detectors of `live` into `draft`, in place of those that it was built with; returns its manifest.

    Where `live` has none those of `draft` stay: they are served once the server starts anew, or is told by `load`.
    """
    ours, theirs = read_manifest(live), read_manifest(draft)
    kept, given = ours.get("detectors", {}), theirs.get("detectors", {})
    if not kept or kept == given:
        return theirs
    for name in given:
        shutil.rmtree(draft / name)
    for name in kept:
        shutil.copytree(live / name, draft / name)
    made = _merged(theirs, ours, kept, without=given)
    write_manifest(draft, made)
    return made


def versions(client: Any, live: Path) -> dict[str, str | None]:
    """By `NAME`, `NAME folder` and `NAME previous`; only detectors that are, or were, in the folder."""
    names = set(read_manifest(live).get("detectors", {})) if (live / MANIFEST).is_file() else set()
    before = f"{live.name}.previous-"
    names |= {path.name.removeprefix(before) for path in live.parent.glob(f"{before}*") if path.is_dir()}
    found: dict[str, str | None] = {}
    for name in sorted(names):
        found[name] = _served(client, name)
        for place, folder in (("folder", live), ("previous", previous_of(live, name))):
            manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
            found[f"{name} {place}"] = manifest.get("detectors", {}).get(name)
    return found


def previous_of(live: Path, name: str) -> Path:
    """Where the version before of this detector stands."""
    return live.with_name(f"{live.name}.previous-{name}")


def _version(new: Path, manifest: dict[str, Any], name: str) -> str:
    detectors = manifest.get("detectors", {})
    if name not in detectors:
        there = f"there are {', '.join(sorted(detectors))}" if detectors else "it was built without --detector"
        raise RolloutError(f"{new}: no detector {name} is in it; {there}")
    return str(detectors[name])


def _is_whole(live: Path, manifest: dict[str, Any], name: str) -> bool:
    try:
        check(live)
    except BuildError:
        return False
    return any(_owner(file) == name for file in manifest["files"])


def _merged(
    manifest: dict[str, Any], other: dict[str, Any], names: Iterable[str], without: Iterable[str] = ()
) -> dict[str, Any]:
    """`manifest` with what `other` says of these detectors, and without what it said of `without`."""
    names, gone = {*names}, {*names, *without}
    files = {file: found for file, found in manifest["files"].items() if _owner(file) not in gone}
    files |= {file: found for file, found in other["files"].items() if _owner(file) in names}
    detectors = {name: version for name, version in manifest.get("detectors", {}).items() if name not in gone}
    detectors |= {name: other["detectors"][name] for name in names}
    return {**manifest, "files": dict(sorted(files.items())), "detectors": dict(sorted(detectors.items()))}


def _owner(file: str) -> str:
    return file.partition("/")[0]


def _remember(folder: Path, manifest: dict[str, Any], name: str, previous: Path, work: Path) -> None:
    """`folder`, which served, as the repository `previous`."""
    work.mkdir()
    folder.rename(work / name)
    files = {file: found for file, found in manifest["files"].items() if _owner(file) == name}
    write_manifest(work, {**manifest, "files": files, "detectors": {name: manifest["detectors"][name]}})
    if previous.exists():
        exchange(work, previous)
    else:
        work.rename(previous)


def _canary(client: Any, name: str, version: str) -> str:
    """One grey image of its view; its answer must have numbers and come from `version`."""
    given = client.get_model_config(name).config.input[0]
    tensor = grpc.InferInput(given.name, [1, *given.dims], "UINT8")
    tensor.set_data_from_numpy(np.full((1, *given.dims), 128, np.uint8))
    answer = client.infer(name, [tensor], client_timeout=DEADLINE_S)
    scores = answer.as_numpy("scores")
    if scores is None or not np.isfinite(scores).all():
        raise RolloutError("its answer has no scores")
    served = _served(client, name)
    if served != version:
        raise RolloutError(f"version {served} answers")
    return version


def _served(client: Any, name: str) -> str | None:
    if not client.is_model_ready(name):
        return None
    return str(client.get_model_config(name).config.parameters["model_version"].string_value)
