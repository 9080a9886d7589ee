"""The encoder: timm's ViT-Tiny/16 from scratch, the CLS token after the final norm, 192 numbers, 5,524,416 parameters.

Weights travel as `encoder.safetensors` in timm's names (float16 or float32; computed in float32). Other timm backbones
are made here too, for the paper's baselines (`evaluate --backbone timm:<name>`).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from train.hub import first_line, quiet_hub
from triton_models.files import replacing
from triton_models.weights import ENCODER_FILE, ENCODER_NAME, MEAN, STD, WeightsError


def create_encoder(*, any_size: bool = False) -> nn.Module:
    """Float32 [N, 3, 224, 224], ImageNet-normalised -> [N, 192]. `any_size` admits 96-pixel crops by interpolating the
    position embeddings.
    """
    return timm.create_model(ENCODER_NAME, pretrained=False, num_classes=0, dynamic_img_size=any_size)


def normalise(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """uint8 [N, 3, H, W] -> float32, as ToTensor + Normalize: (x / 255 - mean) / std."""
    shape = (1, 3, 1, 1)
    center = torch.tensor(mean, device=images.device).view(shape)
    spread = torch.tensor(std, device=images.device).view(shape)
    # In place and on whole planes: views come channels last, where torch broadcasts ten times more slowly.
    return images.contiguous().to(torch.float32, copy=True).div_(255).sub_(center).div_(spread)


def save_encoder(encoder: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `encoder.safetensors` into `folder`, which is made if need be; one that stands there is replaced whole."""
    with replacing(folder / ENCODER_FILE) as partial:
        save_file(
            {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in encoder.state_dict().items()},
            partial,
        )


def load_encoder(folder: str | Path) -> nn.Module:
    """The encoder of a weights folder, float32, in evaluation mode. Raises WeightsError naming what is wrong."""
    path = Path(folder) / ENCODER_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path} is not there: give a folder made by `train.main export`, `heads` or `import-release`"
        )
    encoder = create_encoder()
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
        encoder.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path} holds no {ENCODER_NAME} in timm's names: {str(error).splitlines()[0]}") from error
    return encoder.eval()


@dataclass
class Backbone:
    """A frozen feature extractor: `embed` maps uint8 [N, 3, S, S] to float32 [N, D]."""

    name: str
    module: nn.Module
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        device = next(self.module.parameters()).device
        embedded: Tensor = self.module(normalise(images.to(device), self.mean, self.std))
        return embedded.float().cpu()


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def code_backbone(folder: str | Path) -> Backbone:
    """The encoder of a weights folder. Raises WeightsError."""
    return Backbone(f"code:{Path(folder).name}", load_encoder(folder).to(best_device()), 224, MEAN, STD)


def timm_backbone(name: str, *, pretrained: bool = True) -> Backbone:
    """Any timm model with its own size and normalisation. Raises WeightsError for an unknown name or when its weights
    cannot be had.
    """
    if ":" not in name and not timm.is_model(name):  # hf-hub:OWNER/NAME is looked up by timm itself
        near = get_close_matches(name, timm.list_models(), n=3)
        raise WeightsError(
            f"timm:{name}: timm has no such model"
            + (f"; near it: {', '.join(near)}" if near else "; timm.list_models() names all")
        )
    try:
        with quiet_hub():
            module = timm.create_model(name, pretrained=pretrained, num_classes=0).eval().to(best_device())
    except (RuntimeError, ValueError, OSError) as error:
        hint = "is the hub reachable? --no-pretrained measures it untrained" if pretrained else "choose another model"
        raise WeightsError(
            f"timm:{name} cannot be made ({type(error).__name__}: {first_line(error)[:120]}); {hint}"
        ) from error
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    return Backbone(f"timm:{name}", module, int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"]))
