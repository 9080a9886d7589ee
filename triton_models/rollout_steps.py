"""What every roll-out does: alone on its folder, on drafts beside it, and told to a server that may refuse.

A roll-out that was killed is put right by the next one (`alone`).
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton_models.control import VARIABLE
from triton_models.files import exchange, replacing
from triton_models.repository import MANIFEST, SHADOW, refuse_mount_point

WAS = "was"  # in the folder of a load at work: the inode of the version that served when it began
DEADLINE_S = 300.0  # a TensorRT plan with a large bank loads slowly from a network disk
CHANGES = "changes.json"  # likewise, of one detector: its folder's inode, and the manifest that goes with it


class RolloutError(Exception):
    """A version that did not come to serve; the message says why, and the one before serves on."""


def previous_of(live: Path) -> Path:
    """Where the version before stands."""
    return live.with_name(f"{live.name}.previous")


@contextmanager
def alone(live: Path) -> Iterator[None]:
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
                change_places(live, draft)  # killed between two renames, before the server was told
            _finish(live, work / CHANGES)
            shutil.rmtree(work, ignore_errors=True)
        yield


def _finish(live: Path, changes: Path) -> None:
    """A detector's folder that has changed places gets its manifest, where the roll-out was killed between the two."""
    if changes.is_file():
        told = json.loads(changes.read_text())
        place = live / told["name"]
        if place.is_dir() and place.stat().st_ino == told["inode"]:
            write_manifest(live, told["manifest"])


def write_manifest(repository: Path, manifest: dict[str, Any]) -> None:
    """In one step."""
    with replacing(repository / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=1) + "\n")


@contextmanager
def beside(live: Path) -> Iterator[Path]:
    """A folder on the same file system as `live`, gone at the end with what is in it."""
    with tempfile.TemporaryDirectory(prefix=f".{live.name}.", dir=live.parent) as work:
        yield Path(work)


def change_places(live: Path, previous: Path) -> None:
    """The version before for the one that serves; a shadow stays beside whichever serves."""
    exchange(live, previous)
    if (previous / SHADOW).is_dir():
        (previous / SHADOW).rename(live / SHADOW)


def load_model(client: Any, live: Path, name: str) -> None:
    """Triton takes a model for unchanged, and answers success, unless something in its folder is newer than at the last
    load.
    """
    for path in (live / name).rglob("*"):
        os.utime(path)
    client.load_model(name, client_timeout=DEADLINE_S)


def said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{text}: set {VARIABLE} to the server's key" if "protocol is restricted" in text else text
