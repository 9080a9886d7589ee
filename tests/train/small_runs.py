"""Runs of a few seconds for the tests of training: a recipe of two epochs of two steps, and what they leave behind."""

import threading
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from train.embed import Probe
from train.recipe import Recipe, load_recipe

QUIET = Console(quiet=True)


def small(images: Path, *overrides: str) -> Recipe:
    """A recipe that takes a few seconds: two epochs of two steps with the global terms alone, on few images."""
    defaults = [f"data.source={images}", "data.workers=0", "data.validation_fraction=0.4", "loss.terms=global_only"]
    defaults += [
        "training.batch_size=2",
        "training.steps_per_epoch=2",
        "optimisation.epochs=2",
        "optimisation.warmup_epochs=0",
    ]
    return load_recipe("smoke", [*defaults, *overrides])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint.pt", weights_only=True)["encoder"]


def probe_of(auc: float) -> Probe:
    """A probe with this AUC on no images."""
    return Probe(auc, *[np.zeros(0)] * 3)


class StopAfter(threading.Event):
    """Asks to stop after so many looks: a signal at a step of our choice."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0
