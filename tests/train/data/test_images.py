"""Broken bytes end as BadImage, whatever Pillow's plugins raise on the way."""

import io

import numpy as np
import pytest
from PIL import Image

from train.data.images import BadImage, decode_image, decode_pixels, read_header
from train.data.synthetic import synthetic_record


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(synthetic_record(0, size=48).images["gen_0"])).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_any_broken_byte_is_an_image_or_a_bad_image(kind: str) -> None:
    """Each byte of the header overwritten, and the file cut at many places: an image or BadImage, no other
    exception.
    """
    data = encoded(kind)
    header = min(len(data), 200)
    broken = [data[:place] + bytes([value]) + data[place + 1 :] for place in range(header) for value in (0, 255)]
    broken += [data[:length] for length in range(0, len(data), max(1, len(data) // 50))]
    bad = 0
    for candidate in broken:
        for read in (read_header, decode_pixels, decode_image):
            try:
                read(candidate)
            except BadImage:
                bad += 1
    assert bad > len(broken) // 20


def test_postscript_is_not_handed_to_an_interpreter() -> None:
    """A download that turns out to be a program in PostScript is no image, with or without Ghostscript on the
    machine.
    """
    with pytest.raises(BadImage, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_pixels_are_those_of_pillow(kind: str, mode: str) -> None:
    """Whatever decoder reads a format, the pixels are the reference's, also for turned, animated and see-through
    images.
    """
    image = Image.effect_noise((67, 45), 60).convert("RGB").convert(mode)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    for options in ({"exif": orientation}, {"lossless": True}, frames):
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **options)
        except (OSError, ValueError, KeyError):
            continue  # this format has no such images
        assert np.array_equal(decode_pixels(buffer.getvalue()), np.asarray(decode_image(buffer.getvalue())))
