"""The training loop: contrastive steps, checkpoints, validation by a linear probe, early stop. One file to read for
what happens.

    python -m train.main fit --recipe smoke --set data.source=DIR --run runs/first
    torchrun --nproc-per-node 4 -m -- train.main fit --recipe paper --set data.source=SHARDS --run runs/paper

Everything random is drawn from (seed, epoch, step, rank or record), never from a generator's state, so that a run
stopped and resumed equals the uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.data.images import DataError
from train.data.loader import Batch, StepSampler, make_batches
from train.data.open import open_source
from train.data.records import Labelled, Source, limit_per_class
from train.distributed import Group, process_group
from train.embed import embed_images, linear_probe
from train.losses import code_loss, draw_permutation
from train.model import Backbone, create_encoder, load_encoder, normalise, save_encoder
from train.progress import StepProgress
from train.recipe import Recipe, RecipeError, recipe_to_toml
from train.run_folder import CHECKPOINT, RunFolder, replacing
from train.schedule import learning_rate, parameter_groups
from train.spectral import initialise_spectral
from triton_models.weights import ENCODER_FILE, MEAN, STD

__all__ = ["FitResult", "TrainingDiverged", "fit", "learning_rate", "parameter_groups"]

NO_NUMBERS = "the encoder's embeddings are no numbers"


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss that is no number, or the encoder's embeddings are none."""


@dataclass(frozen=True)
class FitResult:
    """How a run ended: `finished`, `early_stop` or `interrupted` (saved; continue with --resume). `best_auc` is -inf
    where no probe was possible.
    """

    status: str
    epoch: int
    step: int
    best_auc: float
    failed_records: int


class Embedder(nn.Module):
    """Encodes all views of a batch in one forward pass per image size (DDP wants one pass per step)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """uint8 [N, 3, S, S] by name -> float32 [N, 192] by name."""
        embedded: dict[str, Tensor] = {}
        for size in sorted({images.shape[-1] for images in views.values()}):
            names = [name for name, images in views.items() if images.shape[-1] == size]
            rows = self.encoder(normalise(torch.cat([views[name] for name in names]), MEAN, STD)).float()
            embedded |= dict(zip(names, rows.chunk(len(names)), strict=True))
        return embedded


@dataclass
class Progress:
    """Where a run stands: the next step to do, and the best probe so far."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_auc: float = -math.inf
    epochs_without_gain: int = 0
    failed_records: int = 0


class Trainer:
    """Model, optimiser and scaler of one process."""

    def __init__(self, recipe: Recipe, group: Group) -> None:
        self.recipe, self.group = recipe, group
        torch.manual_seed(recipe.training.seed)
        self.encoder = create_encoder(any_size={recipe.views.size_px, recipe.views.local_size_px} != {224})
        if recipe.training.initialisation == "spectral":
            initialise_spectral(self.encoder, recipe.training.seed)
        if recipe.training.start_from:
            self.encoder.load_state_dict(load_encoder(recipe.training.start_from).state_dict())
        self.encoder.to(group.device)
        embedder = Embedder(self.encoder)
        self.model: nn.Module = DistributedDataParallel(embedder) if group.world > 1 else embedder
        groups = parameter_groups(self.encoder, recipe.optimisation.weight_decay)
        self.optimizer = torch.optim.AdamW(
            [{key: value for key, value in entry.items() if key != "names"} for entry in groups],
            lr=recipe.optimisation.lr,
        )
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=recipe.training.precision == "fp16")

    def state(self, progress: Progress) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(progress).copy(),
        }

    def restore(self, state: Mapping[str, Any]) -> Progress:
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return Progress(**state["progress"])

    def autocast(self) -> Any:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.recipe.training.precision)
        return nullcontext() if dtype is None else torch.autocast(self.group.device.type, dtype)

    def micro_step(self, batch: Batch, *, epoch: int, micro: int, last: bool) -> dict[str, float]:
        """Forward and backward of one micro-batch; gradients are averaged over ranks on the last one of a step."""
        loss_recipe, accumulation = self.recipe.loss, self.recipe.training.accumulation_steps
        views = {name: images.to(self.group.device, non_blocking=True) for name, images in batch.views.items()}
        count = len(next(iter(views.values())))
        generator = torch.Generator().manual_seed(_mix(self.recipe.training.seed, epoch, micro, self.group.rank))
        permutations = [draw_permutation(count, generator) for _ in ("real", "fake")]
        lazy = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if lazy else nullcontext():  # type: ignore[operator]
            with self.autocast():
                embedded = self.model(views)
            # The loss is computed in float32: float16 would round the negatives' logits.
            losses = code_loss(
                embedded,
                *permutations,
                temperature=loss_recipe.temperature,
                variant=loss_recipe.variant,
                terms=loss_recipe.terms,
            )
            self.scaler.scale(losses["total"] / accumulation).backward()
        return {name: loss.item() for name, loss in losses.items()}

    def update(self, *, good: bool) -> bool:
        """One optimiser step; False if it was left out because a loss (`good`) or a gradient of this step was no
        number.
        """
        if good and not self.scaler.is_enabled():  # the scaler looks at float16's gradients itself
            good = bool(
                torch.isfinite(
                    nn.utils.get_total_norm(
                        parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None
                    )
                )
            )
        if good:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return good

    def is_finite(self) -> bool:
        """Whether the encoder makes numbers of an image: weights that are numbers can overflow together."""
        pixels = torch.arange(3 * 224 * 224).remainder(251).to(torch.uint8).reshape(1, 3, 224, 224)
        mode = self.model.training
        self.model.eval()
        finite = bool(torch.isfinite(self.backbone().embed(pixels)).all())
        self.model.train(mode)
        return finite

    def backbone(self) -> Backbone:
        return Backbone("code", self.encoder, 224, MEAN, STD)


def fit(recipe: Recipe, run: Path, *, resume: bool = False, console: Console | None = None) -> FitResult:
    """Train as `recipe` says into the folder `run`.

    Raises RecipeError (the folder holds another run or none to resume, or there is no GPU), DataError (no usable data),
    TrainingDiverged.
    """
    console = console or Console(stderr=True)
    if recipe.training.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(["training.device = 'cuda': PyTorch finds no NVIDIA GPU here; leave it at auto, or say cpu"])
    with process_group(recipe.training.device) as group:
        folder = RunFolder(run, writes=group.is_main)
        if not resume:
            folder.begin(recipe)
        if group.is_main:
            console.print(f"# recipe of this run\n{recipe_to_toml(recipe)}", highlight=False, markup=False)
        trainer = Trainer(recipe, group)
        progress = trainer.restore(folder.load_checkpoint(group.device)) if resume else Progress()
        folder.forget_after(progress.step)
        train_source, validation = _open_data(recipe, console if group.is_main else None)
        try:
            with _stop_on_signal() as stopping:
                return _loop(trainer, folder, train_source, validation, progress, console, stopping)
        finally:
            folder.close()


def _open_data(recipe: Recipe, console: Console | None) -> tuple[Source, list[Labelled]]:
    data = recipe.data
    source = open_source(data.source, min_side_px=data.min_side_px, window=data.shuffle_window, console=console)
    if data.validation:
        held: Source = open_source(data.validation, min_side_px=data.min_side_px, console=console)
    else:
        source, held = source.split(data.validation_fraction)
    return source, limit_per_class(held.labelled(), recipe.validation.max_images_per_class)


def steps_per_epoch(recipe: Recipe, records: int, world: int) -> int:
    """The recipe's number, or once through the data (at least one step). Raises DataError if a batch does not fit even
    once.
    """
    if recipe.training.steps_per_epoch:
        return recipe.training.steps_per_epoch
    if records < 2:
        raise DataError(f"{records} records to train on: at least 2 are needed")
    return max(1, records // (recipe.training.batch_size * recipe.training.accumulation_steps * world))


def _loop(
    trainer: Trainer,
    folder: RunFolder,
    source: Source,
    validation: list[Labelled],
    progress: Progress,
    console: Console,
    stopping: threading.Event,
) -> FitResult:
    recipe, group = trainer.recipe, trainer.group
    training, accumulation = recipe.training, recipe.training.accumulation_steps
    steps = steps_per_epoch(recipe, len(source.order(0, training.seed)), group.world)
    epochs = recipe.optimisation.epochs
    sampler = StepSampler(
        training.batch_size,
        accumulation,
        steps,
        epochs,
        group.rank,
        group.world,
        progress.epoch,
        progress.step_in_epoch,
    )
    batches = make_batches(source, recipe, sampler, group.device)
    bad_steps = 0

    def result(status: str) -> FitResult:
        return FitResult(status, progress.epoch, progress.step, progress.best_auc, progress.failed_records)

    def save_interrupted() -> None:
        # From an encoder that has diverged there is nothing to go on: the checkpoint before stays.
        if trainer.is_finite() or not (folder.path / CHECKPOINT).exists():
            folder.save_checkpoint(trainer.state(progress))

    with StepProgress(console, total=epochs * steps, done=progress.step, enabled=group.is_main) as bar:
        while progress.epoch < epochs:
            if progress.epochs_without_gain >= recipe.validation.patience:
                return result("early_stop")  # also of a run that is resumed though it had ended so
            rate = learning_rate(progress.epoch, recipe.optimisation)
            for entry in trainer.optimizer.param_groups:
                entry["lr"] = rate
            trainer.model.train()
            while progress.step_in_epoch < steps:
                if group.any(stopping.is_set()):
                    save_interrupted()
                    return result("interrupted")
                started, waited, losses = time.perf_counter(), 0.0, []
                for index in range(accumulation):
                    asked = time.perf_counter()
                    try:
                        batch = next(batches)
                    except RuntimeError:
                        if not stopping.is_set():
                            raise
                        # The signal ended a data process that was just starting: later they leave it to this one.
                        save_interrupted()
                        return result("interrupted")
                    waited += time.perf_counter() - asked
                    folder.note_failed(batch.failed)
                    progress.failed_records += len(batch.failed)
                    micro = progress.step_in_epoch * accumulation + index
                    losses.append(
                        trainer.micro_step(batch, epoch=progress.epoch, micro=micro, last=index == accumulation - 1)
                    )
                terms = {name: sum(loss[name] for loss in losses) / accumulation for name in losses[0]}
                bad = not trainer.update(good=not group.any(not math.isfinite(terms["total"])))
                progress.step_in_epoch += 1
                progress.step += 1
                seconds = time.perf_counter() - started
                images = training.batch_size * accumulation * group.world * len(batch.views)
                speed = {"images_per_s": images / seconds, "waiting_for_data": waited / seconds}
                folder.log("step", progress.step, {"epoch": progress.epoch, "lr": rate, **terms, **speed})
                bar.step(progress.epoch, terms, speed)
                bad_steps = bad_steps + 1 if bad else 0
                if bad_steps >= training.max_bad_steps:
                    raise _diverged(folder, progress, f"the loss was no number for {bad_steps} steps in a row")
                if progress.step % training.checkpoint_every_steps == 0 and not bad and trainer.is_finite():
                    folder.save_checkpoint(trainer.state(progress))
            if group.any(not trainer.is_finite()):  # bad steps alone change no weight
                raise _diverged(folder, progress, NO_NUMBERS)
            progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            _validate(trainer, folder, validation, progress, bar)
            folder.save_checkpoint(trainer.state(progress))
    return result("finished")


def _diverged(folder: RunFolder, progress: Progress, what: str) -> TrainingDiverged:
    """The error with what to do next: `best` is named only where there is one."""
    best = folder.path / "best"
    hint = (
        f"; --set training.start_from={best} starts from the last encoder that was probed"
        if (best / ENCODER_FILE).exists()
        else ""
    )
    return TrainingDiverged(
        f"{what} (step {progress.step}): begin another run with a lower optimisation.lr, or "
        f"training.precision=bf16{hint}"
    )


def _keep_best(trainer: Trainer, folder: RunFolder) -> None:
    unfinished = folder.path / "best.partial"
    try:
        with replacing(folder.path / "best" / ENCODER_FILE, unfinished / ENCODER_FILE) as partial:
            save_encoder(trainer.encoder, partial.parent)
    finally:
        if unfinished.exists():
            unfinished.rmdir()


def _validate(
    trainer: Trainer, folder: RunFolder, images: list[Labelled], progress: Progress, bar: StepProgress
) -> None:
    """Probe at the end of an epoch where the recipe says so; keep the best encoder. Raises TrainingDiverged."""
    recipe, group = trainer.recipe.validation, trainer.group
    if progress.epoch % recipe.every_epochs and progress.epoch < trainer.recipe.optimisation.epochs:
        return
    auc, finite = math.nan, True
    if group.is_main and images:
        trainer.model.eval()
        embedded = embed_images(trainer.backbone(), images)
        finite = bool(np.isfinite(embedded.embeddings).all())
        auc = linear_probe(embedded) if finite else math.nan
    if group.any(not finite):
        raise _diverged(folder, progress, NO_NUMBERS)
    auc = group.broadcast(auc)
    if math.isnan(auc):
        # Nothing to judge by: the latest encoder is the one to keep.
        if group.is_main:
            _keep_best(trainer, folder)
        bar.note(f"epoch {progress.epoch}: no linear probe, too few validation images of both classes")
        return
    if auc > progress.best_auc:
        progress.best_auc, progress.epochs_without_gain = auc, 0
        if group.is_main:
            _keep_best(trainer, folder)
    else:
        progress.epochs_without_gain += 1
    folder.log("probe", progress.step, {"epoch": progress.epoch, "auc": auc, "best_auc": progress.best_auc})
    bar.note(f"epoch {progress.epoch}: linear probe AUC {auc:.4f} (best {progress.best_auc:.4f})")


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (SplitMix64 steps)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set: the step in progress ends, the checkpoint is written, `fit` returns."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
