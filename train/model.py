"""The encoder: timm's ViT-Tiny/16 from scratch, the CLS token after the final norm, 192 numbers, 5,524,416 parameters.

Weights travel as `encoder.safetensors` in timm's names (float16 or float32; computed in float32). Other timm models are
made here too: trained (`training.encoder`), and as the paper's baselines (`evaluate --backbone timm:<name>`). What is
served is the ViT-Tiny alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from train.hub import first_line, quiet_hub
from train.transforms.crops import center_crop
from triton_models.files import replacing
from triton_models.weights import ENCODER_FILE, ENCODER_NAME, MEAN, STD, WeightsError

OF_TIMM = "timm"  # the metadata of an encoder.safetensors that name another model
PROBED_PX = 224  # the central crop of every trained encoder, as served


def create_encoder(name: str = ENCODER_NAME, *, pretrained: bool = False, any_size: bool = False) -> nn.Module:
    """Float32 [N, 3, 224, 224], normalised -> [N, D] (192 of ViT-Tiny). `any_size` admits 96-pixel crops, of
    transformers by interpolating the position embeddings. Raises WeightsError for an unknown name or when its weights
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
            try:
                return timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=any_size)
            except TypeError:  # convolutions take any size by themselves
                return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        hint = "is the hub reachable? without pretrained weights it needs none" if pretrained else "choose another"
        raise WeightsError(
            f"timm:{name} cannot be made ({type(error).__name__}: {first_line(error)[:120]}); {hint}"
        ) from error


def normalise(images: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """uint8 [N, 3, H, W] -> float32, as ToTensor + Normalize: (x / 255 - mean) / std."""
    shape = (1, 3, 1, 1)
    center = torch.tensor(mean, device=images.device).view(shape)
    spread = torch.tensor(std, device=images.device).view(shape)
    # In place and on whole planes: views come channels last, where torch broadcasts ten times more slowly.
    return images.contiguous().to(torch.float32, copy=True).div_(255).sub_(center).div_(spread)


def save_encoder(
    encoder: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, *, name: str = ENCODER_NAME
) -> None:
    """Write `encoder.safetensors` into `folder`, which is made if need be; one that stands there is replaced whole."""
    with replacing(folder / ENCODER_FILE) as partial:
        state = {key: value.detach().to("cpu", _stored(value, dtype)) for key, value in encoder.state_dict().items()}
        metadata = None if name == ENCODER_NAME else {OF_TIMM: name}
        save_file({key: value.contiguous() for key, value in state.items()}, partial, metadata)


def _stored(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype  # counters of batch norms stay whole numbers


def load_encoder(folder: str | Path, name: str = ENCODER_NAME, *, any_size: bool = False) -> nn.Module:
    """The encoder of a weights folder, float32, in evaluation mode. Raises WeightsError naming what is wrong, also
    where it is another model than `name`.
    """
    path = Path(folder) / ENCODER_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path} is not there: give a folder made by `train.main export`, `heads` or `import-release`"
        )
    if (found := encoder_name(folder)) != name:
        served = f"; measure it by `evaluate --backbone run:{folder} --fit-on DIR`" if name == ENCODER_NAME else ""
        raise WeightsError(f"{path} is a {found}, not the {name} that is wanted here{served}")
    encoder = create_encoder(name, any_size=any_size)
    try:
        encoder.load_state_dict(
            {key: value.to(_stored(value, torch.float32)) for key, value in load_file(path).items()}
        )
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path} holds no {name} in timm's names: {str(error).splitlines()[0]}") from error
    return encoder.eval()


def encoder_name(folder: str | Path) -> str:
    """Which of timm's models an encoder is. Raises WeightsError."""
    path = Path(folder) / ENCODER_FILE
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get(OF_TIMM, ENCODER_NAME))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} holds no {ENCODER_NAME} in timm's names: {str(error).splitlines()[0]}") from error


@dataclass
class Backbone:
    """A frozen feature extractor (`train.embed.Embedder`) on the central crop of `size_px`."""

    name: str
    module: nn.Module
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def view(self, picture: Image.Image) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return center_crop(picture, self.size_px)

    def digest(self) -> bytes:
        """Of all that decides its embeddings."""
        found = hashlib.sha256(repr((self.name, self.size_px, self.mean, self.std)).encode())
        for tensor in self.module.state_dict().values():
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.digest()

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


def trained_backbone(folder: str | Path) -> Backbone:
    """The encoder of a run, whatever it is, on the crop and normalisation that it was trained with. Raises
    WeightsError.
    """
    name = encoder_name(folder) if (Path(folder) / ENCODER_FILE).is_file() else ENCODER_NAME
    module = load_encoder(folder, name, any_size=True)
    return Backbone(f"run:{folder}", module.to(best_device()), PROBED_PX, *pixel_scale(name, module))


def pixel_scale(name: str, module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of the pixels that a model is trained on: timm's for it, ImageNet's for ViT-Tiny, as
    CoDE has it.
    """
    if name == ENCODER_NAME:
        return MEAN, STD
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    return tuple(config["mean"]), tuple(config["std"])


def timm_backbone(name: str, *, pretrained: bool = True) -> Backbone:
    """Any timm model with its own size and normalisation. Raises WeightsError for an unknown name or when its weights
    cannot be had.
    """
    module = create_encoder(name, pretrained=pretrained).eval().to(best_device())
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    return Backbone(f"timm:{name}", module, int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"]))
