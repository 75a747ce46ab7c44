"""Profiles: to sRGB, within two levels of littleCMS and of the formula; and what is no use is not used."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_depth import chunk, png

import plumage.data.colour
from plumage.data.colour import MAX_PROFILE, transform_for
from plumage.data.decode import Square, decode, of_pillow

# The colorants' XYZ, by columns, adapted to D50, and the exponent of the curve.
SRGB = [[0.43607, 0.38515, 0.14308], [0.22249, 0.71687, 0.06064], [0.01392, 0.09708, 0.71410]]
P3 = [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
ADOBE = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
PROPHOTO = [[0.79767, 0.13519, 0.03134], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]]
CURVES = {"P3": (P3, None), "Adobe": (ADOBE, 563 / 256), "ProPhoto": (PROPHOTO, 1.8)}


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def curve(exponent: float | None) -> bytes:
    if exponent is None:  # that of sRGB
        return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256))


def profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile of version 2.4 with these tags."""
    head = struct.pack(">I4sI", 0, b"", 0x02400000) + kind + space + pcs + bytes(12) + b"acsp" + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249) + bytes(48)
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78), b"wtpt": head[:0], **tags}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    table, content, place = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        value = tag.ljust(-(-len(tag) // 4) * 4, b"\0")
        table += struct.pack(">4sII", name, place + len(content), len(value))
        content += value
    whole = head + table + content
    return struct.pack(">I", len(whole)) + whole[4:]


def of_colorants(matrix: list[list[float]], exponent: float | None) -> bytes:
    columns, names = zip(*matrix, strict=True), (b"r", b"g", b"b")
    tags = {name + b"XYZ": b"XYZ " + bytes(4) + fixed(*column) for name, column in zip(names, columns, strict=True)}
    return profile(b"mntr", b"RGB ", b"XYZ ", tags | {name + b"TRC": curve(exponent) for name in names})


def of_grey(exponent: float) -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve(exponent)})


def of_ink() -> bytes:
    """Return a printer's profile: a table of the 16 corners of CMYK in Lab, of inks duller than the pure ones."""
    corners = np.array(np.unravel_index(np.arange(16), (2, 2, 2, 2))).T
    light = 255 - corners @ [60, 90, 20, 200]
    red, yellow = 128 + corners @ [-35, 70, 0, 0], 128 + corners @ [-45, 0, 85, 0]
    table = np.stack([light.clip(10), red, yellow], axis=1).astype(np.uint8).tobytes()
    same = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + same * 4 + table + same * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def decoded(folder: Path, content: bytes, side: int, fit: str = "squash", levels=None) -> np.ndarray:
    (folder / "a").write_bytes(content)
    return decode(folder / "a", Square(side, fit, levels)).pixels.astype(int)


def formula(pixels: np.ndarray, matrix: list[list[float]], exponent: float | None) -> np.ndarray:
    values = pixels / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = linear if exponent is None else values**exponent
    others = (linear @ np.array(matrix).T @ np.linalg.inv(SRGB).T).clip(0, 1)
    return 255 * np.where(others <= 0.0031308, 12.92 * others, 1.055 * others ** (1 / 2.4) - 0.055)


def by_little_cms(image: Image.Image, content: bytes) -> np.ndarray:
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(content)), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")).astype(int)


COLOURS = np.stack(np.meshgrid(*[np.arange(0, 256, 17, np.uint8)] * 3), axis=-1).reshape(64, 64, 3)
WIDE = Image.fromarray(COLOURS)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "deep PNG"])
def test_three_wide_profiles(tmp_path, name, kind):
    content = of_colorants(*CURVES[name])
    if kind == "deep PNG":
        whole = png(COLOURS.astype(np.uint16) * 16, False, chunk(b"iCCP", b"x\0\0" + zlib.compress(content)))
    else:
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        whole = encoded(WIDE, kind, icc_profile=content, **options)
    got = decoded(tmp_path, whole, 64, levels=(0.0, 4080.0))
    read = Image.open(io.BytesIO(whole)).convert("RGB") if kind == "JPEG" else WIDE
    assert np.abs(got - by_little_cms(read, content)).max() <= 2
    assert np.abs(got - COLOURS).max() > 20  # and the colours are not those without it
    if kind != "JPEG":
        inside = (formula(COLOURS, *CURVES[name]) > 12).all(axis=2)  # where a curve is not too steep for its bits
        assert np.abs(got - formula(COLOURS, *CURVES[name]))[inside].max() <= 2


def test_after_resizing(tmp_path):
    content, noise = of_colorants(*CURVES["P3"]), np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    small = Image.fromarray(noise).resize((16, 16), Image.Resampling.BILINEAR)
    got = decoded(tmp_path, encoded(Image.fromarray(noise), "PNG", icc_profile=content), 16)
    assert np.array_equal(got, by_little_cms(small, content))


@pytest.mark.parametrize("mode", ["L", "LA", "deep"])
def test_grey_by_its_own_profile(tmp_path, mode):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = of_grey(2.8)
    if mode == "deep":
        stream = io.BytesIO()
        Image.fromarray(ramp.astype(np.uint16) * 100).save(stream, "TIFF", icc_profile=content)
        got = decoded(tmp_path, stream.getvalue(), 16, levels=(0.0, 25500.0))
    else:
        got = decoded(tmp_path, encoded(Image.fromarray(ramp).convert(mode), "PNG", icc_profile=content), 16)
    expected = formula(np.stack([ramp] * 3, axis=-1), SRGB, 2.8)
    assert np.abs(got - expected).max() <= 2
    assert np.abs(got - ramp[..., None]).max() > 15


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_ink_by_its_profile(tmp_path, form):
    inks = np.stack(np.meshgrid(*[np.arange(0, 256, 85, np.uint8)] * 4), axis=-1).reshape(16, 16, 4)
    image = Image.fromarray(np.kron(inks, np.ones((8, 8, 1), np.uint8)), "CMYK")
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    got = decoded(tmp_path, encoded(image, form, icc_profile=of_ink(), **options), 128)
    expected = by_little_cms(image, of_ink())
    assert np.abs(got - expected).max() <= (2 if form == "TIFF" else 6)
    assert np.abs(got - np.asarray(image.convert("RGB"))).max() > 50
    small = image.resize((16, 16), Image.Resampling.BILINEAR)
    got = decoded(tmp_path, encoded(image, "TIFF", icc_profile=of_ink()), 16)
    assert np.abs(got - by_little_cms(small, of_ink())).max() <= 2


def test_transparent_is_white_under_any_profile(tmp_path):
    image = Image.new("RGBA", (8, 8), (200, 30, 60, 0))
    image.paste((200, 30, 60, 255), (0, 0, 4, 8))
    for matrix, exponent in CURVES.values():
        got = decoded(tmp_path, encoded(image, "PNG", icc_profile=of_colorants(matrix, exponent)), 8)
        assert got[:, 4:].min() >= 254
        assert np.abs(got[0, 0] - formula(np.array([200, 30, 60]), matrix, exponent)).max() <= 2


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("image", "content"),
    [
        (WIDE, srgb()),
        (WIDE, of_colorants(SRGB, None)),  # sRGB by another name
        (WIDE, b""),
        (WIDE, b"no profile" * 99),
        (WIDE, of_colorants(*CURVES["P3"])[:300]),
        (WIDE, of_ink()),
        (WIDE, of_grey(1.0)),
        (WIDE, of_colorants(*CURVES["P3"]).replace(b"RGB ", b"Luv ", 1)),
        (WIDE, of_colorants(*CURVES["P3"]).replace(b"mntr", b"link", 1)),
        (WIDE, of_colorants(*CURVES["P3"]).ljust(MAX_PROFILE + 1, b"\0")),
        (WIDE.convert("L"), of_colorants(*CURVES["P3"])),
        (WIDE.convert("CMYK"), of_colorants(*CURVES["P3"])),
        (WIDE.convert("CMYK"), b"no profile"),
    ],
)
def test_what_is_no_use_changes_no_bit(tmp_path, image, content):
    plain = decoded(tmp_path, encoded(image, "TIFF"), 24)
    assert np.array_equal(decoded(tmp_path, encoded(image, "TIFF", icc_profile=content), 24), plain)


def test_a_pillow_without_little_cms_decodes_as_ever(tmp_path, monkeypatch):
    def missing(*arguments):
        raise ImportError("The _imagingcms C module is not installed")

    monkeypatch.setattr(plumage.data.colour.ImageCms, "ImageCmsProfile", missing)
    plumage.data.colour._transform.cache_clear()
    got = decoded(tmp_path, encoded(WIDE, "PNG", icc_profile=of_colorants(*CURVES["P3"])), 64)
    plumage.data.colour._transform.cache_clear()
    assert np.array_equal(got, COLOURS)


def test_images_of_pillow_have_profiles_too(tmp_path):
    content = of_colorants(*CURVES["P3"])
    image = WIDE.copy()
    image.info["icc_profile"] = content
    assert np.array_equal(of_pillow(image, Square(64)).pixels, by_little_cms(WIDE, content))
    assert np.array_equal(np.asarray(image), COLOURS)
    for odd in (None, "text", 5, (1, 2), bytearray(content)):
        image.info["icc_profile"] = odd
        assert np.array_equal(of_pillow(image, Square(64)).pixels, COLOURS)


def test_threads_share_a_few_transforms(tmp_path):
    profiles = [of_colorants(matrix, exponent) for matrix, exponent in CURVES.values()] * 30
    expected = {content: by_little_cms(WIDE, content) for content in profiles[:3]}
    with ThreadPoolExecutor(8) as pool:
        shared = list(pool.map(lambda content: transform_for(content, "RGB")(WIDE), profiles))
    for got, content in zip(shared, profiles, strict=True):
        assert np.array_equal(np.asarray(got), expected[content])
    for exponent in range(40):
        transform_for(of_grey(1 + exponent / 40), "L")
    info = plumage.data.colour._transform.cache_info()
    assert info.currsize == info.maxsize <= 16
