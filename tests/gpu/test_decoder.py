"""Decoding on a GPU: nvJPEG is not libjpeg, so JPEG is near the reference instead of equal; everything else is
equal.
"""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.examine.judged import decoded
from tests.odd_images import odd_images
from worker.errors import Rejected
from worker.examine.body import Body
from worker.examine.headers import check_limits, peek, read
from worker.examine.pixels import decode_with_pillow
from worker.settings import LimitSettings

SAMPLES = Path(__file__).parents[1] / "data"
# The two inverse transforms and colour conversions round differently; more than this on average is another upsampling
# or a shift.
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
def body():
    body = Body("gpu")
    yield body
    body.close()


def samples() -> list[bytes]:
    with (SAMPLES / "MANIFEST.csv").open(newline="") as file:
        return [(SAMPLES / "images" / row["relpath"]).read_bytes() for row in csv.DictReader(file)]


def placed(data: bytes) -> np.ndarray:
    region = decode_with_pillow(read(data).picture)
    out = np.zeros((224, 224, 3), np.uint8)
    top, left = (224 - region.shape[0]) // 2, (224 - region.shape[1]) // 2
    out[top : top + region.shape[0], left : left + region.shape[1]] = region
    return out


def test_each_device_is_taken_as_asked(body):
    """Where there is a GPU it decodes where asked; `cpu` does not take it."""
    assert body.decoder == "gpu"
    assert Body("cpu").decoder == "cpu"


def test_sample_images_are_near_the_reference(body):
    """JPEG on the GPU stays within the stated mean difference of Pillow; other formats are equal in every pixel."""
    data = samples()
    infos = [peek(image) for image in data]
    pixels, failures = decoded(body, data)
    assert failures == {}
    for i, image in enumerate(data):
        difference = np.abs(pixels[i].astype(np.int16) - placed(image))
        if infos[i].format == "jpeg":
            assert difference.mean() <= MEAN_DIFFERENCE
        else:
            assert not difference.any()


def test_odd_images_are_judged_as_on_the_cpu(body):
    """With every odd image in one batch the same ones fail as on the CPU, and what goes to Pillow is equal in every
    pixel.
    """
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
    pixels, failures = decoded(body, data)
    assert {names[i] for i in failures} == {name for name in names if not odd_images()[name].ok}
    for i, image in enumerate(data):
        if i not in failures and not read(image).picture.exact:
            np.testing.assert_array_equal(pixels[i], placed(image))


def test_the_crop_is_not_shifted(body):
    """A picture with odd sizes correlates best with the reference unshifted: the region starts at the same pixel."""
    data = odd_images()["odd-size.jpg"].data
    pixels = decoded(body, [data])[0][0].astype(np.int16)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.convert("RGB")).astype(np.int16)
    top, left = round((whole.shape[0] - 224) / 2), round((whole.shape[1] - 224) / 2)
    errors = {
        (dy, dx): np.abs(pixels - whole[top + dy : top + dy + 224, left + dx : left + dx + 224]).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert min(errors, key=errors.get) == (0, 0)
