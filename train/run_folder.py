"""A run's folder: what was asked (recipe, git state, environment), what happened (JSONL, TensorBoard), where it stands
(checkpoint).

recipe.toml  environment.json  metrics.jsonl  tensorboard/  checkpoint.pt  best/encoder.safetensors  failed.txt
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from train.recipe import Recipe, RecipeError, load_recipe, recipe_to_toml
from triton_models.files import replacing

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
RECIPE = "recipe.toml"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "webdataset")
_FULL_BYTES = 1 << 20  # a file system with less free counts as full


class RunFolder:
    """Opens or makes `path`. Only the main process writes; the others read the checkpoint."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._tensorboard: Any = None

    def begin(self, recipe: Recipe) -> None:
        """Write recipe and environment of a new run. Raises RecipeError if the folder holds a run already, or cannot be
        written.
        """
        if (self.path / CHECKPOINT).exists():
            raise RecipeError(
                [f"{self.path} holds a run already: continue it with --resume, or name another folder with --run"]
            )
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / RECIPE).write_text(recipe_to_toml(recipe))
            (self.path / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
            (self.path / METRICS).write_text("")
        except OSError as error:
            raise RecipeError(
                [f"run folder: {self.path}: {error.strerror or error}: name another folder with --run"]
            ) from error

    def recipe(self) -> Recipe:
        """The recipe that the run was begun with. Raises RecipeError."""
        if not (self.path / RECIPE).exists():
            raise RecipeError(
                [f"no run to resume in {self.path}: start without --resume, or name the folder of the run with --run"]
            )
        return load_recipe(self.path / RECIPE)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint in one step: a kill leaves the old one or the new one. Raises OSError naming it."""
        if not self.writes:
            return
        path = self.path / CHECKPOINT
        with naming(path), replacing(path) as partial, partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """The checkpoint's state (tensors and numbers only). Raises RecipeError if there is none."""
        path = self.path / CHECKPOINT
        if not path.exists():
            raise RecipeError([f"{path} is not there: nothing to resume; start without --resume"])
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state

    def forget_after(self, step: int) -> None:
        """Drop metrics of what a resumed run does again (at step 0 the probe too), and a line that a kill cut off."""
        if self.writes:
            kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
            with replacing(self.path / METRICS) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line in metrics.jsonl and the same numbers in TensorBoard."""
        if not self.writes:
            return
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, "time_s": round(time.time(), 3), **values}) + "\n")
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to import

            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def note_failed(self, lines: list[str]) -> None:
        """Append records that could not be read."""
        if self.writes and lines:
            with (self.path / "failed.txt").open("a") as file:
                file.writelines(f"{line}\n" for line in lines)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What torch's and safetensors' writers raise in the block, in words of their own, becomes an OSError naming
    `path`.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        if shutil.disk_usage(next(p for p in path.parents if p.exists())).free < _FULL_BYTES:
            number = errno.ENOSPC
        if number is None:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"{path} could not be written: {said}") from error
        raise OSError(number, os.strerror(number), str(path)) from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an unfinished last line is left out."""
    path = run / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def environment() -> dict[str, Any]:
    """Command, versions, machine and git state, for reading later."""
    from importlib import metadata  # noqa: PLC0415

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "git": {
            "commit": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        },
    }


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed package has no repository
    return result.stdout.strip()
