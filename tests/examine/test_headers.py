"""headers.peek: agrees with Pillow about every size, and survives everything."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tests.odd_images import encode, odd_images, png, png_bomb, scene
from worker.contract import ImageInfo
from worker.errors import Rejected, RejectReason
from worker.examine.headers import check_limits, peek, read
from worker.settings import LimitSettings

DATA = Path(__file__).parents[1] / "data"
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"]
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow about damaged metadata; pytest undoes the filter of headers.py
SEEDS = [image.data for image in odd_images().values() if 0 < len(image.data) < 50_000]


def pillow_size(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size if min(image.size) > 0 else None
    except Exception:  # noqa: BLE001 - the reference may raise anything
        return None


def pillow_decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except Exception:  # noqa: BLE001 - the reference may raise anything
        return False
    return True


def outcome(data: bytes) -> ImageInfo | Rejected:
    try:
        return peek(data)
    except Rejected as rejected:
        return rejected


def sample_rows():
    with (DATA / "MANIFEST.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", sample_rows(), ids=lambda row: row["relpath"])
def test_sample_images_are_read_as_the_manifest_says(row):
    """Format, size and bytes of every sample image are those of its manifest row."""
    info = peek((DATA / "images" / row["relpath"]).read_bytes())
    expected = {"format": row["format"].lower(), **{key: int(row[key]) for key in ("width", "height", "bytes")}}
    assert info.model_dump(include=set(expected)) == expected


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_are_read_or_rejected_for_the_right_reason(name):
    """An odd image that is fine has Pillow's size; one that is not is accepted by its header or rejected for an
    expected reason.
    """
    odd = odd_images()[name]
    info = outcome(odd.data)
    if isinstance(info, Rejected):
        assert info.reason in odd.expect
        assert info.stage == "intake"
    elif odd.ok:
        assert (info.width, info.height) == pillow_size(odd.data)
        assert info.bytes == len(odd.data)
    elif RejectReason.TOO_MANY_PIXELS in odd.expect:
        with pytest.raises(Rejected, match="too_many_pixels"):
            check_limits(info, LimitSettings())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("two-pictures.mpo", "jpeg"),
        ("plain.webp", "webp"),
        ("animated.gif", "gif"),
        ("lzw.tiff", "tiff"),
        ("plain.bmp", "bmp"),
        ("grey.png", "png"),
    ],
)
def test_format_names_are_those_of_the_contract(name, expected):
    """Formats are told by their bytes, in lower case, and MPO counts as JPEG."""
    assert peek(odd_images()[name].data).format == expected


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF; install a wheel of Pillow >= 11.3")
def test_avif_is_read():
    """AVIF is read where Pillow has it."""
    assert peek(odd_images()["plain.avif"].data).format == "avif"


def test_no_bytes_are_empty():
    """Nothing at all is rejected as empty, not as an unknown format."""
    with pytest.raises(Rejected) as caught:
        peek(b"", stage="decode")
    assert (caught.value.reason, caught.value.stage) == (RejectReason.EMPTY, "decode")


@pytest.mark.parametrize("name", ["drawing.svg", "paper.pdf", "icon.ico", "picture.ppm", "picture.jp2", "page.html"])
def test_other_formats_are_unsupported(name):
    """What Pillow could open but the contract does not name is unsupported, as is what is no image."""
    with pytest.raises(Rejected, match="unsupported_format"):
        peek(odd_images()[name].data)


@pytest.mark.parametrize(
    "header",
    [
        b"RIFF\xff\xff\xff\xffWEBPVP8X\x0a\0\0\0\0\0\0\0",
        b"GIF89a\xff\xff\xff\xff\0\0\0\x21\xf9\x04\x08\0\0\0\0\x2c\0\0\0\0",
    ],
)
def test_a_huge_size_in_a_short_header_costs_no_memory(header):
    """WebP and GIF headers that claim the largest sizes are measured without making a canvas of that size."""
    info = peek(header + b"\xff" * 20)
    assert info.width * info.height >= 65535 * 65535
    with pytest.raises(Rejected, match="too_many_pixels"):
        check_limits(info, LimitSettings())


def test_a_tile_that_dwarfs_its_image_is_corrupt():
    """A TIFF may have a tile somewhat larger than the image, not one that takes a gigabyte for 256 pixels."""
    assert peek(odd_images()["tile-larger-than-image.tiff"].data).width == 240
    with pytest.raises(Rejected, match="a tile of 1073741824 pixels"):
        peek(odd_images()["tile-bomb.tiff"].data)


def test_limits_are_inclusive():
    """An image at the limit passes, one byte or one pixel more does not; bytes are judged first."""
    info = ImageInfo(format="png", width=100, height=50, bytes=1000)
    check_limits(info, LimitSettings(max_image_bytes=1000, max_image_pixels=5000))
    for limits, reason in (
        (LimitSettings(max_image_bytes=999, max_image_pixels=1), RejectReason.TOO_LARGE),
        (LimitSettings(max_image_bytes=1000, max_image_pixels=4999), RejectReason.TOO_MANY_PIXELS),
    ):
        with pytest.raises(Rejected) as caught:
            check_limits(info, limits)
        assert caught.value.reason == reason


def test_pillows_own_bomb_guard_stays_out_of_the_way():
    """An image above Pillow's default guard is read: our limits decide, and they are settings."""
    info = peek(png_bomb(20000, 20000))
    assert (info.width, info.height) == (20000, 20000)
    assert pillow_size(png_bomb(20000, 20000)) == (20000, 20000)


def test_a_frame_header_is_found_behind_metadata():
    """The JPEG reader steps over application segments whose payload looks like a frame header."""
    plain = encode(scene(40, 30), "JPEG")
    decoy = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03" + bytes(20)
    data = plain[:2] + b"\xff\xe5" + (len(decoy) + 2).to_bytes(2) + decoy + plain[2:]
    picture = read(data).picture
    assert (picture.width, picture.height) == (40, 30)
    assert decoy not in picture.data


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(bytes.__add__, st.sampled_from([seed[:16] for seed in SEEDS]), st.binary(max_size=200)),
    )
)
@example(png(2**31 - 1, 2**31 - 1))
@example(b"\xff\xd8\xff")
@example(b"RIFF\0\0\0\0WEBP")
def test_garbage_gives_an_info_or_a_rejection(data):
    """Whatever the bytes are, the outcome is an ImageInfo or a Rejected, never another exception."""
    info = outcome(data)
    if isinstance(info, Rejected):
        assert info.reason in (RejectReason.EMPTY, RejectReason.UNSUPPORTED_FORMAT, RejectReason.CORRUPT)
    else:
        assert info.width > 0 and info.height > 0 and info.bytes == len(data)


@settings(max_examples=600, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    at=st.integers(0, 700),
    cut=st.sampled_from([0, 1, 2, 4, 30]),
    insert=st.binary(max_size=30),
    end=st.sampled_from([None, 20, 40, 100, 400]),
)
def test_damaged_headers_are_never_measured_differently_than_by_pillow(seed, at, cut, insert, end):
    """A damaged file has Pillow's size or none, and none only where Pillow cannot decode it either."""
    at = min(at, len(seed))
    data = (seed[:at] + insert + seed[at + cut :])[:end]
    ours = outcome(data)
    if isinstance(ours, ImageInfo) and ours.width * ours.height > 10**8:  # Pillow would make the canvas
        return
    if isinstance(ours, Rejected) and "a tile of" in ours.detail:  # refused on purpose, see the tile bomb
        return
    theirs = pillow_size(data)
    if isinstance(ours, Rejected):
        assert theirs is None or not pillow_decodes(data)
    elif theirs is not None:
        assert (ours.width, ours.height) == theirs
