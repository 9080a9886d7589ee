"""Published detectors that keep their own head and preprocessing, as detectors' folders: to measure, and to serve.

    python -m train.main import-detector community-forensics model.safetensors detectors/commfor
    python -m train.main evaluate --detector detectors/commfor --data images/ --out results/commfor

Each is a backbone of timm's and one number after it, P(fake) by a sigmoid: that last layer becomes the head `linear`.
Names of tensors, crops and normalisation are those of the authors' code:

    cnndetection          Wang et al., "CNN-generated images are surprisingly easy to spot", CVPR 2020 (demo_dir.py)
    univfd                Ojha et al., "Towards universal fake image detectors", CVPR 2023 (validate.py)
    community-forensics   Park and Owens, "Community Forensics", CVPR 2025 (models.py)
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor, nn

from train.data.images import DataError
from train.detector import BACKBONE_FILE, CARD, Seen, name_after, put, toml, write_expected, write_graph
from train.hub import first_line, quiet_hub
from triton_models import detector
from triton_models.detector import SPEC_FILE
from triton_models.weights import HEADS_FILE, MEAN, STD, WeightsError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
State = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """`model` of timm, whose output has `width` numbers; `head`: the last layer's name in the published file, where
    `prefix` stands before the backbone's names. `apart`: the file has the head alone, the backbone is CLIP's.
    """

    model: str
    width: int
    head: str
    view: dict[str, Any]
    about: str
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    prefix: str = ""
    apart: bool = False


KINDS = {
    "cnndetection": Published(
        "resnet50",
        2048,
        "fc.",
        {"crop": 224},
        "CNNDetection, ResNet-50 on ProGAN; the authors measure whole images, this is their --crop 224",
    ),
    "univfd": Published(
        "vit_large_patch14_clip_quickgelu_224.openai",
        768,
        "",
        {"crop": 224},
        "UnivFD, a linear layer on CLIP ViT-L/14",
        CLIP_MEAN,
        CLIP_STD,
        apart=True,
    ),
    "community-forensics": Published(
        "vit_small_patch16_384.augreg_in21k_ft_in1k",
        384,
        "head.",
        {"resize": {"shorter": 440}, "interpolation": "bilinear", "crop": 384},
        "Community Forensics, ViT-S/16 at 384 px",
        prefix="vit.",
    ),
}


def import_detector(kind: str, source: str, out: Path, backbone: str = "") -> dict[str, Any]:
    """Write the published detector `kind` as the folder `out`; returns its card.

    `source`: a local file (.pth, .pt, .safetensors) or hf://OWNER/NAME/FILE. `backbone`: of `univfd`, CLIP's image
    tower in timm's names as a local file or hf://…; empty: timm's pretrained weights, from the hub. Raises
    WeightsError, DataError.
    """
    if kind not in KINDS:
        raise WeightsError(f"{kind!r} is none of {', '.join(KINDS)}")
    one = KINDS[kind]
    if backbone and not one.apart:
        raise WeightsError(f"--backbone: the file of {kind} has its backbone")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty: name a new folder")
    file = fetched(source)
    state = read_state(file)
    module, head = _parts(one, state, str(file), backbone)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "detector"
        made.mkdir()
        card = _write(one, module, head, made, name_after(out.name))
        card |= {"kind": kind, "source": source, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        (made / CARD).write_text(json.dumps(card, indent=2) + "\n")
        put(made, out)
    return card


def fetched(source: str) -> Path:
    """A local file, or one of the hub (hf://OWNER/NAME/FILE). Raises WeightsError."""
    if not source.startswith("hf://"):
        if not Path(source).is_file():
            raise WeightsError(f"{source} is not there: a file, or hf://OWNER/NAME/FILE")
        return Path(source)
    parts = source.removeprefix("hf://").split("/", 2)
    if len(parts) < 3:
        raise WeightsError(f"{source}: hf://OWNER/NAME/FILE is expected")
    try:
        with quiet_hub():
            return Path(hf_hub_download(f"{parts[0]}/{parts[1]}", parts[2]))
    except (OSError, ValueError) as error:  # the hub's own errors are of these
        raise WeightsError(f"{source} cannot be had ({first_line(error)[:160]}): give a local file") from error


def read_state(path: Path) -> State:
    """The tensors of a published file, by name: itself, or what stands in it under `model` or `state_dict`. Nothing in
    a pickle runs (torch's `weights_only`). Raises WeightsError.
    """
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: no file of tensors alone ({first_line(error)[:160]})") from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path}: no named tensors in it")
    return {str(name).removeprefix("module."): value.float() for name, value in found.items()}


def _parts(one: Published, state: State, file: str, backbone: str) -> tuple[nn.Module, State]:
    """The backbone with its weights, and `weight` [1, D] and `bias` [1] of the last layer."""
    state = {name.removeprefix(one.prefix): value for name, value in state.items()}
    names = {f"{one.head}weight", f"{one.head}bias"}
    head = {name.removeprefix(one.head): state.pop(name) for name in names if name in state}
    shapes = {name: tuple(value.shape) for name, value in head.items()}
    if shapes != {"weight": (1, one.width), "bias": (1,)}:
        raise WeightsError(
            f"{file}: {one.head}weight [1, {one.width}] and {one.head}bias [1] are expected, not {shapes}"
        )
    if one.apart:
        if state:
            raise WeightsError(f"{file}: {next(iter(state))} is not expected beside the head")
        if not backbone:
            return _made(one, pretrained=True), head
        state, file = read_state(fetched(backbone)), backbone
    module = _made(one, pretrained=False)
    wanted = module.state_dict()
    state |= {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}  # counts, not used
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{file}: not the tensors of {one.model}: {str(error).splitlines()[1].strip()[:160]}"
        ) from error
    return module, head


def _made(one: Published, *, pretrained: bool) -> nn.Module:
    outputs = one.width if one.apart else 0  # CLIP's projection is timm's last layer
    try:
        with quiet_hub():
            return timm.create_model(one.model, pretrained=pretrained, num_classes=outputs).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(
            f"timm:{one.model} cannot be had ({first_line(error)[:120]}): give its weights as a file, --backbone FILE"
        ) from error


def _write(one: Published, module: nn.Module, head: State, made: Path, name: str) -> dict[str, Any]:
    side = int(one.view["crop"])
    write_graph(module, (side, side), made / BACKBONE_FILE)
    arrays = {"linear.coef": head["weight"][0].numpy(), "linear.intercept": head["bias"].numpy()}
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, made / HEADS_FILE)
    with (made / BACKBONE_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    body: dict[str, Any] = {"kind": "onnx", "file": BACKBONE_FILE, "sha256": digest, "output": "embedding"}
    body |= {"mean": list(one.mean), "std": list(one.std)}
    spec = {"name": name, "licence": "as of the published weights", "heads": ["linear"]}
    (made / SPEC_FILE).write_text(toml(spec | {"view": one.view, "backbone": body}))
    loaded = detector.load(made)
    read = loaded.spec
    write_expected(loaded, Seen(made / BACKBONE_FILE, read.view, read.mean, read.std, read.output).embed)
    fitted = {"weights": {"unlisted": "what the authors fitted on"}}
    return {"name": name, "model_version": loaded.version, "about": one.about, "fitted_on": fitted}
