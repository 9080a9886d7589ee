"""The attribution map says something of model and image: planted traces are found, random weights have no such map.

Two detectors: CoDE's demo weights, and one of a line that reacts to fine texture. (Adebayo et al., Sanity Checks for
Saliency Maps, 2018: a map that survives random weights shows the image, not the model.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from triton_models import graph, weights
from worker.explain.occlusion import attribute

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "tests" / "data" / "images"
REAL = "real/clothing-dataset-small/05f8087f3a9ae904.jpg"
FAKE = "fake/cogview2/919270eb013fb96a.jpg"
QUADRANTS = [(0, 0), (0, 112), (112, 0), (112, 112)]


def crop(path):
    with Image.open(IMAGES / path) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
    return pixels[top : top + 224, left : left + 224]


def code(loaded):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.fused(loaded).SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda batch: session.run(["scores"], {"images": batch})[0][:, 0]


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "triton_models" / "weights" / "demo")


def texture(batch):
    """P(fake) by how much neighbouring pixels differ."""
    grey = batch.astype(float).mean(axis=3)
    energy = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    return 1 / (1 + np.exp(-(energy - 4)))


def by_quadrant(weights_of_pixels):
    return [weights_of_pixels[top : top + 112, left : left + 112].mean() for top, left in QUADRANTS]


@pytest.mark.parametrize("quadrant", range(4))
def test_a_planted_trace_is_found_in_its_quadrant(quadrant):
    """Where the trace is, and nowhere else, covering costs the score."""
    pixels = np.asarray(
        Image.fromarray(crop(REAL)).resize((28, 28)).resize((224, 224), Image.Resampling.BICUBIC)
    ).copy()
    top, left = QUADRANTS[quadrant]
    noise = np.random.default_rng(quadrant).integers(-40, 40, (112, 112, 1))
    planted = pixels[top : top + 112, left : left + 112].astype(int) + noise
    pixels[top : top + 112, left : left + 112] = np.clip(planted, 0, 255)
    found = attribute(pixels, texture)
    assert int(np.argmax(by_quadrant(found.weights))) == quadrant
    x0, y0, x1, y1 = found.strongest(fake=True)
    half = found.window_px // 2
    assert left - half <= x0 < x1 <= left + 112 + half
    assert top - half <= y0 < y1 <= top + 112 + half


def test_a_generated_quadrant_is_found_by_code(demo):
    """A quarter of a generated image in a photograph: the map of the demo weights points there."""
    pixels = crop(REAL).copy()
    pixels[112:, :112] = crop(FAKE)[112:, :112]
    found = attribute(pixels, code(demo))
    assert int(np.argmax(by_quadrant(found.weights))) == QUADRANTS.index((112, 0))


def test_random_weights_have_another_map(demo):
    """With the encoder's weights shuffled nothing is left of the map; the same weights give the same map to the bit."""
    pixels, rng = crop(FAKE), np.random.default_rng(0)
    shuffled = {name: rng.permutation(value.reshape(-1)).reshape(value.shape) for name, value in demo.encoder.items()}
    model = code(demo)
    first, again = attribute(pixels, model), attribute(pixels, model)
    random = attribute(pixels, code(type(demo)(shuffled, demo.heads)))
    assert np.array_equal(first.grid, again.grid)
    correlation = np.corrcoef(first.grid.ravel(), random.grid.ravel())[0, 1]
    assert abs(correlation) < 0.5


def test_a_detector_that_looks_at_nothing_has_an_empty_map():
    """And the shape of the map is that of the crop."""
    found = attribute(crop(REAL), lambda batch: np.full(len(batch), 0.7))
    assert found.score == pytest.approx(0.7)
    assert not found.weights.any()
    assert found.weights.shape == (224, 224)
    assert (found.window_px, found.stride_px, found.grid.shape) == (56, 28, (7, 7))


def test_a_sure_score_is_no_infinite_change():
    """float32 says 1.0 and 0.0; the map stays a number."""
    found = attribute(crop(REAL), lambda batch: np.array([1.0, *[0.0] * (len(batch) - 1)], np.float32))
    assert np.isfinite(found.weights).all()
