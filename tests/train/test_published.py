"""Published detectors as folders: random weights of the right names and shapes, since the real files are on hubs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms
from typer.testing import CliRunner

from train import published
from train.detector_scores import open_detector
from train.main import app
from triton_models import detector
from triton_models.weights import MEAN, STD, WeightsError

pytestmark = pytest.mark.slow

Whole = tuple[list[str], nn.Module, transforms.Compose]


def finish(module: nn.Module) -> nn.Module:
    """Statistics of batch norms and a last layer that are not those of a fresh model."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
    return module.eval()


def cnndetection(folder: Path) -> Whole:
    """As its authors save it: under `model`, beside the optimiser's state."""
    module = finish(timm.create_model("resnet50", num_classes=1))
    torch.save({"model": module.state_dict(), "optimizer": {"state": {}}, "total_steps": 3}, folder / "blur.pth")
    seen = [transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return ["cnndetection", str(folder / "blur.pth")], module, transforms.Compose(seen)


def community_forensics(folder: Path) -> Whole:
    """`vit.` before every name."""
    module = finish(timm.create_model("vit_small_patch16_384", num_classes=1))
    with torch.no_grad():
        module.head.weight.normal_(0, 0.1)
    save_file({f"vit.{name}": value for name, value in module.state_dict().items()}, folder / "model.safetensors")
    seen = [transforms.Resize(440), transforms.CenterCrop(384), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return ["community-forensics", str(folder / "model.safetensors")], module, transforms.Compose(seen)


def univfd(folder: Path) -> Whole:
    """The layer alone, and the tower in a file of its own. ViT-L/14 has 304 million parameters: a smaller one here."""
    tower = finish(timm.create_model("vit_tiny_patch16_224", num_classes=768))
    layer = nn.Linear(768, 1)
    torch.save(layer.state_dict(), folder / "fc_weights.pth")
    save_file(tower.state_dict(), folder / "clip.safetensors")
    mean, std = published.CLIP_MEAN, published.CLIP_STD
    seen = [transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(mean, std)]
    words = ["univfd", str(folder / "fc_weights.pth"), "--backbone", str(folder / "clip.safetensors")]
    return words, nn.Sequential(tower, layer).eval(), transforms.Compose(seen)


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """For UnivFD, see there."""
    one = replace(published.KINDS["univfd"], model="vit_tiny_patch16_224")
    monkeypatch.setitem(published.KINDS, "univfd", one)


@pytest.mark.parametrize("write", [cnndetection, community_forensics, univfd])
def test_a_folder_says_what_the_published_model_says(write: Callable[[Path], Whole], tmp_path: Path) -> None:
    """torchvision's preprocessing and the whole model with its own head, against view, graph and the head `linear`."""
    words, module, preprocess = write(tmp_path)
    kind, source, *rest = words
    result = CliRunner().invoke(app, ["import-detector", kind, source, str(tmp_path / "Made"), *rest])
    assert result.exit_code == 0, result.output
    embedder, heads = open_detector(tmp_path / "Made")
    assert heads.names == ("linear",) and heads.loaded.spec.name == "made"
    pictures = [Image.fromarray(picture) for picture in detector.pictures()]
    with torch.inference_mode():
        expected = torch.sigmoid(module(torch.stack([preprocess(picture) for picture in pictures])))[:, 0].numpy()
    views = np.stack([embedder.view(picture) for picture in pictures])
    scores = heads.scores(embedder.embed(torch.from_numpy(views).permute(0, 3, 1, 2)).numpy())[:, 0]
    assert np.ptp(expected) > 1e-4
    assert scores == pytest.approx(expected, abs=1e-4)
    assert heads.loaded.expected()[:, 0] == pytest.approx(expected, abs=1e-4)
    card = json.loads((tmp_path / "Made" / "card.json").read_text())
    assert card["kind"] == kind and len(card["sha256"]) == 64 and card["model_version"] == heads.loaded.version


def test_univfd_is_clip_s_tower_with_its_projection() -> None:
    """The names and shapes that timm has for it, without the weights: 768 numbers behind the projection."""
    with torch.device("meta"):
        module = timm.create_model("vit_large_patch14_clip_quickgelu_224", num_classes=768)
    assert tuple(module.state_dict()["head.weight"].shape) == (768, 1024)
    assert "vit_large_patch14_clip_quickgelu_224.openai" in timm.list_pretrained("vit_large_patch14_clip*")
    assert timm.get_pretrained_cfg("vit_large_patch14_clip_quickgelu_224.openai").mean == published.CLIP_MEAN


def test_what_is_no_such_file_is_one_line(tmp_path: Path) -> None:
    """Another model, code in a pickle, no file, an unknown kind: named, and no folder is left."""
    other, code, out = tmp_path / "other.pth", tmp_path / "code.pth", tmp_path / "out"
    torch.save({"model": {"fc.weight": torch.zeros(1, 2048), "fc.bias": torch.zeros(1)}}, other)
    torch.save({"model": Path("x")}, code)
    for kind, source, problem in (
        ("cnndetection", other, "not the tensors of resnet50: Missing key"),
        ("community-forensics", other, "head.weight \\[1, 384\\]"),
        ("univfd", code, "no file of tensors alone"),
        ("univfd", tmp_path / "nowhere", "is not there"),
        ("cnndetection", "hf://owner", "hf://OWNER/NAME/FILE"),
        ("other", other, "none of cnndetection, univfd"),
    ):
        with pytest.raises(WeightsError, match=problem):
            published.import_detector(kind, str(source), out)
    assert not out.exists()
