from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.decode import decode

RED, WHITE = (200, 30, 60), (255, 255, 255)


def save(image: Image.Image, file: Path, **options) -> Path:
    image.save(file, **options)
    return file


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    if transparent:
        image.paste(0, (0, 0, 4, 8))
    return image


@pytest.mark.parametrize("size", [8, 4])
@pytest.mark.parametrize(
    ("name", "image", "options", "left", "right"),
    [
        ("rgb.png", Image.new("RGB", (8, 8), RED), {}, RED, RED),
        ("grey.png", Image.new("L", (8, 8), 77), {}, (77,) * 3, (77,) * 3),
        ("bilevel.png", Image.new("1", (8, 8), 1), {}, WHITE, WHITE),
        ("palette.gif", palette(False), {}, RED, RED),
        ("palette.png", palette(True), {"transparency": 0}, WHITE, RED),
        ("alpha.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}, WHITE, WHITE),
        ("half.png", Image.new("RGBA", (8, 8), (0, 0, 0, 51)), {}, (204,) * 3, (204,) * 3),
        ("grey-alpha.png", Image.new("LA", (8, 8), (0, 0)), {}, WHITE, WHITE),
        ("key.png", Image.new("RGB", (8, 8), RED), {"transparency": RED}, WHITE, WHITE),
        ("deep.png", Image.fromarray(np.full((8, 8), 0x4D12, np.uint16)), {}, (0x4D,) * 3, (0x4D,) * 3),
        ("deep.tif", Image.fromarray(np.full((8, 8), 0x4D12, np.uint16)), {}, (0x4D,) * 3, (0x4D,) * 3),
        ("int.tif", Image.fromarray(np.full((8, 8), 0x4D12, np.int32)), {}, (0x4D,) * 3, (0x4D,) * 3),
        ("byte-in-int.tif", Image.fromarray(np.full((8, 8), 77, np.int32)), {}, (77,) * 3, (77,) * 3),
        ("ink.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, (255, 0, 0), (255, 0, 0)),
        ("ink.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (254, 0, 0), (254, 0, 0)),
        ("lossless.webp", Image.new("RGB", (8, 8), RED), {"lossless": True}, RED, RED),
        ("plain.ppm", Image.new("RGB", (8, 8), RED), {}, RED, RED),
        ("plain.bmp", Image.new("RGB", (8, 8), RED), {}, RED, RED),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, left, right, size):
    pixels = decode(save(image, tmp_path / name, **options), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels[:, 0].astype(int) - left).max() <= 1
    assert np.abs(pixels[:, -1].astype(int) - right).max() <= 1


def test_exif_orientation_is_applied(tmp_path):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste((0, 0, 0), (0, 0, 20, 20))  # black on the left
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # "turn by 90° clockwise to see it"
    pixels = decode(save(turned, tmp_path / "a.jpg", exif=exif, quality=100), 8)
    assert pixels[:, 1].max() < 30
    assert pixels[:, -2].min() > 225


def test_broken_exif_is_no_reason_to_lose_a_picture(tmp_path):
    file = save(Image.new("RGB", (8, 8), RED), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(file, 8).shape == (8, 8, 3)


def test_resized_to_the_square_with_antialiasing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.png")
    expected = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(file, 16), np.asarray(expected))
    assert decode(file, 16).std() < 30 < noise.std()
