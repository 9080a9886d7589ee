"""The verdict's scores against the same weights outside the pipeline: PyTorch, scikit-learn's formulas, the reference
crop.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.harness import REPO, samples
from worker.contract import HEADS

pytestmark = pytest.mark.integration
WEIGHTS = REPO / "triton_models" / "weights" / "demo"


def outside_scores(images: dict[str, bytes], weights: Path) -> dict[str, np.ndarray]:
    """P(fake) [3] of each image by torch (timm's own ViT, float32) and scikit-learn's estimators over the arrays."""
    torch = pytest.importorskip("torch")
    from torchvision.transforms import functional as F

    from train.heads import Heads
    from train.model import load_encoder

    encoder = load_encoder(weights).eval()
    heads = Heads.load(weights)
    crops = [F.center_crop(Image.open(io.BytesIO(data)).convert("RGB"), [224, 224]) for data in images.values()]
    tensor = torch.stack(
        [F.normalize(F.to_tensor(crop), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for crop in crops]
    )
    with torch.inference_mode():
        embeddings = encoder(tensor).double().numpy()
    return dict(zip(images, np.asarray(heads.scores(embeddings)), strict=True))


def test_scores_equal_pytorch_and_scikit_learn(outside, start_worker):
    """To 1e-4 on every sample image, each head."""
    start_worker()
    images = samples()
    outside.send_all(images)
    verdicts = outside.wait_verdicts(images)
    expected = outside_scores(images, WEIGHTS)
    for image_id, scores in expected.items():
        got = [verdicts[image_id]["scores"][head] for head in HEADS]
        np.testing.assert_allclose(got, scores, atol=1e-4, rtol=0, err_msg=image_id)


def test_verdicts_tell_the_nearest_rows_of_the_bank(outside, start_worker):
    """Label and distance of both sides by float64 outside of the pipeline; a cached verdict says the same."""
    from triton_models import reference, weights

    start_worker()
    loaded = weights.load(WEIGHTS)
    name, data = next(iter(samples().items()))
    outside.send(name, data)
    first = outside.wait_verdicts([name])[name]
    outside.send("again", data)
    again = outside.wait_verdicts(["again"])["again"]
    crop = np.zeros((1, 224, 224, 3), np.uint8)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    left, top = (round((side - 224) / 2) for side in image.size)
    crop[0] = np.asarray(image.crop((left, top, left + 224, top + 224)))
    distances = weights.reference_nearest(loaded, reference.embeddings(loaded, crop))[0]
    for side, label in (("real", weights.REAL), ("fake", weights.FAKE)):
        among = np.where(loaded.heads["knn.labels"] == label, distances, np.inf)
        told = first["evidence"]["nearest"][side]
        assert told["label"] == loaded.groups[int(among.argmin())]
        assert told["distance"] == pytest.approx(among.min(), abs=1e-4)
    assert again["evidence"]["nearest"] == first["evidence"]["nearest"]
    assert again["source"] == "cache"
