from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageOps
from torchvision.transforms import v2

import plumage.data.decode
from plumage.data.decode import AMPLE, Square, decode

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
        ("ink.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, (255, 0, 0), (255, 0, 0)),
        ("ink.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (254, 0, 0), (254, 0, 0)),
        ("lossless.webp", Image.new("RGB", (8, 8), RED), {"lossless": True}, RED, RED),
        ("plain.ppm", Image.new("RGB", (8, 8), RED), {}, RED, RED),
        ("plain.bmp", Image.new("RGB", (8, 8), RED), {}, RED, RED),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, name, image, options, left, right, size):
    pixels = decode(save(image, tmp_path / name, **options), Square(size)).pixels
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
    assert np.abs(decode(file, Square(8)).pixels - expected).max() <= 1


def test_broken_exif_is_no_reason_to_lose_a_picture(tmp_path):
    file = save(Image.new("RGB", (8, 8), RED), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(file, Square(8)).pixels.shape == (8, 8, 3)


def test_resized_to_the_square_with_antialiasing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.png")
    expected = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(file, Square(16)).pixels, np.asarray(expected))
    assert decode(file, Square(16)).pixels.std() < 30 < noise.std()


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
    difference = np.abs(decode(file, Square(size)).pixels - np.asarray(whole).astype(int))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) <= 2
    assert difference.any() == (2 * AMPLE * size <= 427)


def test_a_png_is_decoded_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.png")
    assert np.array_equal(
        decode(file, Square(8)).pixels, np.asarray(Image.fromarray(noise).resize((8, 8), Image.Resampling.BILINEAR))
    )


def fitted(image: Image.Image, side: int, fit: str) -> np.ndarray:
    """Return what others make of an upright picture: torchvision, and Pillow on grey."""
    if fit == "crop":
        cut = v2.Compose([v2.Resize(side, v2.InterpolationMode.BILINEAR, antialias=True), v2.CenterCrop(side)])
        return np.asarray(cut(image)).astype(int)
    size = {"squash": (side, side), "pad": None}[fit]
    if size:
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(int)
    return np.asarray(ImageOps.pad(image, (side, side), Image.Resampling.BILINEAR, (128, 128, 128))).astype(int)


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize(
    "size", [(40, 40), (61, 40), (40, 61), (64, 40), (43, 40), (40, 700), (16, 17), (5, 9), (2, 60)]
)
def test_each_fit_as_torchvision_and_pillow_do_it(tmp_path, fit, side, size):
    """Upright before it is fitted, whatever way it lies in the file: what cannot be halved is on the same side."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("png", "tif"):
            file = save(noise, tmp_path / f"{orientation}.{suffix}", exif=exif)
            expected = fitted(ImageOps.exif_transpose(Image.open(tmp_path / f"{orientation}.png")), side, fit)
            assert np.abs(decode(file, Square(side, fit)).pixels - expected).max() <= 1, (orientation, suffix)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("size", [16, 32, 64, 71])
def test_a_large_jpeg_is_fitted_from_a_smaller_scale(tmp_path, fit, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg") as opened:
        file = save(opened, tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(file) as opened:
        whole = fitted(ImageOps.exif_transpose(opened), size, fit)
    difference = np.abs(decode(file, Square(size, fit)).pixels - whole)
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.99) <= 3


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_what_is_transparent_is_white_and_what_is_beside_the_picture_grey(tmp_path, fit):
    image = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    indexed = Image.new("P", (16, 8), 0)
    for file in (save(image, tmp_path / "a.png"), save(indexed, tmp_path / "a.gif", transparency=0)):
        got = decode(file, Square(8, fit)).pixels
        rows = np.arange(8)
        beside = (rows < 2) | (rows >= 6) if fit == "pad" else rows < 0
        assert (got[~beside] == 255).all()
        assert (got[beside] == 128).all()


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_a_line_or_a_dot_is_a_square_too(tmp_path, fit, size):
    got = decode(save(Image.new("RGB", size, RED), tmp_path / "a.png"), Square(8, fit)).pixels
    assert set(map(tuple, got.reshape(-1, 3).tolist())) <= {RED, (128, 128, 128)}
    assert (got == RED).all(axis=2).any()


def test_the_first_page_of_several(tmp_path):
    pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, "white", "black")]
    for form in ("tif", "gif", "webp", "png"):
        file = save(pages[0], tmp_path / f"a.{form}", save_all=True, append_images=pages[1:])
        assert np.abs(decode(file, Square(8)).pixels.astype(int) - RED).max() <= 2
