"""The training loop: steps, checkpoints, validation by a linear probe, early stop. Read it with train/trainer.py.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console

from train import fitted
from train.beginning import begun_world, group_for, open_data, require, same_steps
from train.collapse import Spread, has_collapsed, plateau, spread
from train.data.images import DataError
from train.data.loader import Batch, StepSampler, make_batches
from train.data.records import Labelled, Source
from train.embed import Probe, embed_images, joined, linear_probe
from train.intervals import auc_difference
from train.model import save_encoder
from train.preflight import check
from train.progress import StepProgress
from train.recipe import Recipe, recipe_to_toml
from train.run_folder import CHECKPOINT, RunFolder, naming
from train.schedule import learning_rate
from train.trainer import Progress, Trainer
from triton_models.weights import ENCODER_FILE

NO_NUMBERS = "the encoder's embeddings are no numbers"


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is no number, or the encoder's embeddings are none."""


class TrainingCollapsed(TrainingDiverged):
    """The encoder gives all images nearly the same embedding, and has for several probes."""


class _Interrupted(Exception):
    """A rank was told to stop; all of them have agreed to."""


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
    initial_auc: float = math.nan  # of the probe before training

    @property
    def has_learnt(self) -> bool:
        """Whether a probe was better than that of the initialisation (True where there was none)."""
        return not self.best_auc <= self.initial_auc


def fit(
    recipe: Recipe, run: Path, *, resume: bool = False, adapt: bool = False, console: Console | None = None
) -> FitResult:
    """Train as `recipe` says into the folder `run`. `adapt` admits another number of processes than the run was begun
    with, by as many more or fewer accumulation steps.

    Raises RecipeError (the folder holds another run or none to resume, there is no GPU, or too little of what
    train/preflight.py reckons with), DataError (no usable data), TrainingDiverged, PeerFailed.
    """
    console = console or Console(stderr=True)
    with group_for(recipe) as group:
        folder = RunFolder(run, writes=group.is_main)
        if not resume:
            with group.main_first():
                folder.begin(recipe)
        state = folder.load_checkpoint(group.device) if resume else None
        begun_with = begun_world(state, group)
        if group.is_main:
            console.print(f"# recipe of this run\n{recipe_to_toml(recipe)}", highlight=False, markup=False)
        recipe = same_steps(recipe, begun_with, group, adapt=adapt)
        source, validation = open_data(recipe, group, console)
        require(check(recipe, run, source, group), group, console, all_of_them=False)
        trainer = Trainer(recipe, group, begun_with)
        progress = Progress() if state is None else trainer.restore(state)
        folder.forget_after(progress.step)
        if group.is_main:
            fitted.save(run, fitted.of_training(source, validation))
        steps = steps_per_epoch(recipe, len(source.order(0, recipe.training.seed)), group.world)
        total = recipe.optimisation.epochs * steps
        try:
            with (
                _stop_on_signal() as stopping,
                StepProgress(console, total=total, done=progress.step, enabled=group.is_main) as bar,
            ):
                return Loop(trainer, folder, source, validation, progress, bar, stopping).run(steps)
        finally:
            folder.close()


def steps_per_epoch(recipe: Recipe, records: int, world: int) -> int:
    """The recipe's number, or once through the data (at least one step). Raises DataError if a batch does not fit even
    once.
    """
    if recipe.training.steps_per_epoch:
        return recipe.training.steps_per_epoch
    if records < 2:
        raise DataError(f"{records} records to train on: at least 2 are needed")
    return max(1, records // (recipe.training.batch_size * recipe.training.accumulation_steps * world))


class Loop:
    """A run under way on this rank: epochs of steps, each epoch ended by a probe and a checkpoint."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        source: Source,
        validation: list[Labelled],
        progress: Progress,
        bar: StepProgress,
        stopping: threading.Event,
    ) -> None:
        self.trainer, self.folder, self.source, self.validation = trainer, folder, source, validation
        self.progress, self.bar, self.stopping = progress, bar, stopping
        self.recipe, self.group = trainer.recipe, trainer.group
        self._bad_in_a_row = 0
        self._epoch_losses: list[float] = []
        self._first_probe: Probe | None = None

    def run(self, steps: int) -> FitResult:
        """All epochs of `steps` steps, from where the run stands. Raises TrainingDiverged."""
        recipe, group, progress = self.recipe, self.group, self.progress
        epochs = recipe.optimisation.epochs
        sampler = StepSampler(
            recipe.training.batch_size,
            recipe.training.accumulation_steps,
            steps,
            epochs,
            group.rank,
            group.world,
            progress.epoch,
            progress.step_in_epoch,
        )
        batches = make_batches(self.source, recipe, sampler, group.device)
        if progress.step == 0:
            self._validate()  # what there is to beat
        while progress.epoch < epochs:
            if progress.epochs_without_gain >= recipe.validation.patience:
                return self._result("early_stop")  # also of a run that is resumed though it had ended so
            self.trainer.model.train()
            self._epoch_losses = []
            try:
                while progress.step_in_epoch < steps:
                    part = progress.step_in_epoch / steps if recipe.optimisation.per_step else 0.0
                    self._step(batches, learning_rate(progress.epoch + part, recipe.optimisation))
            except _Interrupted:
                # From an encoder that has diverged there is nothing to go on: the checkpoint before stays.
                if self.trainer.is_finite() or not (self.folder.path / CHECKPOINT).exists():
                    self._save()
                return self._result("interrupted")
            if group.any(not self.trainer.is_finite()):  # bad steps alone change no weight
                raise self._diverged(NO_NUMBERS)
            progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
            self._validate()
            self._save()
        return self._result("finished")

    def _step(self, batches: Iterator[Batch], rate: float) -> None:
        """One optimiser step over the micro-batches of this rank. Raises _Interrupted, TrainingDiverged."""
        training, progress = self.recipe.training, self.progress
        accumulation = training.accumulation_steps
        for entry in self.trainer.optimizer.param_groups:
            entry["lr"] = rate
        started, waited, images, losses = time.perf_counter(), 0.0, 0, []
        for index in range(accumulation):
            asked = time.perf_counter()
            batch = self._next(batches)
            waited += time.perf_counter() - asked
            micro = progress.step_in_epoch * accumulation + index
            losses.append(
                self.trainer.micro_step(batch, epoch=progress.epoch, micro=micro, last=index == accumulation - 1)
            )
            images += training.batch_size * self.group.world * len(batch.views)
        terms = {name: sum(loss[name] for loss in losses) / accumulation for name in losses[0]}
        good = self.trainer.update(good=not self.group.any(not math.isfinite(terms["total"])))
        progress.step_in_epoch += 1
        progress.step += 1
        progress.skipped_steps += not good
        self._epoch_losses.append(terms["total"])
        seconds = time.perf_counter() - started
        speed = {"images_per_s": images / seconds, "waiting_for_data": waited / seconds}
        state = {"epoch": progress.epoch, "lr": rate, "skipped_steps": progress.skipped_steps}
        if self.trainer.scaler.is_enabled():
            state["loss_scale"] = self.trainer.scaler.get_scale()
        self.folder.log("step", progress.step, {**state, **terms, **speed})
        self.bar.step(progress.epoch, terms, speed)
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + 1
        if self._bad_in_a_row >= training.max_bad_steps:
            raise self._diverged(f"the loss or its gradient was no number for {self._bad_in_a_row} steps in a row")
        if progress.step % training.checkpoint_every_steps == 0 and good and self.trainer.is_finite():
            self._save()

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch. Raises _Interrupted on all ranks when one of them was told to stop: a rank that left
        alone would leave the others waiting for its gradients.
        """
        batch = None
        try:
            batch = next(batches)
        except RuntimeError:
            # A signal that came while a data process was just starting has ended it: later they leave it to this one.
            if not self.stopping.is_set():
                raise
        if self.group.any(batch is None or self.stopping.is_set()) or batch is None:
            self.trainer.drop_gradients()
            raise _Interrupted
        self.folder.note_failed(batch.failed)
        self.progress.failed_records += len(batch.failed)
        return batch

    def _save(self) -> None:
        self.folder.save_checkpoint(self.trainer.state(self.progress))

    def _result(self, status: str) -> FitResult:
        progress = self.progress
        return FitResult(
            status,
            progress.epoch,
            progress.step,
            progress.best_auc,
            progress.failed_records,
            progress.initial_auc,
        )

    def _diverged(self, what: str) -> TrainingDiverged:
        """The error with what to do next: `best` is named only where it is more than the initialisation."""
        best = self.folder.path / "best"
        hint = (
            f"; --set training.start_from={best} starts from the best encoder that was probed"
            if (best / ENCODER_FILE).exists() and self._result("diverged").has_learnt
            else ""
        )
        return TrainingDiverged(
            f"{what} (step {self.progress.step}): begin another run with a lower optimisation.lr, or "
            f"training.precision=bf16{hint}"
        )

    def _validate(self) -> None:
        """Probe before the first step, and at the end of an epoch where the recipe says so; keep the best encoder.

        Raises TrainingDiverged, TrainingCollapsed.
        """
        recipe, group, progress = self.recipe.validation, self.group, self.progress
        if progress.epoch % recipe.every_epochs and progress.epoch < self.recipe.optimisation.epochs:
            return
        probe, found, finite = None, Spread(math.nan, math.nan), True
        if self.validation:
            self.trainer.model.eval()
            share = embed_images(self.trainer.backbone(), self.validation[group.rank :: group.world])
            shares = group.gather_objects(share)
        if group.is_main and self.validation:
            embedded = joined(shares)
            finite = bool(np.isfinite(embedded.embeddings).all())
            if finite:
                probe, found = linear_probe(embedded), spread(embedded.embeddings)
        if group.any(not finite):
            raise self._diverged(NO_NUMBERS)
        auc = group.broadcast(probe.auc if probe is not None else math.nan)
        # One that tells more apart than any before it is passing over the plateau.
        rising = progress.step > 0 and auc > progress.best_auc
        self._guard(Spread(group.broadcast(found.cosine), found.rank), rising=rising)
        if math.isnan(auc):
            self._keep_best()  # nothing to judge by: the latest encoder is the one to keep
            self.bar.note(f"epoch {progress.epoch}: no linear probe, too few validation images of both classes")
            return
        if progress.step == 0 or auc > progress.best_auc:  # a run stopped before its first step is probed again
            progress.best_auc, progress.epochs_without_gain = auc, 0
            self._keep_best()
        else:
            progress.epochs_without_gain += 1
        line = {"epoch": progress.epoch, "auc": auc, "best_auc": progress.best_auc}
        said = f"epoch {progress.epoch}: linear probe AUC {auc:.4f} (best {progress.best_auc:.4f})"
        if progress.step == 0:
            progress.initial_auc, self._first_probe = auc, probe
            said = f"before training: linear probe AUC {auc:.4f}"
        elif (first := self._first_probe) is not None and probe is not None and probe.is_paired_with(first):
            by, (low, high), _ = auc_difference(probe.labels, first.scores, probe.scores, probe.photographs)
            line |= {"gain": by, "gain_low": low, "gain_high": high}
            interval = f" [{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else " (too few photographs for an interval)"
            said += f", {by:+.4f}{interval} on the initialisation"
        line |= {"cosine": found.cosine, "rank": found.rank}
        self.folder.log("probe", progress.step, {name: value for name, value in line.items() if math.isfinite(value)})
        self.bar.note(said)

    def _guard(self, found: Spread, *, rising: bool) -> None:
        """Warn of an encoder that has collapsed, by name, but for one whose probe is `rising`. Raises TrainingCollapsed
        where it stays so.
        """
        progress, most = self.progress, self.recipe.validation.max_collapsed
        negatives = self.recipe.training.batch_size
        loss = float(np.mean(self._epoch_losses)) if self._epoch_losses else 0.0
        if rising or not has_collapsed(loss, negatives, found):
            progress.collapsed_probes = 0
            return
        progress.collapsed_probes += 1
        what = (
            f"the encoder has collapsed: the loss is on its plateau ({loss:.3f} of {plateau(negatives):.3f}) and the "
            f"mean cosine between images is {found.cosine:.3f}"
        )
        if progress.collapsed_probes >= most:
            raise TrainingCollapsed(
                f"{what}, for {most} probes (step {progress.step}): begin another run with a lower optimisation.lr, a "
                "larger training.batch_size, or training.initialisation=spectral"
            )
        self.bar.note(f"epoch {progress.epoch}: {what}; the run ends after {most} such probes in a row")

    def _keep_best(self) -> None:
        if self.group.is_main:
            with naming(self.folder.path / "best" / ENCODER_FILE):
                save_encoder(self.trainer.encoder, self.folder.path / "best", name=self.recipe.training.encoder)


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
