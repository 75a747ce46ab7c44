"""Pictures of more than 8 bits a channel: none of their levels is lost, and a data set has one scale."""

import json
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

import plumage.data.facts
from plumage import load
from plumage.data.dataset import prepare
from plumage.data.decode import Square, decode, decode_or_reason, of_pillow
from plumage.data.depth import LEARN
from plumage.data.samples import Samples
from plumage.data.store import Cache, open_store
from plumage.errors import UserError
from plumage.rundir.folder import RunDir

RNG = np.random.default_rng(0)
TYPES = {"u": 1, "i": 2, "f": 3}


def tiff(pixels: np.ndarray, order: str = "<", packed: bool = False, white_is_zero: bool = False, **tags: int) -> bytes:
    """Return a TIFF of (height, width[, channels]) pixels in one strip, written as the specification says."""
    height, width, *channels = pixels.shape
    count = channels[0] if channels else 1
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    apart = tags.get("planar") == 2
    strips = [pixels[..., channel].tobytes() for channel in range(count)] if apart else [pixels.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    colour = {1: 0 if white_is_zero else 1, 2: 1, 3: 2, 4: tags.get("photometric", 2)}[count]
    shorts = {258: [8 * pixels.itemsize] * count, 259: [8 if packed else 1], 262: [colour], 277: [count]}
    shorts |= {284: [tags.get("planar", 1)], 339: [TYPES[pixels.dtype.kind]] * count}
    if (count, colour) in ((2, 1), (4, 2)):
        shorts[338] = [tags.get("extra", 2)]
    start = 8 + sum(map(len, strips))
    places = np.cumsum([8, *map(len, strips)])[:-1].tolist()
    longs = {256: [width], 257: [height], 273: places, 278: [height], 279: list(map(len, strips))}
    entries, beyond = b"", b""
    after = start + 2 + 12 * len(shorts | longs) + 4
    for number in sorted(shorts | longs):
        code, letter, values = (3, "H", shorts[number]) if number in shorts else (4, "I", longs[number])
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            content, beyond = struct.pack(f"{order}I", after + len(beyond)), beyond + content
        entries += struct.pack(f"{order}HHI", number, code, len(values)) + content.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return head + b"".join(strips) + struct.pack(f"{order}H", len(shorts | longs)) + entries + bytes(4) + beyond


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels: np.ndarray, interlaced: bool = False, *more: bytes) -> bytes:
    """Return a PNG of 16 bits a channel: grey, grey and alpha, RGB or RGBA, by the number of channels."""
    height, width, *channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 1]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right] for top, left, down, right in passes] if interlaced else [pixels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def ppm(pixels: np.ndarray, most: int = 65535) -> bytes:
    kind = "P6" if pixels.ndim == 3 else "P5"
    return f"{kind} {pixels.shape[1]} {pixels.shape[0]} {most}\n".encode() + pixels.astype(">u2").tobytes()


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return (h, w, 3) uint8: the formula, in exact enough arithmetic."""
    grey = np.rint(255 * (values.astype(np.float64) - low) / (high - low)).clip(0, 255).astype(np.uint8)
    return grey if grey.ndim == 3 else np.stack([grey] * 3, axis=-1)


def of_bits(bits: int, *channels: int) -> np.ndarray:
    pixels = RNG.integers(0, 2**bits, (11, 11, *channels), np.uint16)
    pixels.flat[:2] = 0, 2**bits - 1
    return pixels


GREY, RGB = of_bits(12), of_bits(12, 3)
SIGNED = GREY.astype(np.int16) - 1024
FLOAT = (GREY / np.float32(7)).astype(np.float32) - np.float32(100)
WIDE = GREY.astype(np.uint32) * 1_000_000
FILES = {
    **{f"grey of {bits} bits.png": (png(pixels := of_bits(bits)), pixels) for bits in (8, 10, 12, 16)},
    **{f"grey of {bits} bits.tif": (tiff(pixels := of_bits(bits)), pixels) for bits in (8, 10, 12, 16)},
    **{f"rgb of {bits} bits.png": (png(pixels := of_bits(bits, 3)), pixels) for bits in (8, 10, 12, 16)},
    **{f"rgb of {bits} bits.tif": (tiff(pixels := of_bits(bits, 3)), pixels) for bits in (8, 10, 12, 16)},
    "interlaced.png": (png(GREY, True), GREY),
    "rgb, interlaced.png": (png(RGB, True), RGB),
    "grey.pgm": (ppm(GREY), GREY),
    "rgb.ppm": (ppm(RGB), RGB),
    "rgb with its own most.ppm": (ppm(RGB, 4095), RGB * (65535 / 4095)),
    "floats.pfm": (b"Pf 11 11 -1.0\n" + FLOAT[::-1].astype("<f4").tobytes(), FLOAT),
}
for name, pixels in (("grey", GREY), ("rgb", RGB), ("signed", SIGNED), ("float", FLOAT)):
    for order in "<>":
        for packed in (False, True):
            content = tiff(pixels, order, packed)
            FILES[f"{name} {'big' if order == '>' else 'little'}-endian {packed and 'packed'}.tif"] = content, pixels
FILES |= {
    "signed 8.tif": (tiff(SIGNED.astype(np.int8)), SIGNED.astype(np.int8)),
    "signed 8 big-endian packed.tif": (tiff(SIGNED.astype(np.int8), ">", True), SIGNED.astype(np.int8)),
    "unsigned 32.tif": (tiff(WIDE), WIDE),
    "signed 32.tif": (tiff(WIDE.astype(np.int64).astype(np.int32)), WIDE.astype(np.int64).astype(np.int32)),
    "signed 32 big-endian packed.tif": (tiff(-GREY.astype(np.int32), ">", True), -GREY.astype(np.int32)),
    "white is zero.tif": (tiff(GREY, white_is_zero=True), 65535 - GREY),
    "white is zero, float.tif": (tiff(FLOAT, white_is_zero=True), -FLOAT),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_keeps_its_levels(tmp_path, name):
    content, values = FILES[name]
    (tmp_path / name).write_bytes(content)
    low, high = float(values.min()), float(values.max())
    decoded = decode(tmp_path / name, Square(11, levels=(low, high)))
    assert decoded.extremes == (low, high)
    if "most" not in name:
        assert np.array_equal(decoded.pixels, scaled(values, low, high))
    assert np.abs(decoded.pixels.astype(int) - scaled(values, low, high)).max() <= 1
    third = (high - low) / 3
    inside = decode(tmp_path / name, Square(11, levels=(low + third, high - third))).pixels
    assert np.abs(inside.astype(int) - scaled(values, low + third, high - third)).max() <= 1
    assert {0, 255} <= set(inside.flat)  # what lies beyond is clipped


@pytest.mark.parametrize("side", [11, 4])
@pytest.mark.parametrize("kind", ["png", "interlaced png", "grey png", "tif", "premultiplied tif", "key", "grey key"])
def test_transparency_goes_over_white_in_all_depth(tmp_path, kind, side):
    """Against the same done with numbers of 64 bits, on the whole picture."""
    colours = RGB[..., :1] if "grey" in kind else RGB
    alpha = of_bits(16, 1)
    if "key" in kind:
        alpha = np.where((colours == colours[3, 3]).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
    whole = np.concatenate([colours, alpha], axis=2)
    if "key" in kind:
        key = chunk(b"tRNS", colours[3, 3].astype(">u2").tobytes())
        content = png(colours if colours.shape[2] == 3 else colours[..., 0], False, key)
    elif "tif" in kind:
        shown = (colours * (alpha / 65535)).round().astype(np.uint16)
        content = tiff(np.concatenate([shown, alpha], axis=2), extra=1) if "pre" in kind else tiff(whole)
    else:
        content = png(whole, "interlaced" in kind)
    (tmp_path / "a").write_bytes(content)
    opaque = alpha / 65535
    over = colours * (255 / 4095) * opaque + 255 * (1 - opaque)
    planes = [Image.fromarray(over[..., n].astype(np.float32)) for n in range(colours.shape[2])]
    small = [np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes]
    expected = np.stack(small * (3 // len(small)), axis=-1)
    got = decode(tmp_path / "a", Square(side, levels=(0.0, 4095.0))).pixels
    assert np.abs(got - expected).max() <= 0.51 + ("pre" in kind)


def test_premultiplied_grey_of_8_bits_goes_over_white(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.full((4, 4, 2), (40, 51), np.uint8), extra=1))
    assert np.abs(decode(tmp_path / "a.tif", Square(4)).pixels.astype(int) - (40 + 204)).max() <= 1


def test_resized_before_it_is_scaled(tmp_path):
    """Of four levels, a mean of pixels is between them; rounded first, there would be four shades."""
    pixels = RNG.integers(0, 4, (64, 64), np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels))
    small = Image.fromarray(pixels.astype(np.float32)).resize((16, 16), Image.Resampling.BILINEAR)
    got = decode(tmp_path / "a.png", Square(16, levels=(0.0, 3.0))).pixels[..., 0]
    assert np.abs(got - np.asarray(small) * 85).max() <= 0.51
    assert len(np.unique(got)) > 30


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_upright_and_fitted_as_pictures_of_8_bits_are(tmp_path, fit, orientation):
    bytes_ = RNG.integers(0, 256, (20, 33, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(bytes_).save(tmp_path / "shallow.png", exif=exif)
    (tmp_path / "deep.png").write_bytes(png(bytes_.astype(np.uint16) + 500, False, chunk(b"eXIf", exif.tobytes()[6:])))
    shallow = decode(tmp_path / "shallow.png", Square(8, fit)).pixels
    deep = decode(tmp_path / "deep.png", Square(8, fit, (500.0, 755.0))).pixels
    assert np.abs(shallow.astype(int) - deep).max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("planar.tif", tiff(RGB, planar=2), "planar"),
        ("packed planar.tif", tiff(RGB, ">", True, planar=2), "planar"),
        ("planar grey and alpha.tif", tiff(RNG.integers(0, 256, (9, 9, 2), np.uint8), packed=True, planar=2), "planar"),
        ("planar ink.tif", tiff(of_bits(16, 4), planar=2, photometric=5), "planar"),
        ("text.ppm", b"P3 1 1 4095\n1 2 3\n", "as text"),
        ("doubles.tif", tiff(FLOAT.astype(np.float64)), "is a TIFF of a kind that Pillow does not read"),
        ("halves.tif", tiff(FLOAT.astype(np.float16)), "is a TIFF of a kind that Pillow does not read"),
        ("nothing.tif", tiff(np.full((4, 4), np.nan, np.float32)), "has no pixel that is a finite number"),
    ],
)
def test_what_cannot_be_read_in_all_depth_is_not_read(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert reason in decode_or_reason(tmp_path / name, Square(4, levels=(0.0, 1.0)))


def test_colours_of_more_than_8_bits_in_jpeg_2000_are_not_read(tmp_path):
    file = tmp_path / "a.jp2"
    Image.new("RGB", (9, 9), (200, 30, 60)).save(file)
    assert decode(file, Square(4)).pixels[0, 0].tolist() == [200, 30, 60]
    content = bytearray(file.read_bytes())
    content[content.index(b"ihdr") + 14] = 11
    file.write_bytes(content)
    assert "more than 8 bits in JPEG 2000" in decode_or_reason(file, Square(4))
    Image.fromarray(GREY * 16).save(file)
    assert np.array_equal(decode(file, Square(11, levels=(0.0, 65520.0))).pixels, scaled(GREY * 16, 0, 65520))


def test_numbers_without_a_known_range_need_levels(tmp_path):
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_bytes(content)
        got = decode_or_reason(tmp_path / name, Square(11))
        known = not any(word in name for word in ("signed", "float"))
        assert isinstance(got, str) != known, name
        assert known or "of which the run has learnt no range" in got


def test_full_range_without_levels(tmp_path):
    pixels = of_bits(16)
    (tmp_path / "a.png").write_bytes(png(pixels))
    assert np.abs(decode(tmp_path / "a.png", Square(11)).pixels[..., 0].astype(int) - (pixels >> 8)).max() <= 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("largest", [1.0, 3.4e38])
def test_odd_numbers_stay_where_they_are_and_warn_nobody(tmp_path, odd, largest):
    pixels = np.full((4, 4), largest, np.float32)
    pixels[0, 0], pixels[3, 3] = odd, -largest
    (tmp_path / "a.tif").write_bytes(tiff(pixels))
    levels = -float(np.float32(largest)), float(np.float32(largest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(tmp_path / "a.tif", Square(4, levels=levels))
    assert decoded.extremes == levels
    expected = np.full((4, 4), 255)
    expected[3, 3], expected[0, 0] = 0, 255 if odd == np.inf else 0
    assert np.array_equal(decoded.pixels[..., 0], expected)


def test_of_one_value_only(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.full((4, 4), 7, np.uint16)))
    store = open_store(tmp_path, ["a.png"], Square(4, levels=LEARN), Cache(tmp_path / "cache"))
    assert store.square.levels == (7.0, 7.0)
    assert not store.read(np.array([0])).any()


def test_images_of_pillow(tmp_path):
    image = Image.fromarray(GREY)
    assert np.array_equal(of_pillow(image, Square(11, levels=(0.0, 4095.0))).pixels, scaled(GREY, 0, 4095))
    number = Image.fromarray(GREY.astype(np.int32) - 9)
    assert np.array_equal(of_pillow(number, Square(11, levels=(-9.0, 4086.0))).pixels, scaled(GREY, 0, 4095))
    with pytest.raises(ValueError, match="learnt no range"):
        of_pillow(number, Square(11))
    (tmp_path / "a.png").write_bytes(png(RGB))
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(ValueError, match="give its path"):
        of_pillow(opened, Square(11))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two classes of 12-bit scans, one with a picture of 8 bits among them: 0 to 4095 in all, less in each."""
    folder = tmp_path / "scans"
    for label, (low, high) in {"dark": (0, 900), "light": (700, 4096)}.items():
        (folder / label).mkdir(parents=True)
        for number in range(8):
            pixels = RNG.integers(low, high, (30, 40), np.uint16)
            pixels[0, 0] = (0 if low == 0 else 4095) if number == 5 else pixels[0, 1]
            content = png(pixels) if number % 2 else tiff(pixels)
            (folder / label / f"{number}.{'png' if number % 2 else 'tif'}").write_bytes(content)
    Image.new("L", (40, 30), 200).save(folder / "light" / "shallow.png")
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def test_a_store_learns_one_scale(tmp_path, scans):
    paths = listed(scans)
    store = open_store(scans, paths, Square(16, levels=LEARN), Cache(tmp_path / "cache"))
    assert store.square.levels == (0.0, 4095.0)
    for row, path in enumerate(paths):
        expected = decode(scans / path, Square(16, levels=(0.0, 4095.0)))
        assert np.array_equal(store.read(np.array([row]))[0], expected.pixels)
        assert np.array_equal(store.extremes[row], expected.extremes or (np.nan, np.nan), equal_nan=True)
    direct = open_store(scans, paths, Square(16, levels=LEARN), Cache(tmp_path / "cache", use_store=False))
    assert direct.square == store.square
    assert np.array_equal(direct.digests, store.digests)
    assert np.array_equal(direct.read(np.arange(len(paths))), store.read(np.arange(len(paths))))
    assert len(np.unique(store.read(np.arange(8)))) > 15  # and not the four that the upper byte has


def test_what_is_learnt_never_depends_on_the_cache(tmp_path, scans):
    paths, cache = listed(scans), Cache(tmp_path / "cache")
    open_store(scans, paths, Square(16, levels=LEARN), cache)
    for part in (paths[:8], paths[8:], [path for path in paths if "shallow" in path], paths):
        own = open_store(scans, part, Square(16, levels=LEARN), cache)
        fresh = open_store(scans, part, Square(16, levels=LEARN), Cache(tmp_path / "none", use_store=False))
        assert own.square == fresh.square
        assert np.array_equal(own.digests, fresh.digests)
        for levels in (None, (0.0, 4095.0), (100.0, 200.0)):
            given = open_store(scans, part, Square(16, levels=levels), cache)
            pixels = [decode(scans / path, Square(16, levels=levels)).pixels for path in part]
            assert np.array_equal(given.read(np.arange(len(part))), pixels)


def test_a_store_of_the_same_scale_serves(tmp_path, scans, monkeypatch):
    paths, cache = listed(scans), Cache(tmp_path / "cache")
    open_store(scans, paths, Square(16, levels=LEARN), cache)
    monkeypatch.setattr(plumage.data.store, "decode_all", None)
    monkeypatch.setattr(plumage.data.decode, "decode", None)
    for part in (paths, [path for path in paths if "/5." in path]):
        for levels in (LEARN, (0.0, 4095.0)):
            assert open_store(scans, part, Square(16, levels=levels), cache).square.levels == (0.0, 4095.0)
    for levels in (LEARN, None, (5.0, 6.0)):
        assert open_store(scans, ["light/shallow.png"], Square(16, levels=levels), cache).pixels


def test_pictures_of_8_bits_are_decoded_once(tmp_path, photos, monkeypatch):
    decoded, whole = [], plumage.data.decode.decode
    monkeypatch.setattr(
        plumage.data.decode, "decode", lambda file, square: decoded.append(file.name) or whole(file, square)
    )
    paths = listed(photos)
    learnt = open_store(photos, paths, Square(16, levels=LEARN), Cache(tmp_path / "cache"))
    assert len(decoded) == len(paths)
    assert learnt.square.levels is None
    plain = open_store(photos, paths, Square(16), Cache(tmp_path / "cache"))
    assert np.array_equal(plain.read(np.arange(30)), learnt.read(np.arange(30)))
    assert len(decoded) == len(paths)


def test_a_scan_that_vanishes_between_the_looks_is_named(tmp_path, scans, monkeypatch):
    learnt = plumage.data.facts.learnt

    def vanish(extremes: np.ndarray):
        (scans / "dark" / "0.tif").unlink(missing_ok=True)
        return learnt(extremes)

    monkeypatch.setattr(plumage.data.facts, "learnt", vanish)
    with pytest.raises(UserError, match=r"0\.tif can no longer be read"):
        open_store(scans, listed(scans), Square(16, levels=LEARN), Cache(tmp_path / "cache"))


@pytest.mark.parametrize("row", [(5.0, 4.0), (np.nan, 4.0), (np.inf, np.inf), (-1e308, 1e308)])
def test_extremes_that_lie_are_not_believed(tmp_path, scans, caplog, row):
    paths, cache = listed(scans), Cache(tmp_path / "cache")
    open_store(scans, paths, Square(16, levels=LEARN), cache)
    (home,) = (tmp_path / "cache" / "stores").iterdir()
    with np.load(home / "index.npz") as index:
        arrays = dict(index)
    arrays["extremes"][0] = row
    np.savez(home / "index.npz", **arrays)
    assert open_store(scans, paths, Square(16, levels=LEARN), cache).square.levels == (0.0, 4095.0)
    assert "its index is not what was written" in caplog.text


def test_a_prepared_data_set_has_its_levels(tmp_path, scans):
    paths = listed(scans)
    labels = np.array([path.startswith("light") for path in paths], np.int64)
    samples = Samples(scans, paths, labels, ["dark", "light"])
    assert prepare(samples, Square(16), 0.2, 0, Cache(tmp_path / "cache")).store.square.levels == (0.0, 4095.0)


def test_scans_from_training_to_export(cli, tmp_path, scans):
    run = tmp_path / "run"
    code, _, err = cli("train", "--data", scans, "--run", run, *TINY, "--epochs", "2")
    assert code == 0, err
    assert "16 of 17 pictures have more than 8 bits: 0 becomes black and 4095, of light/" in err
    assert json.loads((run / "levels.json").read_text()) == {"low": 0.0, "high": 4095.0}
    assert RunDir(run).levels == (0.0, 4095.0)
    best = RunDir(run).history.best
    numbers = json.loads(cli("eval", "--run", run, "--json")[1])
    assert numbers["accuracy"] == best["val_accuracy"]
    assert numbers["loss"] == best["val_loss"]
    assert json.loads(cli("eval", "--run", run, "--json", "--no-cache")[1]) == numbers

    # Predicted in that range too, alone or among others, by command and from Python.
    paths = [scans / path for path in listed(scans)]
    code, out, err = cli("predict", "--run", run, scans, "--probabilities")
    assert code == 0, err
    assert "beyond" not in err
    rows = [line.split(",") for line in out.splitlines()[1:]]
    assert len(rows) == len(paths)
    alone = load(run, device="cpu")([paths[3]])[0]
    assert [float(value) for value in rows[3][3:]] == pytest.approx(list(alone.probabilities.values()), abs=1e-4)

    bright = tmp_path / "bright"
    (bright / "light").mkdir(parents=True)
    for number in range(3):
        (bright / "light" / f"{number}.png").write_bytes(png(GREY * (1 if number else 4)))
    beyond = "1 pictures have values beyond 0 to 4095, which the run has learnt from: they are clipped"
    for command in (("eval", "--data", bright), ("predict", bright)):
        code, _, err = cli(*command, "--run", run)
        assert code == 0, err
        assert err.count(beyond) == 1, err
    signed = tmp_path / "signed"
    (signed / "light").mkdir(parents=True)
    (signed / "light" / "1.tif").write_bytes(tiff(SIGNED))
    assert "1 pictures have values beyond" in cli("predict", signed, "--run", run)[2]

    code, out, err = cli("export", "--run", run, "--format", "safetensors")
    assert code == 0, err
    assert b"values from 0.0 to 4095.0 brought to 0 to 255" in (run / "model.safetensors").read_bytes()

    # What is kept with the run counts, whatever the folder holds meanwhile.
    (scans / "dark" / "new.png").write_bytes(png(of_bits(16)))
    code, _, err = cli("train", "--data", scans, "--run", run, "--resume", *TINY, "--epochs", "2")
    assert code == 0, err
    assert json.loads(cli("eval", "--run", run, "--json")[1]) == numbers
    infinite = f'{{"low": 0, "high": {10**400}}}'
    pairs = [(2, 1), ("NaN", 1), (-1e308, 1e308), ("[]", 1), ("null", 1), ('"0"', 1)]
    objects = [f'{{"low": {low}, "high": {high}}}' for low, high in pairs]
    for damage in (*objects, "[]", "{", '{"low": 1}', infinite):
        (run / "levels.json").write_text(damage)
        code, _, err = cli("eval", "--run", run)
        assert code == 2
        assert str(run / "levels.json") in err
        assert len(err.splitlines()) <= 2


def test_a_run_of_8_bits_has_no_levels(cli, tmp_path, photos):
    code, _, err = cli("train", "--data", photos, "--run", tmp_path / "run", *TINY, "--epochs", "1")
    assert code == 0, err
    assert not (tmp_path / "run" / "levels.json").exists()
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "a.png").write_bytes(png(GREY))
    (deep / "b.tif").write_bytes(tiff(SIGNED))
    code, out, err = cli("predict", deep, "--run", tmp_path / "run")
    assert code == 2
    assert "b.tif: has signed, 32-bit or floating-point numbers, of which the run has learnt no range" in err
    assert len(out.splitlines()) == 3
    assert (
        "1 pictures have more than 8 bits, and the run has learnt from none such: 0 to 65535 is taken as their range"
        in err
    )
    shutil.rmtree(deep)
