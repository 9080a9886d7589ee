"""How a run begins on every rank: group, data (indexed by the first rank alone), preflight, and a checkpoint of another
number of processes.

    python -m train.main fit --recipe paper --set data.source=shards/ --run runs/paper --check
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from train.data.open import open_source
from train.data.records import Labelled, Source, limit_per_class
from train.data.shards import Mixing, unindexed
from train.distributed import Group, PeerFailed, process_group
from train.preflight import Finding, check, report
from train.recipe import Recipe, RecipeError
from train.run_folder import RunFolder

INDEXED_BY_EVERY_RUN_BYTES = 4 * 2**30  # headers of so many shards are read in well below a minute


def preflight(
    recipe: Recipe, run: Path, *, resume: bool = False, adapt: bool = False, console: Console | None = None
) -> list[Finding]:
    """What `fit` would find before it begins, printed line by line. Raises RecipeError, DataError, PeerFailed."""
    console = console or Console(stderr=True)
    with group_for(recipe) as group:
        folder = RunFolder(run, writes=False)
        if not resume:
            folder.begin(recipe)
        begun_with = begun_world(folder.load_checkpoint(group.device) if resume else None, group)
        recipe = same_steps(recipe, begun_with, group, adapt=adapt)
        source, _ = open_data(recipe, group, console)
        findings = check(recipe, run, source, group)
        require(findings, group, console, all_of_them=True)
    return findings


@contextmanager
def group_for(recipe: Recipe) -> Iterator[Group]:
    """This process's group. Raises RecipeError where a GPU is asked for and there is none."""
    if recipe.training.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(["training.device = 'cuda': PyTorch finds no NVIDIA GPU here; leave it at auto, or say cpu"])
    with process_group(recipe.training.device) as group:
        yield group


def open_data(recipe: Recipe, group: Group, console: Console) -> tuple[Source, list[Labelled]]:
    """(records to train on, validation images), opened on the first rank before the others: it writes the indexes of
    shards that have none. Raises RecipeError, DataError, PeerFailed.
    """
    data, told = recipe.data, console if group.is_main else None
    with group.main_first():
        for name, folder in (("data.source", data.source), ("data.validation", data.validation)):
            if folder:
                _require_indexes(name, Path(folder))
        mixing = Mixing(data.shuffle_window, data.shards_at_once, data.resample)
        source = open_source(data.source, min_side_px=data.min_side_px, mixing=mixing, console=told)
        if data.validation:
            held: Source = open_source(data.validation, min_side_px=data.min_side_px, console=told)
        else:
            source, held = source.split(data.validation_fraction)
    return source, limit_per_class(held.labelled(), recipe.validation.max_images_per_class)


def _require_indexes(name: str, folder: Path) -> None:
    """Raises RecipeError where every rank at every start would read the headers of very many images."""
    missing = unindexed(folder)
    size = sum(shard.stat().st_size for shard in missing)
    if size > INDEXED_BY_EVERY_RUN_BYTES and not os.access(folder, os.W_OK):
        problem = f"{len(missing)} shards ({size / 2**30:.0f} GiB) have no index, and none can be written beside them"
        change = f"run `python -m train.main data inspect {folder}` once where the folder may be written"
        raise RecipeError([f"{name} = {str(folder)!r}: {problem}: {change}"])


def require(findings: Sequence[Finding], group: Group, console: Console, *, all_of_them: bool) -> None:
    """Print what is no certain failure, and raise RecipeError on the ranks where something is certain to fail (of one
    machine's only on the first, which has the same), PeerFailed on the others.
    """
    if group.is_main:
        report([finding for finding in findings if not finding.certain], console, all_of_them=all_of_them)
    certain = [finding.line() for finding in findings if finding.certain]
    if any(group.gather(bool(certain))):
        if certain and os.environ.get("LOCAL_RANK", "0") == "0":
            raise RecipeError(certain)
        raise PeerFailed("another process failed the preflight")


def begun_world(state: Mapping[str, Any] | None, group: Group) -> int:
    """With how many processes the run of this checkpoint (None: a new run) was begun."""
    return group.world if state is None else int(state.get("world", group.world))


def same_steps(recipe: Recipe, begun_with: int, group: Group, *, adapt: bool) -> Recipe:
    """The recipe with which `group` takes the records in every step that `begun_with` processes took.

    Raises RecipeError for another number of processes without `adapt` (a step would be of another batch, and records
    would come twice), or where the steps cannot be shared out.
    """
    if begun_with == group.world:
        return recipe
    counts = f"the run was begun with {begun_with} processes, here are {group.world}"
    if not adapt:
        other = "--adapt-ranks, or begin another run with --set training.start_from=RUN/best"
        raise RecipeError([f"{counts}: start as many, go on with {other}"])
    shares = recipe.training.accumulation_steps * begun_with
    if shares % group.world:
        raise RecipeError([f"{counts}: a step's {shares} micro-batches can be shared by a divisor of that many only"])
    training = dataclasses.replace(recipe.training, accumulation_steps=shares // group.world)
    return dataclasses.replace(recipe, training=training)
