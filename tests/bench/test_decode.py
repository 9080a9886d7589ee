"""The decoder's benchmark runs and reports both sides."""

import pytest

from tests.odd_images import odd_images
from worker.bench.decode import measure_decode
from worker.settings import DecodeSettings


@pytest.mark.slow
def test_the_decoder_and_pillow_are_measured_per_format():
    """Each format given is reported with images per second of both sides and their ratio, all above zero."""
    images = [odd_images()[name].data for name in ("plain.jpg", "plain.png")]
    found = measure_decode(DecodeSettings(device="cpu"), images, rounds=1)
    assert found["device"] == "cpu"
    for name in ("jpeg", "png"):
        for figure in ("decoder_images_per_s", "pillow_images_per_s", "lone_ms", "times_faster_than_pillow"):
            assert found[f"{name}_{figure}"] > 0
