"""Stand-in weights for trying the system out: a random ViT-Tiny and heads fitted on what it sees.

The encoder is never trained: a fixed seed, timm's own initialisation, its matrices scaled up so that attention and GELU
are not nearly linear and the texture of the patches reaches the class token (held-out AUC of the linear head: 0.68
without the scaling, 0.79 with). The heads have the released hyper-parameters. A quarter of the images, chosen by their
hash, is held out of every fit and gives the figures of the card.

    python -m train.demo_weights --data DIR --out triton_models/weights/demo      (DIR holds MANIFEST.csv; a minute on two cores)
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torchvision.transforms.functional import center_crop

from train.heads import Heads
from triton_models import weights
from triton_models.weights import FAKE, IMAGE_PX, MEAN, REAL, SCORES, STD

SEED = 2026
GAIN = 4.0
HELD_OUT_DIGITS = "0123"  # images whose SHA-256 begins with one of these: a quarter


def random_encoder(seed: int = SEED, gain: float = GAIN) -> dict[str, npt.NDArray[np.float16]]:
    """Timm's initialisation of ViT-Tiny/16 under `seed`, every matrix of the blocks times `gain`, rounded to float16."""
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
    return {name: tensor.to(torch.float16).numpy() for name, tensor in model.state_dict().items()}


def embed(encoder: dict[str, npt.NDArray[np.float16]], images: npt.NDArray[np.uint8], batch: int = 64) -> npt.NDArray[np.float32]:
    """Embeddings [N, 192] of crops [N, 224, 224, 3], by timm in float32."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in encoder.items()})
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(images[start : start + batch]).float() / 255
            parts.append(model(((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()).numpy())
    return np.concatenate(parts)


def make(data: Path, out: Path) -> dict[str, Any]:
    """Write the weights folder `out` from the images of `data` and return its card."""
    with (data / "MANIFEST.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = np.stack([np.asarray(center_crop(Image.open(data / row["relpath"]).convert("RGB"), [IMAGE_PX, IMAGE_PX])) for row in rows])
    labels = np.array([FAKE if row["label"] == "fake" else REAL for row in rows])
    held_out = np.array([row["sha256"][0] in HELD_OUT_DIGITS for row in rows])
    encoder = random_encoder()
    embeddings = embed(encoder, images)
    saved = weights.save(out, encoder, Heads.fit(embeddings[~held_out], labels[~held_out]).arrays)
    scores = weights.reference_scores(saved, embeddings[held_out])
    card = {
        "name": "demo",
        "model_version": saved.version,
        "trained": False,
        "purpose": "trying the system out; not a detector to rely on",
        "encoder": f"vit_tiny_patch16_224, random: seed {SEED}, matrices of the blocks x {GAIN:g}, float16",
        "heads": "logistic regression C=0.316 balanced; 1-NN cosine; one-class SVM nu=0.1 poly gamma=auto on reals",
        "images": {"fitted": _counts(labels[~held_out]), "held_out": _counts(labels[held_out])},
        "held_out_auc": {head: round(float(roc_auc_score(labels[held_out], scores[:, k])), 3) for k, head in enumerate(SCORES)},
        "held_out_accuracy": {head: round(float(((scores[:, k] >= 0.5) == labels[held_out]).mean()), 3) for k, head in enumerate(SCORES)},
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (out / "README.md").write_text(_readme(card))
    return card


def _counts(labels: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"real": int((labels == REAL).sum()), "fake": int((labels == FAKE).sum())}


def _readme(card: dict[str, Any]) -> str:
    rows = "\n".join(f"| {head} | {card['held_out_auc'][head]:.3f} | {card['held_out_accuracy'][head]:.3f} |" for head in SCORES)
    fitted, held_out = card["images"]["fitted"], card["images"]["held_out"]
    return f"""# Demo weights: weak on purpose, not a detector to rely on

Model version `{card["model_version"]}`. The encoder is a ViT-Tiny/16 that was **never trained** ({card["encoder"]}); only the heads
are fitted ({card["heads"]}), on the embeddings of {fitted["real"]} real and {fitted["fake"]} generated images. They exist so that
`make demo` runs a real model of the real size from a small download; replace them by trained weights for anything else.

Held out of the fit: {held_out["real"]} real and {held_out["fake"]} generated images of the same sources, so the figures are kinder than on new ones.

| head | AUC | accuracy at 0.5 |
|---|---|---|
{rows}

What they pick up is texture and compression of the central 224 x 224 pixels as much as anything about generation; in the
images used, generated ones are more often PNG or WebP and larger. The one-class SVM calls most images real or ranks them the wrong
way round on an untrained encoder: an AUC below 0.5 means that. No image is contained in these files, only embeddings.

Made by `python -m train.demo_weights`; the files are what counts, a new run may differ in the last digits.
"""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.demo_weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MANIFEST.csv (relpath, label, sha256) and the images")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    arguments = parser.parse_args()
    if not (arguments.data / "MANIFEST.csv").is_file():
        parser.error(f"{arguments.data / 'MANIFEST.csv'}: not there; --data names a folder with a manifest and its images")
    print(json.dumps(make(arguments.data, arguments.out), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
