"""The view of a detector against torchvision's Resize and CenterCrop on Pillow's image: how far apart, on what."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import odd_images
from triton_models import detector
from worker.clients.shared_memory import Regions
from worker.crop import View
from worker.errors import Rejected
from worker.examine import crops, headers, views
from worker.examine.body import Body
from worker.examine.pool import Pool
from worker.settings import DecodeSettings, LimitSettings
from worker.telemetry.metrics import Metrics

SAMPLES = sorted(path for path in (Path(__file__).parents[1] / "data" / "images").rglob("*") if path.is_file())
RESIZES = ("bilinear", "bicubic", "lanczos")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def view(**fields: object) -> View:
    return View(**{"shorter": None, "to": None, "interpolation": "bicubic", "crop": 224, **fields})


VIEWS = {
    "native 224": view(),
    "native 160": view(crop=160),
    **{f"shorter 256, crop 224, {kind}": view(shorter=256, interpolation=kind) for kind in RESIZES},
    "shorter 384, crop 384": view(shorter=384, crop=384),
    **{f"384 x 384, {kind}": view(to=(384, 384), interpolation=kind, crop=None) for kind in RESIZES},
    "256 x 320, crop 224": view(to=(256, 320)),
}


def reference(data: bytes, wanted: View) -> np.ndarray:
    """By torchvision on Pillow's image, its antialiasing on."""
    functional = pytest.importorskip(
        "torchvision.transforms.functional", reason="torchvision is in the train extra: make setup-all"
    )
    mode = getattr(functional.InterpolationMode, wanted.interpolation.upper())
    with Image.open(io.BytesIO(data)) as opened:
        grey16 = opened.mode.startswith("I;16")  # which Pillow would clip
        scaled = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)) if grey16 else opened
        image = scaled.convert("RGB")
    if wanted.shorter is not None or wanted.to is not None:
        size = [wanted.shorter] if wanted.shorter is not None else list(wanted.to or ())
        image = functional.resize(image, size, mode, antialias=True)
    return np.asarray(functional.center_crop(image, [wanted.crop, wanted.crop]) if wanted.crop else image)


def made(data: bytes, wanted: View) -> np.ndarray | Rejected:
    body = Body("none", view=wanted)
    row = np.zeros((*wanted.size, 3), np.uint8)
    try:
        body.decode_one(body.read(data, 1 << 30, 100_000_000), row)
    except Rejected as rejected:
        return rejected
    return row


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_the_samples_are_pillow_s(name: str) -> None:
    """To the bit where nothing is resized; within one grey level on average where something is. Both are printed."""
    wanted = VIEWS[name]
    apart: list[tuple[float, int]] = []
    for path in SAMPLES:
        data = path.read_bytes()
        ours = made(data, wanted)
        assert isinstance(ours, np.ndarray), f"{path.name}: {ours}"
        difference = np.abs(ours.astype(int) - reference(data, wanted))
        apart.append((float(difference.mean()), int(difference.max())))
    means, largest = zip(*apart, strict=True)
    print(f"{name}: mean difference at most {max(means):.4f}, largest {max(largest)} grey levels")
    if wanted.shorter is None and wanted.to is None:
        assert max(largest) == 0
    else:
        assert max(means) < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native 224", "shorter 256, crop 224, bicubic", "384 x 384, lanczos"])
def test_views_of_odd_images_are_pillow_s(name: str) -> None:
    """Palettes, alpha, 16 bits, animations, one row of pixels: as Pillow has them, and never an exception."""
    wanted = VIEWS[name]
    compared = 0
    for title, odd in odd_images().items():
        ours = made(odd.data, wanted)
        if not odd.ok or isinstance(ours, Rejected):
            assert isinstance(ours, Rejected) or not odd.ok or "ok" in odd.expect, title
            continue
        try:
            theirs = reference(odd.data, wanted)
        except Exception:  # noqa: BLE001 - Pillow may refuse what is read here by other means
            continue
        compared += 1
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() < 1, f"{title}: {difference.mean():.2f} grey levels apart"
    assert compared > 20


def test_a_line_of_pixels_is_not_blown_up() -> None:
    """1 x 20,000 pixels to a shorter side of 256 would be 256 x 5,120,000 if the whole were resized."""
    out = io.BytesIO()
    Image.new("RGB", (20_000, 1), (10, 200, 30)).save(out, "PNG")
    ours = made(out.getvalue(), VIEWS["shorter 256, crop 224, bicubic"])
    assert isinstance(ours, np.ndarray)
    assert (ours == [10, 200, 30]).all()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no", "no JSON"),
        ("[]", "an object"),
        ('{"resize": {"shorter": 256}, "crop": 224, "scale": 2}', "an object"),
        ('{"resize": {"shorter": 256}, "crop": null}', "resize is null"),
        ('{"resize": {"shorter": 0}, "crop": 224}', "shorter 0"),
        ('{"resize": {"to": [384]}, "crop": null}', "resize is null"),
        ('{"resize": null, "interpolation": "area", "crop": 224}', "interpolation 'area'"),
        ('{"resize": null, "crop": 100000}', "crop 100000"),
        ('{"resize": null, "crop": true}', "crop True"),
        ('{"resize": null, "crop": 224, "crops": "grid:3"}', "crops 'grid:3'"),
        ('{"resize": null, "crop": 224, "crops": "texture:17"}', "crops 'texture:17'"),
        ('{"resize": null, "crop": 224, "crops": 4}', "crops 4"),
        ('{"resize": {"shorter": 256}, "crop": 224, "crops": "grid:4"}', "native size"),
    ],
)
def test_a_wrong_view_is_told(text: str, problem: str) -> None:
    """In words that name the field."""
    with pytest.raises(ValueError, match=problem.replace("[", r"\[")):
        View.parse(text)


CROPS = {
    f"{kind}:{count} of {side}": view(crop=side, crops=(kind, count))
    for kind, count, side in (("grid", 4, 224), ("grid", 9, 96), ("texture", 4, 64), ("texture", 16, 224))
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CROPS)
def test_several_crops_are_those_of_who_fitted_the_heads(name: str) -> None:
    """To the bit what `triton_models.detector.View` makes, on pictures larger and smaller than a crop."""
    wanted = CROPS[name]
    theirs = detector.View(None, "bicubic", wanted.crop, name.partition(" ")[0])
    assert theirs.size == wanted.size
    assert View.parse(theirs.to_json()) == wanted
    rng = np.random.default_rng(7)
    odd = [
        rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((3, 500), (97, 96), (1, 1), (650, 450))
    ]
    for pixels in [np.asarray(Image.open(path).convert("RGB")) for path in SAMPLES[::4]] + odd:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        ours = made(out.getvalue(), wanted)
        assert isinstance(ours, np.ndarray)
        assert np.array_equal(ours, theirs.make(pixels)), pixels.shape


def test_the_grid_goes_from_corner_to_corner_and_texture_where_the_detail_is() -> None:
    """Without the other implementation: places that can be named by hand."""
    assert crops.grid(500, 300, 200, 4) == [(0, 0), (300, 0), (0, 100), (300, 100)]
    assert crops.grid(100, 300, 200, 4) == [(0, 0), (0, 0), (0, 100), (0, 100)]
    pixels = np.full((410, 610, 3), 90, np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3))
    pixels[205:405, 405:605] = noise  # tiles of 200 begin at (5, 5)
    pixels[5:205, 205:405] = 90 + noise // 16
    assert crops.texture(pixels, 200, 2) == [(405, 205), (205, 5)]
    assert crops.texture(pixels, 200, 8)[6:] == [(405, 205), (205, 5)]  # there are six


@pytest.mark.parametrize("wanted", [*VIEWS.values(), *CROPS.values()], ids=[*VIEWS, *CROPS])
def test_a_view_is_written_as_it_is_read(wanted: View) -> None:
    """The parameter of the server's configuration."""
    assert View.parse(wanted.to_json()) == wanted


def test_child_processes_make_views_of_another_size() -> None:
    """The rows of a batch, an image that leaves it, and one that is none, as for the crop of `code`."""
    wanted = VIEWS["384 x 384, bicubic"]
    files = [path.read_bytes() for path in SAMPLES[:6]]
    metrics = Metrics()
    regions = Regions(4, 8, None, wanted.size)
    pool: Pool[int] = Pool(DecodeSettings(processes=1, device="cpu"), LimitSettings(), regions, metrics, view=wanted)
    try:
        pool.submit([*enumerate(files), (6, b"no image")])
        found: dict[int, np.ndarray] = {}
        bad: dict[int, Rejected] = {}
        while len(found) + len(bad) < 7:
            for examined in pool.wait(5.0):
                found |= {token: examined.pixels[at].copy() for at, (token, _) in enumerate(examined.good)}
                bad |= dict(examined.bad)
                if examined.lease is not None:
                    examined.lease.release()
    finally:
        pool.close()
        regions.unlink()
    assert bad.keys() == {6}
    for token, pixels in found.items():
        assert np.array_equal(pixels, made(files[token], wanted))


def test_what_a_view_costs_is_in_its_cost() -> None:
    """Whole pictures are decoded and filtered: dearer than the central crop, so that lanes and memory fit."""
    data = max((path.read_bytes() for path in SAMPLES), key=len)
    plain, viewed = Body("none"), Body("none", view=VIEWS["384 x 384, bicubic"])
    ours = viewed.read(data, 1 << 30, 100_000_000).cost
    without = plain.read(data, 1 << 30, 100_000_000).cost
    assert ours.effort_ms > without.effort_ms
    assert ours.decoded_bytes > without.decoded_bytes
    assert headers.read(data).info.width > 0


@pytest.mark.parametrize("name", [*VIEWS, "grid:4", "texture:4"])
def test_who_measures_sees_what_the_worker_sees(name: str) -> None:
    """To the bit, of a picture larger than the view and one that is smaller than its native crop."""
    kind, _, count = name.partition(":")
    wanted = VIEWS.get(name) or view(crops=(kind, int(count)))
    for pixels in (detector.pictures()[3], detector.pictures()[0][:150, :200].copy()):
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        seen = made(encoded.getvalue(), wanted)
        assert isinstance(seen, np.ndarray) and seen.any()
        assert np.array_equal(views.of_pixels(pixels, wanted), seen)
