from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageOps

import plumage.data.decode
from plumage.data.decode import AMPLE, decode

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


@pytest.mark.parametrize("strip", [1, 700, plumage.data.decode.STRIP])
def test_every_alpha_of_every_value_over_white(monkeypatch, strip):
    """Against the formula; in strips of one row, of a few that do not divide the height, and as a whole."""
    monkeypatch.setattr(plumage.data.decode, "STRIP", strip)
    value, alpha = np.mgrid[:256, :256]
    pixels = np.stack([value, 255 - value, np.full_like(value, 37), alpha], axis=2).astype(np.uint8)
    expected = np.rint((pixels[..., :3] * (alpha[..., None] / 255)) + 255 - alpha[..., None])
    got = np.asarray(plumage.data.decode.over_white(Image.fromarray(pixels)))
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """As Pillow's own function does it on the whole picture."""
    corner = Image.new("RGB", (40, 24), "white")
    corner.paste((200, 0, 0), (0, 0, 20, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(corner, tmp_path / f"a.{suffix}", exif=exif, quality=100)
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
        assert (upright.size == (24, 40)) == (orientation >= 5)
        expected = np.asarray(upright.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(file, 8) - expected).max() <= 1


def test_broken_exif_is_no_reason_to_lose_a_picture(tmp_path):
    file = save(Image.new("RGB", (8, 8), RED), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(file, 8).shape == (8, 8, 3)


def test_resized_to_the_square_with_antialiasing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.png")
    expected = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(file, 16), np.asarray(expected))
    assert decode(file, 16).std() < 30 < noise.std()


@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("size", [16, 32, 64, 71])
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_a_large_jpeg_is_decoded_at_a_smaller_scale_within_rounding(tmp_path, photo, size, orientation):
    """Of each picture, less than half a level away in the mean, and 99 of 100 values at most two levels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / photo) as opened:  # 640 by 427, a prime number
        file = save(opened, tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(file) as opened:
        whole = ImageOps.exif_transpose(opened).resize((size, size), Image.Resampling.BILINEAR)
    difference = np.abs(decode(file, size) - np.asarray(whole).astype(int))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 2
    assert difference.any() == (2 * AMPLE * size <= 427)


def test_a_png_is_decoded_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.png")
    assert np.array_equal(decode(file, 8), np.asarray(Image.fromarray(noise).resize((8, 8), Image.Resampling.BILINEAR)))
