"""One process's model, optimiser and gradient scaler: a step of training, and all of it as a checkpoint's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.data.loader import Batch
from train.distributed import Group
from train.losses import code_loss, draw_permutation
from train.model import PROBED_PX, Backbone, create_encoder, load_encoder, normalise, pixel_scale
from train.recipe import Recipe, RecipeError
from train.schedule import parameter_groups
from train.spectral import initialise_spectral
from triton_models.weights import ENCODER_NAME


class Embedder(nn.Module):
    """Encodes all views of a batch in one forward pass per image size (DDP wants one pass per step)."""

    def __init__(self, encoder: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """uint8 [N, 3, S, S] by name -> float32 [N, D] by name."""
        embedded: dict[str, Tensor] = {}
        for size in sorted({images.shape[-1] for images in views.values()}):
            names = [name for name, images in views.items() if images.shape[-1] == size]
            rows = self.encoder(normalise(torch.cat([views[name] for name in names]), self.mean, self.std)).float()
            embedded |= dict(zip(names, rows.chunk(len(names)), strict=True))
        return embedded


def precision_on(device: torch.device, wanted: str) -> str:
    """`auto` is bf16 where the device multiplies in it, else fp32; anything else is itself."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32"


@dataclass
class Progress:
    """Where a run stands: the next step to do, and the best probe so far."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_auc: float = -math.inf
    epochs_without_gain: int = 0
    failed_records: int = 0
    skipped_steps: int = 0  # whose loss or gradient was no number
    initial_auc: float = math.nan  # of the probe before the first step
    collapsed_probes: int = 0  # in a row


class Trainer:
    """Model, optimiser and scaler of one process. `begun_with`: processes that the run was begun with."""

    def __init__(self, recipe: Recipe, group: Group, begun_with: int = 0) -> None:
        self.recipe, self.group, self.begun_with = recipe, group, begun_with or group.world
        torch.manual_seed(recipe.training.seed)
        self.encoder = _first_encoder(recipe)
        self.mean, self.std = pixel_scale(recipe.training.encoder, self.encoder)
        self.encoder.to(group.device)
        embedder = Embedder(self.encoder, self.mean, self.std)
        self.model: nn.Module = DistributedDataParallel(embedder) if group.world > 1 else embedder
        groups = parameter_groups(self.encoder, recipe.optimisation.weight_decay)
        self.optimizer = torch.optim.AdamW(
            [{key: value for key, value in entry.items() if key != "names"} for entry in groups],
            lr=recipe.optimisation.lr,
            fused=True,  # on a CPU the plain one is 3 times slower, and 20 times where second moments are denormal
        )
        self.precision = precision_on(group.device, recipe.training.precision)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=self.precision == "fp16")

    def state(self, progress: Progress) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": vars(progress).copy(),
            "world": self.begun_with,
        }

    def restore(self, state: Mapping[str, Any]) -> Progress:
        """Go on from a checkpoint."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return Progress(**state["progress"])

    def autocast(self) -> Any:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.group.device.type, dtype)

    def micro_step(self, batch: Batch, *, epoch: int, micro: int, last: bool) -> dict[str, float]:
        """Forward and backward of one micro-batch; gradients are averaged over ranks on the last one of a step."""
        loss_recipe, accumulation = self.recipe.loss, self.recipe.training.accumulation_steps
        views = {name: images.to(self.group.device, non_blocking=True) for name, images in batch.views.items()}
        count = len(next(iter(views.values())))
        share = micro * self.group.world + self.group.rank  # the same draws for the same records on any number of ranks
        generator = torch.Generator().manual_seed(_mix(self.recipe.training.seed, epoch, share, 0))
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
            scaled: Tensor = self.scaler.scale(losses["total"] / accumulation)
            torch.autograd.backward(scaled)
        return {name: loss.item() for name, loss in losses.items()}

    def update(self, *, good: bool) -> bool:
        """One optimiser step; False if it was left out because a loss (`good`) or a gradient of this step was no
        number: with float16 also where the scale was too large, which is then halved.
        """
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]
        good = good and bool(torch.isfinite(nn.utils.get_total_norm(gradients)))
        if good:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return good

    def drop_gradients(self) -> None:
        """Forget what the micro-batches of a step that is not finished have added up."""
        self.optimizer.zero_grad(set_to_none=True)

    def is_finite(self) -> bool:
        """Whether the encoder makes numbers of an image: weights that are numbers can overflow together."""
        pixels = torch.arange(3 * 224 * 224).remainder(251).to(torch.uint8).reshape(1, 3, 224, 224)
        mode = self.model.training
        self.model.eval()
        finite = bool(torch.isfinite(self.backbone().embed(pixels)).all())
        self.model.train(mode)
        return finite

    def backbone(self) -> Backbone:
        return Backbone("code", self.encoder, PROBED_PX, self.mean, self.std)


def _first_encoder(recipe: Recipe) -> nn.Module:
    """As the recipe begins: from scratch, pretrained, or from a run. Raises WeightsError, RecipeError."""
    training = recipe.training
    sizes = {recipe.views.size_px, recipe.views.local_size_px}
    any_size = training.encoder != ENCODER_NAME or sizes != {PROBED_PX}
    if training.start_from:
        return load_encoder(training.start_from, training.encoder, any_size=any_size).train()
    if training.initialisation == "spectral" and training.encoder != ENCODER_NAME:
        raise RecipeError([f"training.initialisation = 'spectral': of {ENCODER_NAME} only, take timm or pretrained"])
    encoder = create_encoder(training.encoder, pretrained=training.initialisation == "pretrained", any_size=any_size)
    if training.initialisation == "spectral":
        initialise_spectral(encoder, training.seed)
    return encoder


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (SplitMix64 steps)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
