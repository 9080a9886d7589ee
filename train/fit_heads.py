"""From a trained encoder and labelled images to a weights folder: embed, fit the three heads, calibrate on held-out
images, save.

python -m train.main heads --encoder runs/first/best --data TRAIN --out runs/first/weights
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from train.data.images import DataError
from train.data.records import Labelled, held_out, photograph
from train.embed import UNFINISHED, Embedded, Passes
from train.fitted import fitted_on, of_run
from train.heads import Heads
from train.model import code_backbone, save_encoder
from train.progress import counting
from train.recipe import HeadFit
from train.transforms.operator import TransformOperator
from triton_models import weights
from triton_models.weights import FAKE, HEADS, REAL

SIDES = {REAL: "real", FAKE: "generated"}  # the group of an image whose source nobody named


def transformed(image: Image.Image) -> Image.Image:
    """The image under T, drawn from its own pixels: the same image always becomes the same view."""
    seed = int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")
    operator = TransformOperator()
    return operator.apply(image, operator.sample(np.random.default_rng(seed)))


def fit_heads(
    passes: Passes,
    images: list[Labelled],
    recipe: HeadFit,
    *,
    say: Callable[[str], object] = str,
    console: Console | None = None,
) -> tuple[Heads, dict[str, Any]]:
    """Heads with both calibrations, and a card with counts, the AUC of each head on the held-out images, and why a head
    is not calibrated.

    `passes` embeds, keeps what it has, and is finished by the caller. Raises DataError if a class is missing among the
    images that can be read.
    """
    name, degrade = ("heads under T", transformed) if recipe.transformed else ("heads", None)
    with counting(console, "images for the heads", len(images)) as advance:
        embedded = passes.embed(name, images, degrade, advance=advance)
    for line in embedded.failed:
        say(f"left out: {line}")
    apart = np.array(
        [held_out(f"calibration {photograph(image)}", recipe.calibration_fraction) for image in embedded.images],
        dtype=bool,
    )
    fitted, held = _part(embedded, ~apart), _part(embedded, apart)
    try:
        groups = [image.generator or SIDES[image.label] for image in fitted.images]
        heads = Heads.fit(fitted.embeddings, fitted.labels, recipe, groups)
    except ValueError as error:
        raise DataError(str(error)) from error
    card: dict[str, Any] = {
        "images": {"fitted": _counts(fitted), "calibration": _counts(held), "unreadable": len(embedded.failed)},
        "transformed": recipe.transformed,
    }
    told: list[str] = []
    if len(set(held.labels.tolist())) == 2:
        scores = heads.scores(held.embeddings)
        card["calibration_auc"] = {
            head: round(float(roc_auc_score(held.labels, scores[:, index])), 4) for index, head in enumerate(HEADS)
        }
        heads = heads.calibrate(held.embeddings, held.labels, say=told.append)
    else:
        told.append("no calibration: the held-out images lack a class (heads.calibration_fraction)")
    for line in told:
        say(line)
    return heads, card | {"not_calibrated": told}


def make_weights(
    encoder: Path,
    images: list[Labelled],
    recipe: HeadFit,
    out: Path,
    *,
    say: Callable[[str], object] = str,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fit heads on the encoder in the folder `encoder` and write a whole weights folder `out`; returns its card.

    Where it was stopped it goes on. Raises WeightsError for the encoder, DataError for the images or an `out` that is
    in use.
    """
    if out.exists() and any(not path.name.startswith(UNFINISHED) for path in out.iterdir()):
        raise DataError(f"{out} is not empty: name a new folder")
    backbone = code_backbone(encoder)
    of_encoder = of_run(encoder.resolve().parent)
    passes = Passes(backbone, images, out)
    heads, card = fit_heads(passes, images, recipe, say=say, console=console)
    save_encoder(backbone.module, out)
    heads.save(out)
    card = {
        "name": out.name,
        "model_version": weights.load(out).version,
        "encoder": str(encoder),
        **card,
        "fitted_on": {"heads": fitted_on(images)} | ({"encoder": of_encoder} if of_encoder else {}),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    passes.finish()
    return card


def _part(embedded: Embedded, chosen: np.ndarray) -> Embedded:
    images = [image for image, take in zip(embedded.images, chosen, strict=True) if take]
    return Embedded(images, embedded.embeddings[chosen], [])


def _counts(embedded: Embedded) -> dict[str, int]:
    return {"real": int((embedded.labels == REAL).sum()), "fake": int((embedded.labels == FAKE).sum())}
