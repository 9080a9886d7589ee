"""Decoding on a GPU: nvJPEG is not libjpeg, so JPEG is near the reference instead of equal; everything else is equal."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import odd_images
from worker.errors import Rejected
from worker.examine.headers import check_limits, peek, read
from worker.examine.pixels import Decoder, decode_with_pillow
from worker.settings import DecodeSettings, LimitSettings

SAMPLES = Path(__file__).parents[1] / "data"
# The two inverse transforms and colour conversions round differently; more than this on average is another upsampling or a shift.
MEAN_DIFFERENCE = 1.0


def gpu_count() -> int:
    try:
        from nvidia.dali import backend
    except ImportError:
        return 0
    return backend.GetCUDADeviceCount()


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_count() == 0, reason="no NVIDIA GPU that DALI sees; run it on a machine with one"),
]


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(DecodeSettings(device="gpu"))
    yield decoder
    decoder.close()


def samples() -> list[bytes]:
    with (SAMPLES / "MANIFEST.csv").open(newline="") as file:
        return [(SAMPLES / "images" / row["relpath"]).read_bytes() for row in csv.DictReader(file)]


def placed(data: bytes) -> np.ndarray:
    region = decode_with_pillow(read(data).picture)
    out = np.zeros((224, 224, 3), np.uint8)
    top, left = (224 - region.shape[0]) // 2, (224 - region.shape[1]) // 2
    out[top : top + region.shape[0], left : left + region.shape[1]] = region
    return out


def test_auto_takes_the_gpu():
    """Where there is a GPU, `auto` decodes on it; `cpu` does not."""
    assert Decoder(DecodeSettings()).device == "gpu"
    assert Decoder(DecodeSettings(device="cpu")).device == "cpu"


def test_sample_images_are_near_the_reference(decoder):
    """JPEG on the GPU stays within the stated mean difference of Pillow; other formats are equal in every pixel."""
    data = samples()
    infos = [peek(image) for image in data]
    decoded = decoder.decode(data, infos)
    assert decoded.failures == {}
    for i, image in enumerate(data):
        difference = np.abs(decoded.pixels[i].astype(np.int16) - placed(image))
        if infos[i].format == "jpeg":
            assert difference.mean() <= MEAN_DIFFERENCE
        else:
            assert not difference.any()


def test_odd_images_are_judged_as_on_the_cpu(decoder):
    """With every odd image in one batch the same ones fail as on the CPU, and what goes to Pillow is equal in every pixel."""
    names, infos = [], []
    for name, odd in odd_images().items():
        try:
            info = peek(odd.data)
            check_limits(info, LimitSettings())
        except Rejected:
            continue
        names.append(name)
        infos.append(info)
    data = [odd_images()[name].data for name in names]
    decoded = decoder.decode(data, infos)
    assert {names[i] for i in decoded.failures} == {name for name in names if not odd_images()[name].ok}
    for i, image in enumerate(data):
        if i not in decoded.failures and not read(image).picture.exact:
            np.testing.assert_array_equal(decoded.pixels[i], placed(image))


def test_the_crop_is_not_shifted(decoder):
    """A picture with odd sizes correlates best with the reference unshifted: the region starts at the same pixel."""
    data = odd_images()["odd-size.jpg"].data
    pixels = decoder.decode([data], [peek(data)]).pixels[0].astype(np.int16)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.convert("RGB")).astype(np.int16)
    top, left = round((whole.shape[0] - 224) / 2), round((whole.shape[1] - 224) / 2)
    errors = {
        (dy, dx): np.abs(pixels - whole[top + dy : top + dy + 224, left + dx : left + dx + 224]).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert min(errors, key=errors.get) == (0, 0)
